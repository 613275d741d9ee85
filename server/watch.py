"""The one place that sees every request from its first byte to its last, for log and counters alike.

It is the last boundary too: what nobody else caught is logged once and answered, and so is who is given up at the end.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import problems
from server.logs import Seen, log_crash
from server.metrics import surface


class Watch:
    """Tells observers of every request.

    Args:
        app: The next application.
        observers: Are told when a request is over.
        dress: Gives an answer that is made here the headers that all have.
        stopping: Whether the service stops, and gives up what still runs.
    """

    def __init__(
        self,
        app: ASGIApp,
        observers: Sequence[Callable[[Seen], None]],
        dress: Callable[[ASGIApp], ASGIApp],
        stopping: Callable[[], bool],
    ) -> None:
        self.app = app
        self.observers = observers
        self.dress = dress
        self.stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        # Browsers say so of every request a page makes to its own service, and scripts of others cannot.
        own_page = Headers(scope=scope).get("sec-fetch-site") == "same-origin"
        token = surface.set("page" if own_page else "api")
        try:
            await self.app(scope, receive, note)
        except asyncio.CancelledError:
            if not self.stopping():
                raise
            # Not raised: the server would write it down as a mistake of ours, and answer in words of its own.
            if status == 0:
                await self.dress(problems.from_error(problems.ShuttingDownError()))(scope, receive, note)
        except Exception:  # noqa: BLE001 - the last boundary: logged and answered
            log_crash(scope)
            if status == 0:
                await self.dress(problems.crashed())(scope, receive, note)
        finally:
            seen = Seen(scope, status, time.monotonic() - began, surface.get())
            surface.reset(token)
            for observe in self.observers:
                observe(seen)
