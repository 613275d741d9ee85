"""What keeps one client from hurting the others: bytes, requests in a time, and no work for those who have left."""

import asyncio
import ipaddress
import math
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import limits
from fastapi import Request
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import problems

T = TypeVar("T")

# Where `Keys` notes the key's digest and `ClientLimit` the function that charges further items.
KEY_SCOPE = "unmask.key"
CHARGE_SCOPE = "unmask.charge"
IPV6_BITS = 64  # that one customer is given

# After a refusal the rest of the body is read and thrown away, so that the client sees the answer instead
# of a reset connection; a client that goes on for longer is cut off.
DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_S = 10.0

# A client must take PIECE_BYTES of an answer within PIECE_S, or it loses the rest.
PIECE_BYTES = 64 * 1024
PIECE_S = 30.0

# When a client whose body found no room may come again.
BODY_RETRY_S = 2


class BodyLimit:
    """Refuses bodies that are too large, too slow, or too many at a time, and drops clients that do not read.

    Size is told by the declared length and by counting what arrives. What has arrived of all requests together is
    bounded too, until each is answered, with what is being sent: a body that never ends, or an answer that nobody
    takes, would hold its memory for ever.
    Frameworks answer an error inside `receive` in ways of their own, therefore the answer itself is replaced.

    Args:
        app: The next application.
        limit_of: Bytes allowed for a path and the kind of its body.
        held_bytes: Bytes of all bodies and answers together; where there is no other, one is not refused for them.
        seconds: In which a body must have arrived.
    """

    def __init__(
        self, app: ASGIApp, limit_of: Callable[[str, str], int], *, held_bytes: int, seconds: float
    ) -> None:
        self.app = app
        self.limit_of = limit_of
        self.held_bytes = held_bytes
        self.seconds = seconds
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        limit = self.limit_of(scope["path"], headers.get("content-type", "").strip().lower())
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > limit:
            too_large = problems.TooLargeError("body", limit)
            await _refuse(too_large, scope, receive, send, drain="expect" not in headers)
            return
        await self._counted(limit, scope, receive, send)

    async def _counted(self, limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(limit, asyncio.get_running_loop().time() + self.seconds)

        async def count() -> Message:
            message = await self._next(body, receive)
            if body.refusal and not body.answering:
                raise body.refusal
            return message

        async def guard(message: Message) -> None:
            if body.refusal and not body.answering:
                return  # whatever the application made of it, ours is the answer
            await self._answer(body, message, send)

        try:
            await self.app(scope, count, guard)
        except problems.ServiceError as error:
            if body.answering or error is not body.refusal:
                raise
        except Exception:
            if not body.unread:
                raise
            scope[problems.SCOPE_KEY] = problems.ClientGoneError().code
        finally:
            self._held -= body.arrived
        if body.refusal and not body.answering:
            slow = isinstance(body.refusal, problems.SlowBodyError)
            await _refuse(body.refusal, scope, receive, send, drain=not slow)

    async def _answer(self, body: "_Body", message: Message, send: Send) -> None:
        """Send a message of the answer; notes in `body` when the client does not take it."""
        body.answering = True
        if message["type"] == "http.response.start":
            body.refused = message["status"] >= 400
        if body.refused:  # small, it holds nothing, and there may be a thousand a second
            await send(message)
            return
        size = len(message.get("body", b""))
        self._held += size
        try:
            await _send_in_pieces(send, message)
        except TimeoutError:
            body.unread = True
            raise
        finally:
            self._held -= size

    async def _next(self, body: "_Body", receive: Receive) -> Message:
        """What arrives next; notes in `body` what it is refused for."""
        if body.complete:
            return await receive()  # waits for the client to leave, as long as it likes
        try:
            async with asyncio.timeout_at(body.until):
                message = await receive()
        except TimeoutError:
            body.refusal = problems.SlowBodyError(self.seconds)
            return {"type": "http.disconnect"}
        arrived = len(message.get("body", b""))
        body.arrived += arrived
        self._held += arrived
        body.complete = not message.get("more_body", False)
        if body.arrived > body.limit:
            body.refusal = problems.TooLargeError("body", body.limit)
        elif body.arrived < self._held > self.held_bytes:
            body.refusal = problems.OverloadedError(BODY_RETRY_S)
        return message


@dataclass
class _Body:
    """What is known of a body while it arrives: bytes allowed, the time it has, bytes there, why it is refused.

    And of its answer: whether it has begun, whether it is a refusal, whether the client left it unread.
    """

    limit: int
    until: float
    arrived: int = 0
    complete: bool = False
    refusal: problems.ServiceError | None = None
    answering: bool = False
    refused: bool = False
    unread: bool = False


class ClientLimit:
    """Refuses what one client sends beyond its share. Only what brings work counts: POST, and of a batch each item.

    Args:
        app: The next application.
        rate: Such as `120/minute`.
    """

    def __init__(self, app: ASGIApp, rate: str) -> None:
        self.app = app
        self.rate = limits.parse(rate)
        # Two counters a client, whatever the rate, and gone when its time is over.
        self.storage = MemoryStorage()
        self.windows = SlidingWindowCounterRateLimiter(self.storage)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer 429."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        client = _client(scope)
        scope[CHARGE_SCOPE] = partial(self._charge, client, counted=1)
        try:
            self._charge(client, 1)
        except problems.TooManyRequestsError as refusal:
            await problems.from_error(refusal)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _charge(self, client: str, items: int, counted: int = 0) -> None:
        """Count a request of so many items, of which some are counted already."""
        if not self.windows.hit(self.rate, client, cost=items - counted):
            retry_after_s = max(1, math.ceil(self._wait_s(client, items)))
            raise problems.TooManyRequestsError(str(self.rate), retry_after_s)

    def _wait_s(self, client: str, items: int) -> float:
        """Until so many items are let in; `limits` itself tells it of one only."""
        window_s = self.rate.get_expiry()
        before, _, current, left_s = self.storage.get_sliding_window(self.rate.key_for(client), window_s)
        left_s -= window_s  # of the current window: it is kept for one more
        free = self.rate.amount - items + 1  # what is counted must fall below
        # Every window counts in full while it runs, and then less and less until the next one ends.
        if current < free:
            return left_s - (free - current) * window_s / before if before else 0.0
        return left_s + window_s - free * window_s / current


def charge(request: Request, items: int) -> None:
    """Count a request for so many items, where one client may have only so many; it is counted as one before.

    Raises:
        TooManyRequestsError: They are more than its client may have now.
    """
    if CHARGE_SCOPE in request.scope:
        request.scope[CHARGE_SCOPE](items)


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


async def _send_in_pieces(send: Send, message: Message) -> None:
    """Send a message of an answer; the server itself would take a body of any size and keep it.

    Raises:
        TimeoutError: The client does not take it.
    """
    body = message.get("body", b"")
    for begin in range(0, max(len(body), 1), PIECE_BYTES):
        piece = message
        if len(body) > PIECE_BYTES:
            end = begin + PIECE_BYTES
            more = end < len(body) or message.get("more_body", False)
            piece = {**message, "body": body[begin:end], "more_body": more}
        async with asyncio.timeout(PIECE_S):
            await send(piece)


async def _refuse(
    refusal: problems.ServiceError, scope: Scope, receive: Receive, send: Send, *, drain: bool
) -> None:
    """Answer at once, then read on for a while before the connection is closed."""

    async def hold_open(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    await problems.from_error(refusal)(scope, receive, hold_open)
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
