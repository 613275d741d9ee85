"""What the server's tests share: a tiny engine that can be slow or fail, and an application around it."""

import io
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import structlog
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from model import Options, Reconstructor, load
from server.app import create_app
from server.models import Models, Source
from server.service import Service
from server.settings import Settings


def png(colour: tuple[int, int, int] = (200, 30, 60), size: tuple[int, int] = (64, 64)) -> bytes:
    """A picture file of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def photo(seed: int = 0, size: tuple[int, int] = (96, 80)) -> bytes:
    """A picture file with something in it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


@dataclass
class FakeResult:
    """What the fake engine painted: the picture's own bytes, so that a mix-up would show."""

    image: bytes
    seed: int
    digest: str

    def to_dict(self, panels: tuple[str, ...]) -> dict[str, Any]:
        images = {name: self.image.hex() for name in panels}
        told = {"mask_hash": "0" * 16, "model_digest": self.digest, "engine": "torch", "precision": "float32"}
        return {"seed": self.seed, "hidden": [0], "images": images, **told}

    def settings(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {"panels": list(names)}

    def panel(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.zeros((8, 8, 3), np.uint8)

    def full_size(self, image: bytes, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)


class FakeJob(bytes):
    """A picture with one mask."""

    masks = (None,)
    grid = (2, 2)


@dataclass
class FakeEngine:
    """Stands in for a reconstructor where a test needs one that waits or breaks.

    Attributes:
        gate: `run` waits until it is set.
        batches: The jobs of every call of `run`.
        fails_on: A picture whose job breaks its whole batch.
    """

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    batches: list[list[bytes]] = field(default_factory=list)
    fails_on: bytes | None = None
    device: str = "cpu"
    image_size: int = 64
    name: str = "fake"
    digest: str = "d" * 64
    identity: str = "1" * 64
    parameters: int = 1
    grid: tuple[int, int] = (2, 2)

    def describe(self) -> dict[str, Any]:
        return {"name": "fake"}

    def prepare(self, image: bytes, options: Options) -> "FakeJob":
        return FakeJob(image)

    def work(self, jobs: list[bytes]) -> Iterator[list[bytes]]:
        self.batches.append(list(jobs))
        self.entered.set()
        assert self.gate.wait(120)
        if self.fails_on in jobs:
            raise RuntimeError("the network broke")
        yield [b"painted " + job for job in jobs]

    def finish(self, job: bytes, prediction: bytes) -> FakeResult:
        assert prediction == b"painted " + job
        return FakeResult(job, seed=1, digest=self.digest)


@pytest.fixture(scope="session", autouse=True)
def _quiet_log() -> None:
    """Without a configuration structlog draws every error in colour, with all local values: seconds each."""
    structlog.configure(processors=[structlog.processors.KeyValueRenderer()])


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    engine.gate.set()
    return engine


@pytest.fixture(scope="session")
def debug_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file of the smallest network, untrained: every path is real, only the picture is noise."""
    import torch

    from model.checkpoints import store
    from model.config import SIZES
    from model.network import MAE

    path = tmp_path_factory.mktemp("weights") / "debug.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        store.write(path, MAE(SIZES["debug"]), name="debug", card={"licence": "none"})
    return path


@pytest.fixture(scope="session")
def proved_weights(debug_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with its proof beside it, so that a started server needs no torch."""
    from model.loading import prove

    path = Path(shutil.copy(debug_weights, tmp_path_factory.mktemp("proved")))
    prove(path)
    return path


@pytest.fixture(scope="session")
def reconstructor(debug_weights: Path) -> Reconstructor:
    """The real model, small enough for milliseconds."""
    return load(debug_weights, "cpu")


def shelf(reconstructor: Reconstructor | FakeEngine, path: Path = Path("none.safetensors")) -> Models:
    """The one model there is, loaded; its file matters where reports on it are asked for."""
    source = Source(reconstructor.name, path)
    models = Models([source], lambda _: cast(Reconstructor, reconstructor), max_bytes=0)
    models.load_default()
    return models


def build_app(reconstructor: Reconstructor | FakeEngine, **settings: Any) -> tuple[FastAPI, Service]:
    """An application without the page, and its service."""
    chosen = Settings(**{"deadline_s": 120.0, **settings})  # tests also run on busy machines
    service = Service(shelf(reconstructor), chosen)
    return create_app(service, chosen), service


@contextmanager
def running(app: FastAPI) -> Iterator[TestClient]:
    """A client of a started application; an error that is not answered is a failure of the test."""
    with TestClient(app) as client:
        yield client


def into(app: FastAPI) -> dict[str, Any]:
    """Arguments of a client that talks to the application directly, many requests at a time."""
    return {"transport": httpx.ASGITransport(app), "base_url": "http://t"}


def post(client: Any, image: bytes | None = None, **fields: Any) -> httpx.Response:
    """Send the form; `headers` goes where it belongs."""
    headers = fields.pop("headers", {})
    files = {"image": ("photo.png", png() if image is None else image, "image/png")}
    return cast(httpx.Response, client.post("/reconstruct", files=files, data=fields, headers=headers))


def problem_of(response: Any, status: int) -> dict[str, Any]:
    """The problem in an answer, after checking that it is a whole one."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/problem+json"
    body = cast(dict[str, Any], json.loads(response.content))
    assert body.keys() == {"type", "title", "status", "detail", "instance", "errors"}
    assert body["status"] == status
    assert body["type"].startswith("urn:unmask:problem:")
    assert body["instance"] == response.headers["x-request-id"]
    assert all(error.keys() == {"field", "message", "hint"} for error in body["errors"])
    return body
