"""What a connection may send before there is a request, over real ones."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server import protocol
from server.metrics import Metrics

END = b"\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: t\r\n"
POST = b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked" + END
Talk = Callable[..., Any]
HERE = PlainTextResponse("here")


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with method and body."""
    request = Request(scope, receive)
    await PlainTextResponse(f"{request.method} {(await request.body()).decode()}")(scope, receive, send)


@asynccontextmanager
async def served(metrics: Metrics | None = None, app: ASGIApp = HERE) -> AsyncIterator[int]:
    """The port of an application; of itself one that answers without reading a body."""
    connection = partial(protocol.Protocol, refused=(metrics or Metrics()).count_refused)
    config = uvicorn.Config(app, http=connection, log_config=None, port=0)  # type: ignore[arg-type]
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    yield server.servers[0].sockets[0].getsockname()[1]
    await server.shutdown()


def told(*parts: bytes, pause_s: float = 0.02, metrics: Metrics | None = None, app: ASGIApp = HERE) -> bytes:
    """All that comes back for what is sent, until the connection is closed."""

    async def scene() -> bytes:
        async with served(metrics, app) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            told = b""

            async def listen() -> None:
                nonlocal told
                # A connection that is closed while more is sent is reset; what was told before counts.
                with suppress(ConnectionResetError):
                    while part := await reader.read(65536):
                        told += part

            listening = asyncio.ensure_future(listen())
            try:
                for part in parts:
                    writer.write(part)
                    await asyncio.sleep(pause_s)
                await asyncio.wait_for(listening, 60)
                return told
            finally:
                writer.close()

    return asyncio.run(scene())


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and code of the problem that a connection ends with."""
    head, _, body = answer.rpartition(END)
    problem = json.loads(body)
    assert f"x-request-id: {problem['instance']}".encode() in head
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    return int(head.rpartition(b"HTTP/1.1 ")[2][:3]), problem["type"].rpartition(":")[2]


@pytest.mark.parametrize(
    "parts",
    [
        [GET + b"A: " + b"a" * 70_000 + END],
        [GET + b"A: ", *[b"a" * 10_000] * 8],
        [GET, *[b"A: " + b"a" * 10_000 + b"\r\n"] * 8],
        [b"GET /?" + b"a" * 70_000 + b" HTTP/1.1" + END],
        [b"GET /?", *[b"a" * 10_000] * 8],
        [GET + END[2:], GET + b"A: ", *[b"a" * 10_000] * 8],
    ],
)
def test_a_head_that_is_too_large_is_refused(parts: list[bytes]) -> None:
    assert refusal(told(*parts)) == (431, "head-too-large")


def test_a_refusal_before_there_is_a_request_is_counted() -> None:
    metrics = Metrics()
    told(b"nonsense" + END, metrics=metrics)
    exposed = metrics.expose().decode()
    assert 'unmask_requests_total{method="none",route="none",status="400",surface="api"} 1.0' in exposed
    assert 'unmask_rejects_total{reason="no-request",route="none",surface="api"} 1.0' in exposed


def test_what_may_follow_a_body_is_bounded_too() -> None:
    for parts in ([POST, b"1\r\nx\r\n0\r\nA: "], [POST, b"1;a="]):
        assert refusal(told(*parts, *[b"a" * 10_000] * 8)) == (431, "head-too-large")


def test_a_long_head_and_a_long_body_are_no_mistake() -> None:
    long = GET + b"Connection: close\r\nA: " + b"a" * 60_000 + END
    assert told(long).endswith(b"here")
    body = [b"1000\r\n" + b"x" * 4096 + b"\r\n"] * 40
    assert told(POST, *body, b"0" + END, GET + b"Connection: close" + END, pause_s=0).count(b"here") == 2


def test_what_is_no_request_is_a_problem() -> None:
    for nonsense in (b"FOO / HTTP/1.1" + END, b"\x16\x03\x01", b"GET nowhere" + END):
        assert refusal(told(nonsense)) == (400, "no-request")


def test_a_connection_without_a_whole_head_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.3)
    monkeypatch.setattr(protocol, "REST_S", 0.3)
    assert told() == b"", "one that says nothing"
    assert refusal(told(GET[:9])) == (408, "slow-head")
    once = GET + END[2:]
    assert refusal(told(once, GET[:9])) == (408, "slow-head")
    drip = told(once, *[END] * 20)
    assert drip.count(b"here") == 1, "line ends are no request"
    assert told(POST, b"1\r\nx").count(b"here") == 1, "the rest of a body that nobody waits for"
    assert told(POST, b"1\r\nx\r\n0" + END).count(b"here") == 1, "and what comes after it"


def test_requests_that_keep_a_connection_are_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 3)
    answer = told(*[GET + END[2:]] * 8, GET + b"Connection: close" + END, pause_s=0.5)
    assert answer.count(b"here") == 9


OFFERS = [
    b"Upgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\nConnection: Upgrade, HTTP2-Settings\r\n",
    b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n",
]


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("apart", [False, True])
def test_a_request_that_offers_another_protocol_is_one_like_any_other(offer: bytes, apart: bool) -> None:
    body = GET + b"X: smuggled" + END
    post = b"POST / HTTP/1.1\r\nHost: t\r\n" + offer + b"Content-Length: %d" % len(body) + END
    last = b"DELETE / HTTP/1.1\r\nHost: t\r\nConnection: close" + END
    parts = [post, body, last] if apart else [post + body + last]
    answers = told(*parts, app=echo).split(b"HTTP/1.1 200 ")[1:]
    assert [answer.partition(END)[2] for answer in answers] == [b"POST " + body, b"DELETE "]


def test_offers_may_come_in_pieces_in_chunks_and_in_rows() -> None:
    chunked = b"POST / HTTP/1.1\r\nHost: t\r\n" + OFFERS[0] + b"Transfer-Encoding: chunked" + END
    told_in_pieces = told(
        *(bytes([byte]) for byte in chunked),
        b"3\r\nabc\r\n0" + END,
        GET + b"Connection: close" + END,
        pause_s=0.001,
        app=echo,
    )
    assert b"POST abc" in told_in_pieces
    assert told_in_pieces.endswith(b"GET ")
    row = told((GET + OFFERS[1] + b"\r\n") * 500 + GET + b"Connection: close" + END, app=echo)
    assert row.count(b"HTTP/1.1 200") == 501


def test_a_tunnel_is_no_request_that_is_served() -> None:
    assert refusal(told(b"CONNECT t:80 HTTP/1.1\r\nHost: t" + END)) == (400, "no-request")
