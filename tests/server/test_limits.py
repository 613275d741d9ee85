import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from server.limits import BodyLimit, unless_gone
from server.problems import SCOPE_KEY, ClientGoneError, TooLargeError
from tests.server.conftest import FakeEngine, build_app, photo, png, post, problem_of, running

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
        answer = httpx.post(f"{address}/reconstruct", files={"image": ("a", b"x" * 8 * MIB)}, timeout=60)
        assert problem_of(answer, 413)["errors"][0]["field"] == "body"
        assert (
            httpx.post(f"{address}/reconstruct", files={"image": ("a", png())}, timeout=60).status_code == 200
        )


def test_chunks_are_counted_as_they_arrive(engine: FakeEngine) -> None:
    app, _ = build_app(engine, max_bytes=CAP)

    async def chunks() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(8 * 16):
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
        problem_of(httpx.post(f"{address}/reconstruct", content=body, headers=headers, timeout=60), 413)


@pytest.mark.parametrize(
    ("headers", "chunks", "used", "dropped"),
    [
        ({}, 6, 2, 3),  # the third is too much, and the rest is dropped
        ({}, 99, 2, 4),  # or no more of it than there is patience for
        ({"Content-Length": f"{9 * CAP}"}, 9, 0, 4),
        ({"Content-Length": f"{9 * CAP}", "Expect": "100-continue"}, 9, 0, 0),  # nothing is on its way
    ],
)
def test_of_a_body_that_is_too_large_nothing_is_used_and_only_so_much_read(
    headers: dict[str, str], chunks: int, used: int, dropped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.limits.DRAIN_BYTES", 4 * CAP)
    pairs = [(name.lower().encode(), text.encode()) for name, text in headers.items()]
    kind = (b"content-type", b" Image/PNG ")
    scope: Scope = {"type": "http", "method": "POST", "path": "/p", "headers": [*pairs, kind]}
    arrived, taken, asked, statuses = 0, 0, [], []

    async def receive() -> Message:
        nonlocal arrived
        arrived += 1
        return {"type": "http.request", "body": b"x" * CAP, "more_body": arrived < chunks}

    async def send(message: Message) -> None:
        statuses.append(message.get("status"))

    async def use(_: Scope, receive: Receive, send: Send) -> None:
        nonlocal taken
        try:
            while (await receive())["more_body"]:
                taken += 1
        except TooLargeError:  # frameworks make answers of their own of it
            await send({"type": "http.response.start", "status": 400, "headers": []})

    def limit_of(path: str, kind: str) -> int:
        asked.append((path, kind))
        return 2 * CAP

    asyncio.run(BodyLimit(use, limit_of, held_bytes=CAP, seconds=20)(scope, receive, send))
    assert asked == [("/p", "image/png")]
    assert statuses[0] == 413
    assert taken == used
    assert arrived == used + bool(used) + dropped


def test_work_for_a_client_that_left_has_ended_when_that_is_told() -> None:
    ended = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def receive() -> Message:
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def scene() -> None:
        with pytest.raises(ClientGoneError):
            await unless_gone(Request({"type": "http"}, receive), work())
        assert ended

    asyncio.run(scene())


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
        assert httpx.get(f"{address}/healthz", timeout=60).status_code == 200


def test_a_client_that_sends_too_much_is_told_when_to_come_back(engine: FakeEngine) -> None:
    app, _ = build_app(engine, client_rate="3/day")
    with running(app) as client:
        assert [post(client).status_code for _ in range(4)] == [200, 200, 200, 429]
        answer = post(client)
        told = problem_of(answer, 429)
        assert told["type"].endswith("too-many-requests")
        assert 1 <= int(answer.headers["retry-after"]) <= 86_400
        assert client.get("/v1/models").status_code == 200, "only what brings work counts"
        assert "429" in client.get("/openapi.json").json()["paths"]["/v1/embed"]["post"]["responses"]


def batch(client: TestClient, pictures: int, **fields: str) -> Any:
    files = [("images", ("a.png", png()))] * pictures
    return client.post("/v1/reconstruct/batch", files=files, data=fields)


def test_a_batch_counts_as_many_as_it_makes(engine: FakeEngine) -> None:
    app, _ = build_app(engine, client_rate="6/day")
    with running(app) as client:
        assert batch(client, 2, seeds="1,2").status_code == 200
        before = len(engine.batches)
        assert problem_of(batch(client, 3), 429)["type"].endswith("too-many-requests")
        assert len(engine.batches) == before, "refused before anything is computed"
        assert [post(client).status_code for _ in range(2)] == [200, 429]


def test_a_batch_that_no_client_could_ever_send_is_told_the_bound(engine: FakeEngine) -> None:
    app, _ = build_app(engine, client_rate="3/minute")
    with running(app) as client:
        assert client.get("/v1/info").json()["limits"]["batch_items"] == 3
        assert "the limit is 3" in problem_of(batch(client, 2, seeds="1,2"), 422)["detail"]


@pytest.mark.parametrize("items", [1, 3, 6])
def test_who_waits_as_long_as_was_said_is_let_in(
    items: int, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time() // 3600 * 3600 + 1800.25  # half past an hour, where no day begins
    monkeypatch.setattr(time, "time", lambda: now)
    app, _ = build_app(engine, client_rate="6/day")
    with running(app) as client:
        assert batch(client, 2, seeds="1,2,3").status_code == 200
        # Before its body is read a request is one item, after that all of them: told twice at most.
        for _ in range(1 if items == 1 else 2):
            now += int(batch(client, items).headers["retry-after"])
        assert batch(client, items).status_code == 200


async def posts_from(app: FastAPI, hosts: Sequence[str], **headers: str) -> list[int]:
    """Statuses of one request from each address."""
    statuses = []
    for host in hosts:
        transport = httpx.ASGITransport(app, client=(host, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as client:
            statuses.append((await client.post("/v1/settings", files={"image": png()})).status_code)
    return statuses


def test_a_client_is_an_address_and_of_ipv6_what_one_customer_gets(engine: FakeEngine) -> None:
    app, _ = build_app(engine, client_rate="1/day")
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
    app, _ = build_app(engine, client_rate="1/day")
    spoofed = {"x-forwarded-for": "10.9.9.9"}
    assert asyncio.run(posts_from(app, ["10.0.0.1"])) == [404]
    assert asyncio.run(posts_from(app, ["10.0.0.1"], **spoofed)) == [429]


def test_where_keys_are_needed_a_client_is_a_key(engine: FakeEngine) -> None:
    digests = tuple(hashlib.sha256(key).hexdigest() for key in (b"one", b"two"))
    app, _ = build_app(engine, client_rate="1/day", api_keys=digests)
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
        for refusing in ("br", "gzip;q=0", "br, gzip ; Q=0.0, *", "identity"):
            plain = client.get("/openapi.json", headers={"accept-encoding": refusing})
            assert "content-encoding" not in plain.headers, refusing
        for wanting in ("gzip", "br;q=1, GZIP;q=0.1"):
            packed = client.get("/openapi.json", headers={"accept-encoding": wanting})
            assert packed.headers["content-encoding"] == "gzip", wanting


@contextmanager
def unfinished(address: str, path: str, kind: str, body: bytes, length: int) -> Iterator[socket.socket]:
    """A connection that sends the beginning of a body and then nothing."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Type: {kind}\r\n".encode())
        raw.sendall(f"Content-Length: {length}\r\n\r\n".encode() + body)
        yield raw


def test_bodies_that_do_not_end_hold_only_so_many_bytes_together(engine: FakeEngine) -> None:
    app, _ = build_app(engine, held_bytes=2 * CAP)

    def picture(address: str) -> httpx.Response:
        return httpx.post(f"{address}/v1/reconstruct", files={"image": ("a", png())}, timeout=60)

    with listening(app) as address:
        begun = (address, "/v1/reconstruct", "image/png", b"x" * 2 * CAP, 3 * CAP)
        with unfinished(*begun):  # alone, so it may
            for _ in range(200):
                if (answer := picture(address)).status_code == 503:
                    break
                time.sleep(0.05)  # until all of it has arrived
            problem_of(answer, 503)
            assert int(answer.headers["retry-after"]) >= 1
            assert httpx.get(f"{address}/healthz", timeout=60).status_code == 200, "no body, nothing to hold"
        for _ in range(200):
            if (answer := picture(address)).status_code == 200:
                break
            time.sleep(0.05)
        assert answer.status_code == 200, "what the client that left had sent is forgotten"


@pytest.mark.parametrize("path", ["/v1/reconstruct", "/v1/reconstruct/batch"])
def test_a_body_that_does_not_arrive_in_time_is_refused(engine: FakeEngine, path: str) -> None:
    app, _ = build_app(engine, body_s=0.2)
    with (
        listening(app) as address,
        unfinished(address, path, "multipart/form-data; boundary=b", b"--b\r\n", 1000) as raw,
    ):
        raw.settimeout(20)
        answer = b""
        while part := raw.recv(65536):
            answer += part
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"urn:unmask:problem:slow-body"' in answer
        assert httpx.get(f"{address}/healthz", timeout=60).status_code == 200


def test_an_answer_may_take_longer_than_its_body(engine: FakeEngine) -> None:
    engine.gate.clear()
    app, _ = build_app(engine, body_s=2.0)

    def let_go() -> None:
        engine.entered.wait()
        time.sleep(3)
        engine.gate.set()

    with listening(app) as address:
        threading.Thread(target=let_go, daemon=True).start()
        answer = httpx.post(f"{address}/reconstruct", files={"image": ("a", png())}, timeout=60)
        assert answer.status_code == 200


def test_an_answer_goes_out_in_pieces_and_who_takes_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.limits.PIECE_S", 0.05)
    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    pieces: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            pieces.append(len(message["body"]))
            if len(pieces) == 3:
                assert limit._held == 1_000_000
                await asyncio.Event().wait()

    answer = PlainTextResponse("x" * 1_000_000)
    limit = BodyLimit(answer, limit_of=lambda *_: CAP, held_bytes=CAP, seconds=20)
    asyncio.run(limit(scope, receive, send))
    assert pieces == [65536] * 3
    assert limit._held == 0
    assert scope[SCOPE_KEY] == "client-gone"


@pytest.mark.parametrize("accept", ["application/x-ndjson", "application/json"])
def test_batches_that_nobody_sends_or_reads_take_no_place_for_ever(
    accept: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.limits.PIECE_S", 0.3)
    app, service = build_app(engine)
    path = "/v1/reconstruct/batch"
    large = photo(size=(1600, 1600))  # the fake engine answers with the picture: more than a socket buffers

    def ask(address: str) -> httpx.Response:
        return httpx.post(f"{address}{path}", files={"images": ("a", png())}, timeout=60)

    with listening(app) as address, ExitStack() as clients:
        for _ in range(5):
            clients.enter_context(unfinished(address, path, "multipart/form-data; boundary=b", b"--b", 1000))
        assert ask(address).status_code == 200, "places are for those whose body is there"
        engine.gate.clear()
        request = httpx.Request(
            "POST",
            f"{address}{path}",
            files={"images": ("a", large)},
            data={"seeds": ",".join(map(str, range(40)))},
            headers={"accept": accept},
        )
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        host, port = address.removeprefix("http://").split(":")
        for _ in range(4):
            raw = clients.enter_context(socket.create_connection((host, int(port))))
            raw.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        for _ in range(400):
            if service._large == 4:
                break
            time.sleep(0.05)
        assert ask(address).status_code == 503
        engine.gate.set()
        for _ in range(200):
            if (answer := ask(address)).status_code == 200:
                break
            time.sleep(0.1)
        assert answer.status_code == 200
