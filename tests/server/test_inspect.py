"""What the service says of a weight file, of which it is only sent the head; and how long its line is."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from model import Reconstructor
from server import responses
from server.reports import _Reader
from server.security import SMALL_BODY_BYTES
from tests.server.conftest import FakeEngine, build_app, into, png, problem_of, running

BINARY = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def client(reconstructor: Reconstructor) -> Iterator[TestClient]:
    with running(build_app(reconstructor)[0]) as client:
        yield client


@pytest.fixture(scope="module")
def head(debug_weights: Path) -> bytes:
    data = debug_weights.read_bytes()
    return data[: 8 + int.from_bytes(data[:8], "little")]


def send(client: TestClient, body: bytes, **query: Any) -> Any:
    return client.post("/v1/inspect", content=body, headers=BINARY, params=query)


def test_a_head_is_enough_for_the_report(client: TestClient, head: bytes, debug_weights: Path) -> None:
    answer = send(client, head, name="mine.safetensors", size=debug_weights.stat().st_size)
    assert answer.status_code == 200, answer.text
    report = responses.WeightReport.model_validate(answer.json())
    assert (report.name, report.layout, report.content, report.size) == (
        "mine.safetensors", "Unmask", "full", "debug",
    )  # fmt: skip
    assert report.usable_for == ["reconstruct", "evaluate", "serve", "convert"]
    assert report.size_bytes == debug_weights.stat().st_size


@pytest.mark.parametrize(
    "body", [b"", b"no weights", b"PK\x03\x04", b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"[]"]
)
def test_junk_is_refused_in_words(client: TestClient, body: bytes) -> None:
    problem = problem_of(send(client, body, name="${junk}<b>.safetensors"), 422)
    assert "${junk}<b>.safetensors" in problem["detail"]
    assert problem["errors"][0]["field"] == "body"


def test_a_cut_file_and_a_cut_head_are_told_apart(
    client: TestClient, head: bytes, debug_weights: Path
) -> None:
    assert "was cut: its head has" in problem_of(send(client, head[:-9]), 422)["detail"]
    cut = send(client, head, size=debug_weights.stat().st_size - 4)
    assert "its head promises" in problem_of(cut, 422)["detail"]


def test_a_head_too_large_for_any_model_is_not_read(client: TestClient) -> None:
    problem = problem_of(send(client, bytes(SMALL_BODY_BYTES + 1)), 413)
    assert "256 KiB" in problem["detail"]


def test_other_bodies_and_wrong_queries_are_refused(client: TestClient, head: bytes) -> None:
    assert "octet-stream" in problem_of(client.post("/v1/inspect", json={}), 415)["detail"]
    packed = {"content-type": "application/octet-stream", "content-encoding": "gzip"}
    refused = client.post("/v1/inspect", content=head, headers=packed)
    assert problem_of(refused, 415)["errors"][0]["field"] == "Content-Encoding"
    assert problem_of(send(client, head, name="x" * 201), 422)["errors"][0]["field"] == "name"
    assert problem_of(send(client, head, size="-1"), 422)["errors"][0]["field"] == "size"


def test_who_reads_heads_leaves_when_the_service_was_killed() -> None:
    reader = _Reader()
    reader._here.close()
    reader.process.join(60)
    assert reader.process.exitcode == 0


def test_where_torch_is_not_there_that_is_said(
    client: TestClient, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "torch" in problem_of(send(client, head), 501)["detail"]


def test_a_request_learns_how_many_are_before_it(engine: FakeEngine) -> None:
    engine.gate.clear()
    app, service = build_app(engine, max_batch=1)

    async def place(client: httpx.AsyncClient, name: str = "") -> dict[str, Any]:
        told: dict[str, Any] = (await client.get("/v1/queue", params={"request": name})).json()
        return told

    async def scene() -> None:
        async with httpx.AsyncClient(**into(app)) as client:
            files = {"image": ("a.png", png(), "image/png")}
            asked = []
            for i in range(3):
                headers = {"X-Request-ID": f"request-{i}"}
                asked.append(asyncio.create_task(client.post("/reconstruct", files=files, headers=headers)))
                while (await place(client))["admitted"] <= i:
                    await asyncio.sleep(0.01)
            assert await place(client) == {"admitted": 3, "before": None, "estimate_ms": 0}, (
                "no pace is known yet"
            )
            assert [(await place(client, f"request-{i}"))["before"] for i in range(3)] == [0, 1, 2]
            engine.gate.set()
            await asyncio.gather(*asked)
            assert (await place(client, "request-0")) == {"admitted": 0, "before": None, "estimate_ms": 0}

    service.start()
    try:
        asyncio.run(scene())
    finally:
        engine.gate.set()
        service.stop()
