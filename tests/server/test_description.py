"""The service keeps what it describes: requests made out of its description by schemathesis, all checks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model import Reconstructor
from server.app import create_app
from server.samples import read_samples
from server.service import Service
from server.settings import Settings
from tests.server.conftest import shelf
from tests.server.test_limits import listening

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = os.environ.get("TEST_EXAMPLES", "2")  # of each operation; the long run takes hundreds, and hours
TIMEOUT_S = 280 if EXAMPLES == "2" else None
PHASES = os.environ.get("TEST_PHASES", "examples,fuzzing")  # the long run adds coverage and stateful


@pytest.mark.slow
def test_no_request_gets_an_answer_that_is_not_described(
    reconstructor: Reconstructor, debug_weights: Path, tmp_path: Path
) -> None:
    chosen = Settings(deadline_s=120.0)
    weights = Path(shutil.copy(debug_weights, tmp_path))
    weights.with_suffix(".report.json").write_text(json.dumps({"digest": reconstructor.digest}))
    app = create_app(Service(shelf(reconstructor, weights), chosen), chosen, read_samples())
    with listening(app) as address:
        command = [
            *(str(Path(sys.executable).with_name("st")), "--config-file", "tests/server/schemathesis.toml"),
            *("run", f"{address}/openapi.json", "--checks", "all", "--phases", PHASES),
            *(
                "--max-examples",
                EXAMPLES,
                "--generation-deterministic",
                "--request-timeout",
                "120",
                "--max-response-time",  # the first head waits for a process that imports torch
                "120",
            ),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        told = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    assert told.returncode == 0, told.stdout[-8000:] + told.stderr[-2000:]
