import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from fastapi import FastAPI

from tests.server.conftest import FakeEngine, build_app, png, problem_of

CAP = 64 * 1024
MIB = 1024 * 1024


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The application behind a real server, for what only a connection shows."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


def test_a_declared_length_above_the_limit_is_refused_and_the_answer_arrives(engine: FakeEngine) -> None:
    app, _ = build_app(engine, max_bytes=CAP)
    with listening(app) as address:
        answer = httpx.post(f"{address}/reconstruct", files={"image": ("a", b"x" * 8 * MIB)})
        assert problem_of(answer, 413)["errors"][0]["field"] == "body"
        assert httpx.post(f"{address}/reconstruct", files={"image": ("a", png())}).status_code == 200


def test_chunks_are_counted_as_they_arrive(engine: FakeEngine) -> None:
    app, _ = build_app(engine, max_bytes=CAP)
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(8 * 16):
            sent += 1
            yield b"x" * CAP

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            headers = {"content-type": "multipart/form-data; boundary=b"}
            return await client.post("/reconstruct", content=chunks(), headers=headers)

    answer = asyncio.run(ask())
    assert problem_of(answer, 413)["errors"][0]["field"] == "body"
    with listening(app) as address:
        form = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        body = (part for part in [form, *[b"x" * CAP] * 64])
        headers = {"content-type": "multipart/form-data; boundary=b"}
        problem_of(httpx.post(f"{address}/reconstruct", content=body, headers=headers), 413)


def test_paths_without_pictures_take_little(engine: FakeEngine) -> None:
    app, _ = build_app(engine)

    async def ask(path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            return await client.post(path, content=b"x" * (256 * 1024 + 1))

    for path in ("/healthz", "/gradio_api/queue/join", "/nope"):
        problem_of(asyncio.run(ask(path)), 413)


def test_a_body_that_ends_early_is_answered_or_dropped_but_never_crashes(engine: FakeEngine) -> None:
    app, _ = build_app(engine)
    with listening(app) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            head = "POST /reconstruct HTTP/1.1\r\nHost: t\r\nContent-Length: 1000\r\n"
            raw.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n".encode())
        assert httpx.get(f"{address}/healthz").status_code == 200
