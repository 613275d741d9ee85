"""Files and options nobody would send in good faith: every one is answered, and never as a failure of ours.

`TEST_EXAMPLES` in the environment sets how many; the long run is 20,000.
"""

import io
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from model import EVERY_PANEL, Reconstructor
from tests.server.conftest import build_app, photo, problem_of, running

EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "60"))


@pytest.fixture(scope="module")
def client(reconstructor: Reconstructor) -> Iterator[TestClient]:
    app, _ = build_app(reconstructor)
    with running(app) as client:
        yield client


def encode(kind: str, **saving: Any) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(photo(size=(80, 72)))).save(file, kind, **saving)
    return file.getvalue()


def exif() -> Image.Exif:
    """Lying, with entries of several types."""
    entries = Image.Exif()
    entries.update({0x0112: 6, 0x010E: "a garden", 0x011A: 72.0, 0x9C9B: b"\1\2\3\4\5"})
    return entries


SOURCES = [encode(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")]
SOURCES += [encode(kind, exif=exif()) for kind in ("PNG", "JPEG", "WEBP", "AVIF")]
SOURCES.append(encode("TIFF", compression="tiff_lzw"))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A picture file, cut short or with some bytes changed."""
    content = bytearray(draw(st.sampled_from(SOURCES)))
    chance = random.Random(draw(st.integers(0, 2**32)))
    # Half of them near the beginning, where most formats say what follows.
    near = min(len(content), 200) if draw(st.booleans()) else len(content)
    for _ in range(draw(st.integers(0, 8))):
        content[chance.randrange(near)] = chance.randrange(256)
    return bytes(content[: chance.randrange(len(content))] if draw(st.booleans()) else content)


numbers = st.one_of(
    st.integers(-3, 20).map(str), st.floats().map(str), st.decimals().map(str), st.text(max_size=8)
)
lists = st.lists(st.integers(-1, 17), max_size=17).map(json.dumps)
fields = st.fixed_dictionaries(
    {},
    optional={
        "strategy": st.sampled_from(["random", "block", "grid", "indices", "drawing", "", "RANDOM"]),
        "ratio": st.one_of(st.sampled_from(["0.75", "0.5", "0.999", ".1"]), numbers),
        "hidden_count": numbers,
        "seed": st.one_of(st.integers(0, 2**32).map(str), numbers),
        "indices": st.one_of(lists, st.text(max_size=8)),
        "panels": st.one_of(st.sampled_from([*EVERY_PANEL, "masked,error"]), st.text(max_size=8)),
        "interpolation": st.one_of(st.booleans().map(str), st.text(max_size=4)),
        "view": st.sampled_from(["pixels", "estimated", "oracle", ""]),
        "fit": st.sampled_from(["square", "whole", "", "WHOLE"]),
        "crop": st.one_of(st.sampled_from(["0,0,16", "8, 8, 40", "-1,0,9", "0,0,0"]), st.text(max_size=8)),
        "grid": st.one_of(st.sampled_from(["4x4", "5x9", "40x40", "3x3", "4×6"]), st.text(max_size=8)),
        "cover": st.sampled_from(["single", "complete", "ensemble", ""]),
        "samples": st.one_of(st.integers(1, 4).map(str), numbers),
        "positions": st.sampled_from(["both", "hidden_only", ""]),
        "model": st.one_of(st.just("debug"), st.text(max_size=8)),
        "panel": st.sampled_from(["sheet", "uncertainty", "error", ""]),
        "other": st.text(max_size=4),
    },
)


bounded = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=EXAMPLES
)


def check_not_our_failure(answer: Any) -> None:
    assert answer.status_code == 200 or 400 <= answer.status_code < 500, answer.text
    if answer.status_code != 200:
        assert problem_of(answer, answer.status_code)["errors"]


# Pillow warns of broken metadata and reads on; the tests' own rule would make a failure of it.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@bounded
@given(fields=fields, drawing=st.one_of(st.none(), mutated()), accept=st.sampled_from(["*/*", "image/png"]))
def test_no_set_of_options_is_answered_with_our_failure(
    fields: dict[str, str], drawing: bytes | None, accept: str, client: TestClient
) -> None:
    files = {"image": ("a", SOURCES[0])} | ({"drawing": ("d", drawing)} if drawing is not None else {})
    check_not_our_failure(client.post("/reconstruct", files=files, data=fields, headers={"accept": accept}))


# Pillow warns of broken metadata and reads on; the tests' own rule would make a failure of it.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@bounded
@given(image=mutated(), drawing=st.one_of(st.none(), mutated()))
def test_no_picture_is_answered_with_our_failure(
    image: bytes, drawing: bytes | None, client: TestClient
) -> None:
    files, fields = {"image": ("a", image)}, {}
    if drawing is not None:
        files, fields = files | {"drawing": ("d", drawing)}, {"strategy": "drawing"}
    check_not_our_failure(client.post("/reconstruct", files=files, data=fields))
