import asyncio
import hashlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

import httpx
import uvicorn
from fastapi import FastAPI

from tests.server.conftest import FakeEngine, build_app, png, post, problem_of, running

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


def test_a_client_that_sends_too_much_is_told_when_to_come_back(engine: FakeEngine) -> None:
    app, _ = build_app(engine, client_rate="3/hour")
    with running(app) as client:
        assert [post(client).status_code for _ in range(4)] == [200, 200, 200, 429]
        answer = post(client)
        told = problem_of(answer, 429)
        assert told["type"].endswith("too-many-requests")
        assert 1 <= int(answer.headers["retry-after"]) <= 3600
        assert client.get("/v1/models").status_code == 200, "only what brings work counts"
        assert "429" in client.get("/openapi.json").json()["paths"]["/v1/embed"]["post"]["responses"]


async def posts_from(app: FastAPI, hosts: Sequence[str], **headers: str) -> list[int]:
    """Statuses of one request from each address."""
    statuses = []
    for host in hosts:
        transport = httpx.ASGITransport(app, client=(host, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as client:
            statuses.append((await client.post("/v1/settings", files={"image": png()})).status_code)
    return statuses


def test_a_client_is_an_address_and_of_ipv6_what_one_customer_gets(engine: FakeEngine) -> None:
    app, _ = build_app(engine, client_rate="1/hour")
    hosts = [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.1",
        "::ffff:10.0.0.2",
        "2001:db8::1",
        "2001:db8::2",
        "2001:db8:0:1::1",
    ]
    assert asyncio.run(posts_from(app, hosts)) == [404, 404, 429, 429, 404, 429, 404]


def test_who_only_says_to_be_another_is_not_believed(engine: FakeEngine) -> None:
    app, _ = build_app(engine, client_rate="1/hour")
    spoofed = {"x-forwarded-for": "10.9.9.9"}
    assert asyncio.run(posts_from(app, ["10.0.0.1"])) == [404]
    assert asyncio.run(posts_from(app, ["10.0.0.1"], **spoofed)) == [429]


def test_where_keys_are_needed_a_client_is_a_key(engine: FakeEngine) -> None:
    digests = tuple(hashlib.sha256(key).hexdigest() for key in (b"one", b"two"))
    app, _ = build_app(engine, client_rate="1/hour", api_keys=digests)
    for key, statuses in (("one", [404, 429]), ("two", [404, 429])):
        assert asyncio.run(posts_from(app, ["10.0.0.1", "10.0.0.2"], **{"x-api-key": key})) == statuses


def test_text_is_compressed_and_pictures_are_not(engine: FakeEngine) -> None:
    app, _ = build_app(engine)
    with running(app) as client:
        described = client.get("/openapi.json")
        assert described.headers["content-encoding"] == "gzip"
        assert "Accept-Encoding" in described.headers["vary"]
        for answer in (post(client, png(size=(300, 300))), client.get("/healthz")):
            assert "content-encoding" not in answer.headers
        assert (
            "content-encoding" not in client.get("/openapi.json", headers={"accept-encoding": "br"}).headers
        )
