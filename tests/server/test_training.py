import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from model import Reconstructor
from server.app import create_app
from server.models import Models, Source
from server.service import Service
from server.settings import Settings
from server.training import MAX_POINTS, find_records
from tests.server.conftest import FakeEngine, png, problem_of, running

#: A record that went on with another target, whose loss is another one.
TARGETS = ("pixel", "norm_pixel_stats")


def write_record(curve: Path, pictures: Path, steps: int) -> None:
    lines = [
        json.dumps(
            {"step": step, "samples": 32 * step, "loss": 1 / step, "lr": 1.0, "target": TARGETS[step > 2]}
        )
        for step in range(1, steps + 1)
    ]
    held_out = '{"step": 0, "samples": 0, "val_loss": 1.5}'  # before the first step there is no other loss
    lines[-1] = lines[-1].replace("}", ', "val_loss": 0.5}')
    curve.write_text("\n".join([held_out, *lines, '{"step": 7, "samp']))  # as while it is being written
    pictures.mkdir()
    (pictures / "step-0000002.webp").write_bytes(png())
    (pictures / "unlisted.webp").write_bytes(png())
    listed = [
        {"step": 2, "samples": 64, "file": name}
        for name in ("step-0000002.webp", "../small.jsonl", "gone.webp")
    ]
    (pictures / "index.json").write_text(json.dumps({"photos": ["cat", "coffee"], "pictures": listed}))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    write_record(tmp_path / "small.jsonl", tmp_path / "small-training", steps=3)
    (tmp_path / "my run").mkdir()
    write_record(tmp_path / "my run" / "metrics.jsonl", tmp_path / "my run" / "pictures", steps=5001)
    names = ("small", "bare")
    models = Models([Source(name, tmp_path / f"{name}.safetensors") for name in names], fake, max_bytes=1024)
    models.load_default()
    settings = Settings(run=tmp_path / "my run")
    with running(create_app(Service(models, settings), settings)) as client:
        yield client


def fake(path: Path) -> Reconstructor:
    return cast(Reconstructor, FakeEngine())


def test_a_model_shows_its_curve_and_its_pictures(client: TestClient) -> None:
    told: dict[str, Any] = client.get("/v1/models/small/training").json()
    assert told["points"] == [
        {"step": step, "samples": 32 * step, "loss": 1 / step, "lr": 1.0, "target": TARGETS[step > 2]}
        for step in (1, 2, 3)
    ]
    assert [(point["step"], point["val_loss"]) for point in told["validation"]] == [(0, 1.5), (3, 0.5)]
    assert told["photos"] == ["cat", "coffee"]
    first = told["pictures"][0]
    assert first == {"step": 2, "samples": 64, "url": "/v1/models/small/training/step-0000002.webp"}
    picture = client.get(first["url"])
    assert (picture.content, picture.headers["content-type"]) == (png(), "image/webp")


def test_a_run_that_goes_on_can_be_watched(client: TestClient) -> None:
    assert client.get("/v1/info").json()["trainings"] == ["small", "my run"]
    told = client.get("/v1/models/my%20run/training").json()
    steps = [point["step"] for point in told["points"]]
    assert len(steps) <= MAX_POINTS
    assert {after - before for before, after in pairwise(steps)} == {4}, "evenly thinned"
    assert [point["step"] for point in told["validation"]] == [0, 5001], "of few none is left out"
    assert client.get(told["pictures"][0]["url"]).status_code == 200


def test_a_run_that_begins_after_the_service_is_told_of(tmp_path: Path) -> None:
    (run := tmp_path / "later").mkdir()
    models = Models([Source("bare", tmp_path / "bare.safetensors")], fake, max_bytes=1024)
    models.load_default()
    settings = Settings(run=run)
    with running(create_app(Service(models, settings), settings)) as client:
        assert client.get("/v1/info").json()["trainings"] == []
        write_record(run / "metrics.jsonl", run / "pictures", steps=3)
        assert client.get("/v1/info").json()["trainings"] == ["later"]


def test_weights_left_in_their_runs_folder_show_its_record(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    run.mkdir()
    write_record(run / "metrics.jsonl", run / "pictures", steps=3)
    record = find_records([Source("mine", run / "mine.safetensors")], None)["mine"]
    assert len(record.read("")["points"]) == 3


@pytest.mark.parametrize(
    "path",
    [
        "small/training/unlisted.webp",
        "small/training/..%2Fsmall.jsonl",
        "small/training/gone.webp",
        "small/training/index.json",
        "bare/training",
        "bare/training/step-0000002.webp",
        "nobody/training",
        "..%2Fsmall/training",
    ],
)
def test_nothing_else_of_the_folder_is_to_be_had(path: str, client: TestClient) -> None:
    problem_of(client.get(f"/v1/models/{path}"), 404)


def test_a_record_that_is_broken_shows_what_there_is(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "small-training" / "index.json").write_text("[")
    (tmp_path / "small.jsonl").write_bytes(b'\xff\n{"step": 1, "samples": 2, "loss": NaN, "lr": 1}\n[]\n')
    assert client.get("/v1/models/small/training").json() == {
        "points": [],
        "validation": [],
        "photos": [],
        "pictures": [],
    }
