"""What keeps one client from hurting the others: bytes, requests in a time, and no work for those who left."""

import asyncio
import ipaddress
import math
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import limits
from fastapi import Request
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import problems

T = TypeVar("T")

# Where `Keys` notes whose key a request has.
KEY_SCOPE = "unmask.key"
IPV6_BITS = 64  # that one customer is given

# After a refusal the rest of the body is read and thrown away, so that the client sees the answer instead
# of a reset connection; a client that goes on for longer is cut off.
DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_S = 10.0


class BodyLimit:
    """Refuses bodies that are too large, by the declared length and by counting what arrives.

    Frameworks answer an error inside `receive` in ways of their own, therefore the answer itself is replaced.

    Args:
        app: The next application.
        limit_of: Bytes allowed for a path and the kind of its body.
    """

    def __init__(self, app: ASGIApp, limit_of: Callable[[str, str], int]) -> None:
        self.app = app
        self.limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self.limit_of(scope["path"], headers.get("content-type", "").strip().lower())
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > limit:
            await _refuse(limit, scope, receive, send, drain="expect" not in headers)
            return
        await self._counted(limit, scope, receive, send)

    async def _counted(self, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        total = 0
        answering = False

        async def count() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > limit and not answering:
                raise problems.TooLargeError("body", limit)
            return message

        async def guard(message: Message) -> None:
            nonlocal answering
            if total > limit and not answering:
                return  # whatever the application made of it, ours is the answer
            answering = True
            await send(message)

        try:
            await self.app(scope, count, guard)
        except problems.TooLargeError:
            if answering:
                raise
        if total > limit and not answering:
            await _refuse(limit, scope, receive, send, drain=True)


class ClientLimit:
    """Refuses what one client sends beyond its share. Only what brings work counts: POST.

    Args:
        app: The next application.
        rate: Such as `120/minute`.
    """

    def __init__(self, app: ASGIApp, rate: str) -> None:
        self.app = app
        self.rate = limits.parse(rate)
        # Two counters a client, whatever the rate, and gone when its time is over.
        self.windows = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer 429."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        client = _client(scope)
        if self.windows.hit(self.rate, client):
            await self.app(scope, receive, send)
            return
        wait_s = self.windows.get_window_stats(self.rate, client).reset_time - time.time()
        refusal = problems.TooManyRequestsError(str(self.rate), max(1, math.ceil(wait_s)))
        await problems.from_error(refusal)(scope, receive, send)


def _client(scope: Scope) -> str:
    """Who asks: the key, where keys are needed, else the address; of IPv6 the part that one customer gets."""
    if (key := scope.get(KEY_SCOPE)) is not None:
        return str(key)
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.ip_network((address, IPV6_BITS), strict=False))


async def _refuse(limit: int, scope: Scope, receive: Receive, send: Send, *, drain: bool) -> None:
    """Answer 413 at once, then read on for a while before the connection is closed."""

    async def hold_open(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    await problems.from_error(problems.TooLargeError("body", limit))(scope, receive, hold_open)
    if drain:
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                await _discard(receive)
    await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    dropped = 0
    while dropped < DRAIN_BYTES:
        message = await receive()
        dropped += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, and cancel it when the client hangs up first.

    Args:
        request: A request whose body was read completely.
        work: What to do for it.

    Raises:
        ClientGoneError: When nobody waits for the result any more.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise problems.ClientGoneError
        return task.result()
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
