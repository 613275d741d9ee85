"""Many requests at a time, of all kinds and for two models: each gets the answer it gets alone.

`TEST_EXAMPLES` in the environment sets how many; against the shipped model: `python -m tests.bench.mixups`.
"""

import asyncio
import os
from functools import partial
from pathlib import Path

import pytest

from model import load
from server.app import create_app
from server.models import Models, Source
from server.service import Service
from server.settings import Settings
from tests.bench.mixups import Tally, ask_alone, ask_together, write_second_model
from tests.server.test_limits import listening

EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "120"))
DIFFERENT = 40
MODELS = ("debug", "second")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    path = tmp_path_factory.mktemp("second") / "second.safetensors"
    with torch.random.fork_rng():
        write_second_model(path)
    return path


def test_no_answer_of_many_at_a_time_is_anothers(debug_weights: Path, second: Path) -> None:
    sources = [Source("debug", debug_weights), Source("second", second)]
    models = Models(sources, partial(load, device="cpu"), max_bytes=2**30)
    models.load_default()
    chosen, tally = Settings(deadline_s=120.0), Tally()
    with listening(create_app(Service(models, chosen), chosen)) as address:
        wanted = asyncio.run(ask_alone(address, range(DIFFERENT), MODELS))
        asyncio.run(ask_together(address, wanted, MODELS, EXAMPLES, tally))
    assert len(set(wanted.values())) == DIFFERENT
    assert tally.wrong == []
    assert tally.statuses[200] == EXAMPLES
