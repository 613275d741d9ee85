import asyncio
import hashlib
import json
import os
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import structlog
from fastapi import FastAPI
from safetensors.numpy import save_file
from starlette.testclient import TestClient

from model import CheckpointError, Reconstructor, load
from model.checkpoints import registry
from server.app import create_app
from server.batcher import STAND_BACK
from server.main import build
from server.models import Models, Source, find_sources
from server.problems import ModelUnavailableError, OverloadedError
from server.reports import Reports
from server.service import Service
from server.settings import Settings
from tests.server.conftest import FakeEngine, into, photo, post, problem_of, running

MIB = 1024 * 1024


@dataclass
class Folder:
    """A folder of weight files, each a fake engine once read.

    Attributes:
        gate: Reading waits until it is set.
        read: Names, in the order they were read.
        priority: Of the thread that read last.
    """

    path: Path
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    read: list[str] = field(default_factory=list)
    priority: int | None = None

    def load(self, path: Path) -> Reconstructor:
        self.read.append(path.stem)
        if sys.platform == "linux":
            self.priority = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        self.entered.set()
        assert self.gate.wait(120)
        if path.stem == "broken":
            raise CheckpointError("it is cut", code="truncated", hint="Fetch it again.")
        if path.stem == "heavy":
            raise RuntimeError("CUDA out of memory.")  # as torch says it
        engine = FakeEngine(
            name="as the file says", digest=path.stem[0] * 64, identity=path.stem[0] * 64, parameters=MIB
        )  # 4 MiB of weights
        engine.gate.set()
        return cast(Reconstructor, engine)

    def app(self, *names: str, room: int = 2, **settings: Any) -> FastAPI:
        for name in names:
            (self.path / name).write_bytes(b"x")
        models = Models(
            [Source(name, self.path / name) for name in names], self.load, max_bytes=(4 * room + 1) * MIB
        )
        self.gate.set()
        models.load_default()
        self.entered.clear()
        chosen = Settings(**settings)
        return create_app(Service(models, chosen), chosen)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def model_of(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return cast(str, answer.headers["x-unmask-model"][0])


def test_a_request_names_its_model_and_the_first_is_the_default(folder: Folder) -> None:
    with running(folder.app("small", "large")) as client:
        assert [model_of(post(client)), model_of(post(client, model="small"))] == ["s", "s"]
        assert folder.read == ["small"]
        assert [model_of(post(client, model="large")) for _ in range(2)] == ["l", "l"]
        assert folder.read == ["small", "large"], "read once, when it was first asked for"
        batch = client.post(
            "/v1/reconstruct/batch", files={"images": post(client).content}, data={"model": "large"}
        )
        assert model_of(batch) == "l"
        listed = client.get("/v1/models").json()["models"]
    assert [(each["name"], each["default"], each["loaded"]) for each in listed] == [
        ("small", True, True),
        ("large", False, True),
    ]


def test_an_unknown_model_is_told_with_the_known_ones(folder: Folder) -> None:
    with running(folder.app("small", "large")) as client:
        for answer, status in ((post(client, model="huge"), 422), (client.get("/v1/models/huge"), 404)):
            told = problem_of(answer, status)
            assert told["type"].endswith("model-unknown")
            assert told["errors"][0]["field"] == "model"
            assert "small, large" in told["errors"][0]["hint"]
        problem_of(post(client, model="x" * 65), 422)


def test_loading_does_not_hold_up_those_being_served(folder: Folder) -> None:
    app = folder.app("small", "large")

    async def scene() -> None:
        async with httpx.AsyncClient(**into(app)) as client:
            folder.gate.clear()
            waiting = [asyncio.create_task(ask(client, "large")) for _ in range(3)]
            await asyncio.to_thread(folder.entered.wait, 10)
            assert model_of(await ask(client, "small")) == "s"
            assert not any(task.done() for task in waiting)
            folder.gate.set()
            assert [model_of(await task) for task in waiting] == ["l", "l", "l"]

    with running(app):
        asyncio.run(scene())
    assert folder.read == ["small", "large"]


async def ask(client: httpx.AsyncClient, name: str) -> httpx.Response:
    from tests.server.conftest import png

    return await client.post("/reconstruct", files={"image": png()}, data={"model": name})


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_who_loads_stands_back_behind_who_answers(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    back = max(STAND_BACK, os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    with running(folder.app("small", "large")) as client:
        post(client, model="large")
    assert folder.priority == back
    monkeypatch.setattr("server.main.prepare_environment", lambda *_: None)
    _, service = build(Settings(page=False, models=(str(folder.path / "small"),)), folder.path, folder.load)
    service.stop()
    assert (folder.read[-1], folder.priority) == ("small", back), (
        "an engine's threads are as the one that begins them"
    )


def test_who_waits_too_long_for_a_model_is_told_to_come_back(folder: Folder) -> None:
    with running(folder.app("small", "large", deadline_s=0.2)) as client:
        folder.gate.clear()
        answer = post(client, model="large")
        assert problem_of(answer, 503)["type"].endswith("model-loading")
        assert int(answer.headers["retry-after"]) >= 1
        folder.gate.set()
        while (answer := post(client, model="large")).status_code in (503, 504):
            pass
        assert model_of(answer) == "l"


def test_the_least_recently_used_model_goes_and_the_default_stays(folder: Folder) -> None:
    with running(folder.app("small", "large", "medium", "other", room=3)) as client:
        # Large came first, but medium was used before it.
        for name in ("large", "medium", "large", "other", "large", "medium"):
            assert model_of(post(client, model=name)) == name[0]
        loaded = [each["name"] for each in client.get("/v1/models").json()["models"] if each["loaded"]]
    assert folder.read == ["small", "large", "medium", "other", "medium"]
    assert loaded == ["small", "large", "medium"]


@pytest.mark.parametrize(("name", "reason"), [("broken", "cut"), ("heavy", "memory.")])
def test_a_model_that_cannot_be_used_is_refused_and_not_read_again_and_again(
    name: str, reason: str, folder: Folder
) -> None:
    with running(folder.app("small", name)) as client:
        for _ in range(2):
            told = problem_of(post(client, model=name), 503)
            assert told["type"].endswith("model-unavailable")
            assert reason not in str(told), "what is wrong with it is the operator's to know"
        assert model_of(post(client)) == "s"
    assert folder.read == ["small", name]


def test_a_model_that_would_never_fit_is_refused_and_drops_no_other(folder: Folder) -> None:
    app = folder.app("small", "large", "huge")
    (folder.path / "huge").write_bytes(bytes(6 * MIB))
    with running(app) as client:
        assert model_of(post(client, model="large")) == "l"
        problem_of(post(client, model="huge"), 503)
        assert model_of(post(client, model="large")) == "l"
    assert folder.read == ["small", "large"]


@pytest.fixture
def client(debug_weights: Path) -> Iterator[TestClient]:
    models = Models(
        [Source("one", debug_weights), Source("two", debug_weights)],
        lambda path: load(path, "cpu"),
        max_bytes=100 * MIB,
    )
    models.load_default()
    settings = Settings()
    with running(create_app(Service(models, settings), settings)) as client:
        yield client


def test_equal_weights_under_another_config_are_another_model(tmp_path: Path, debug_weights: Path) -> None:
    """As Hugging Face has them: the number of heads stands beside the weights, in no tensor and in no hash of them."""
    from safetensors.torch import load_file, save_file

    from model.checkpoints.convert import convert

    for name, heads in (("a", 2), ("b", 4)):
        folder = convert(debug_weights, tmp_path / name, to="huggingface")
        save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": heads}))
    models = Models(
        [Source(name, tmp_path / name) for name in "ab"], lambda path: load(path, "cpu"), max_bytes=2**30
    )
    models.load_default()
    settings = Settings(deadline_s=120.0)

    def ask(name: str) -> Any:
        return post(client, photo(), model=name, seed="7")

    with running(create_app(Service(models, settings), settings)) as client:
        first, second = alone = [ask(name) for name in "ab"]
        assert first.headers["x-unmask-model"] == second.headers["x-unmask-model"]
        assert first.headers["etag"] != second.headers["etag"]
        told = [answer.json()["metrics"] for answer in alone]
        assert told[0] != told[1]
        with ThreadPoolExecutor(8) as pool:
            together = [answer.json()["metrics"] for answer in pool.map(ask, "ab" * 8)]
    assert together == told * 8


def test_a_model_tells_what_it_is(client: TestClient) -> None:
    assert client.get("/v1/model").json()["name"] == "one"
    assert client.get("/v1/info").json()["models"] == ["one", "two"]
    unread = client.get("/v1/models").json()["models"][1]
    told = {key: unread[key] for key in ("name", "loaded", "grid", "target", "licence")}
    assert told == {"name": "two", "loaded": False, "grid": [4, 4], "target": "pixel", "licence": "none"}
    answer = post(client, model="two")
    assert (answer.json()["model"], answer.status_code) == ("two", 200)


def test_a_report_is_kept_beside_the_weights_or_made_elsewhere_while_nobody_waits(
    debug_weights: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.safetensors"
    shutil.copy(debug_weights, kept)
    report = {"digest": hashlib.sha256(kept.read_bytes()).hexdigest(), "content": "full", "path": kept.name}
    (tmp_path / "kept.report.json").write_text(json.dumps(report))
    sources = [Source("made", debug_weights), Source("kept", kept), Source("again", debug_weights)]
    models = Models(sources, lambda path: load(path, "cpu"), max_bytes=100 * MIB)
    models.load_default()
    settings = Settings(deadline_s=0.2)  # no process has torch so soon
    with running(create_app(Service(models, settings), settings)) as client:
        told = problem_of(refused := client.get("/v1/models/made"), 503)
        assert told["type"].endswith("report-pending")
        assert int(refused.headers["retry-after"]) >= 1
        for name in ("made", "again", "kept"):
            while (answer := client.get(f"/v1/models/{name}")).status_code == 503:
                time.sleep(0.2)
            told = answer.json()
            assert told["name"] == name
            assert told["grid"]
            assert told["report"]["content"] == "full"
            assert told["report"]["digest"] == told["digest"]
    assert told["report"] == report
    assert answer.json()["report"]["path"] == "kept.safetensors", "the folder is nobody's business"


def test_weights_that_replace_others_have_a_report_of_their_own(tmp_path: Path) -> None:
    file, beside = tmp_path / "mine.safetensors", tmp_path / "mine.report.json"

    async def ask() -> None:
        reports = Reports()
        for digest in ("before", "after"):
            beside.write_text(json.dumps({"digest": digest, "path": file.name}))
            assert (await reports.get(file, digest))["digest"] == digest
        reports.close()

    asyncio.run(ask())


def test_of_a_runs_folder_only_the_state_that_is_read_takes_room(tmp_path: Path) -> None:
    for step in (2, 4):
        (tmp_path / f"state-000000{step}.pt").write_bytes(bytes(1000 * step))
    (tmp_path / "metrics.jsonl").write_bytes(bytes(500))
    (tmp_path / "LATEST").write_text("state-0000004.pt")
    assert Source("run", tmp_path).size_bytes == 4000


def test_the_setting_takes_paths_names_and_shipped_models(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"x")
    found = find_sources([str(file), f"other={file}", f"folder={tmp_path}", "mini-grid"])
    assert [source.name for source in found] == ["mine", "other", "folder", "mini-grid"]
    assert [source.path for source in found[:3]] == [file, file, tmp_path]
    assert found[3].path is not None
    assert found[3].path.name == "mini-grid.safetensors"
    assert find_sources([])[0].name == "mini", "nothing chosen: what is shipped, the default first"


def test_names_of_public_weights_lead_to_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    (file := tmp_path / "w.safetensors").write_bytes(b"x")
    registry.add(registry.Entry(name="owner/mine", path=str(file)))
    assert find_sources(["owner/mine", "b=owner/mine"]) == [Source("mine", file), Source("b", file)]


def test_weights_that_changed_since_they_were_added_are_served_by_their_path_and_not_by_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, debug_weights: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shutil.copy(debug_weights, file := tmp_path / "mine.safetensors")
    registry.add(registry.Entry(name="owner/mine", path=str(file)))
    by_name, by_path = find_sources(["owner/mine", f"path={file}"])
    file.write_bytes(debug_weights.read_bytes()[:-1] + b"\x01")
    for source in (by_name, next(each for each in find_sources([]) if each.name == "mine")):
        with pytest.raises(CheckpointError, match="since it was added"):
            Models([source], lambda path: load(path, "cpu"), max_bytes=2**30).load_default()
    Models([by_path], lambda path: load(path, "cpu"), max_bytes=2**30).load_default()


def test_what_was_pulled_or_added_and_has_a_decoder_is_served_behind_the_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, debug_weights: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shipped = find_sources([])
    mine, twin, gone, cut = (tmp_path / f"{name}.safetensors" for name in ("mine", "twin", "gone", "cut"))
    for path in (mine, twin, gone, cut):
        shutil.copy(debug_weights, path)
    encoder = tmp_path / "encoder.safetensors"
    save_file({"cls_token": np.zeros(3)}, encoder, {"unmask": "decoder_width"})
    (pickle := tmp_path / "pickle.pth").write_bytes(b"\x80 decoder_embed.weight")
    (classifier := tmp_path / "classifier.pth").write_bytes(b"\x80 head.weight")
    for path in (mine, gone, cut, encoder, pickle, classifier):
        registry.add(registry.Entry(name=path.stem, path=str(path)))
    for name, path in (("owner/twin", twin), ("other/twin", mine), ("owner/mini", mine)):
        registry.add(registry.Entry(name=name, path=str(path)))
    (broken := registry.weights_folder() / "mae-visualize-base").mkdir()
    (broken / registry.RECORD).write_text("{")
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    with structlog.testing.capture_logs() as lines:
        found = find_sources([])
    assert found == [*shipped, Source("mine", mine), Source("pickle", pickle), Source("twin", twin)]
    assert [line["weights"] for line in lines] == [
        "mae-visualize-base", "gone", "cut", "encoder", "classifier", "other/twin", "owner/mini",
    ]  # fmt: skip
    assert Models(found, lambda path: load(path, "cpu"), max_bytes=2**30).names[0] == shipped[0].name
    assert load(twin, "cpu").loaded.facts.name == "debug", "a broken record is no other file's affair"
    with pytest.raises(CheckpointError, match=registry.RECORD):
        load(broken, "cpu")


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (["nowhere.safetensors"], "nowhere.safetensors"),
        (["mae-finetuned-huge"], "weights pull mae-finetuned-huge"),
        (["small", "small"], "small"),
        (["a b={}"], "NAME="),
        (["a=" + "x" * 300], "xxx cannot be read"),
    ],
)
def test_a_wrong_entry_is_told(entries: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        find_sources([entry.format(tmp_path) for entry in entries])


def test_a_refusal_is_the_same_in_another_process() -> None:
    for error in (
        ModelUnavailableError("large"),
        OverloadedError(3),
        CheckpointError("m", code="c", hint="h"),
    ):
        there = pickle.loads(pickle.dumps(error))
        assert (type(there), str(there), vars(there)) == (type(error), str(error), vars(error))
