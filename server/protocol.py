"""What a connection may send before there is a request: heads of requests, bounded in bytes and in time.

`httptools` itself bounds neither. What uvicorn refuses in plain text is answered as a problem here. A request that
offers to go on in another protocol, as Java's client does with HTTP/2, is one like any other (RFC 9110, 7.8): the
parser takes the offer for agreed, leaves the body unread and takes it for the next request (Kludex/uvicorn#2722).
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import httptools
import structlog
from asgi_correlation_id import correlation_id
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server import problems

logger = structlog.stdlib.get_logger("unmask.connection")

MAX_HEAD_BYTES = 64 * 1024  # address and header lines
HEAD_S = 10.0  # in which a head must have arrived, from the first byte or the connection on
REST_S = 60.0  # in which the rest of a body must have, whose request is answered


class Protocol(HttpToolsProtocol):
    """One connection. Time without a request is uvicorn's to bound, after the first.

    Args:
        arguments: uvicorn's, as are `options`.
        refused: Told of every refusal, which no middleware sees.
    """

    def __init__(
        self, *arguments: Any, refused: Callable[[problems.ServiceError], None], **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._refused = refused
        self._refusal: problems.BadRequestError | None = None
        self._arrived = 0  # bytes since the parser last came further: of a head, or of what may follow a body
        self._in_body = False
        self._until: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._expect(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._expect(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; refuse a head that goes on for too long."""
        if self.timeout_keep_alive_task:  # nothing came since an answer, until now
            self._expect(REST_S if self._in_body else HEAD_S)
        self._arrived += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._arrived > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(_too_large())

    def on_headers_complete(self) -> None:
        """A request begins."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES:
            self._refusal = _too_large()
            raise self._refusal  # the parser stops, and `send_400_response` is asked for
        if self._offers():
            return
        self._arrived, self._in_body = 0, True
        self._expect(None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The body goes on."""
        self._arrived = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has arrived, maybe after its answer."""
        if self._offers():
            return
        self._arrived, self._in_body = 0, False
        if self._until:
            self._expect(HEAD_S)
        super().on_message_complete()

    def _offers(self) -> bool:
        """Whether the head that was read offers another protocol."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _feed(self, data: bytes) -> None:
        """Parse; a loop, for each request of a pipeline may offer something."""
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if not self._offers():
                    self.send_400_response("")
                    return
                data = self._without_offer() + data[offer.args[0] :]
            except httptools.HttpParserError:
                self.send_400_response("")
                return
            else:
                return

    def _without_offer(self) -> bytes:
        """The head once more, for a parser that waits for its body."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        kept = [pair for pair in self.headers if pair[0] not in (b"upgrade", b"http2-settings")]
        lines = [b"%b %b HTTP/%b" % (method, self.url, version), *(b"%b: %b" % pair for pair in kept)]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not a request."""
        no_request = problems.BadRequestError(
            "What arrived is not an HTTP/1.1 request.",
            status=400,
            code="no-request",
            hint="Check the first line, its method and the header lines; https is left to a proxy.",
            field="head",
        )
        self._refuse(self._refusal or no_request)

    def _expect(self, seconds: float | None) -> None:
        """Close the connection if nothing more is heard in that time; None waits for as long as it takes."""
        if self._until:
            self._until.cancel()
        self._until = self.loop.call_later(seconds, self._too_late) if seconds is not None else None

    def _too_late(self) -> None:
        if self._arrived and not self._in_body:
            slow = problems.BadRequestError(
                f"The request's head had not arrived after {HEAD_S:g} s.",
                status=408,
                code="slow-head",
                hint="Send address and header lines at once.",
                field="head",
            )
            self._refuse(slow)
        elif not self.transport.is_closing():
            self.transport.close()

    def _refuse(self, refusal: problems.ServiceError) -> None:
        """Answer, unless an answer is already being sent, and close."""
        if self.cycle is None or self.cycle.response_complete:  # type: ignore[redundant-expr] # None at first
            token = correlation_id.set(identity := uuid4().hex)
            answer = problems.from_error(refusal)
            logger.info("no request", status=refusal.status, code=refusal.code)
            self._refused(refusal)
            answer.headers["Connection"] = "close"
            answer.headers["X-Request-ID"] = identity
            head = b"".join(b"%b: %b\r\n" % pair for pair in answer.raw_headers)
            status = HTTPStatus(refusal.status)
            line = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
            self.transport.write(line + head + b"\r\n" + answer.body)
            correlation_id.reset(token)
        self.transport.close()


def _too_large() -> problems.BadRequestError:
    return problems.BadRequestError(
        f"The request's head is larger than the allowed {MAX_HEAD_BYTES // 1024} KiB.",
        status=431,
        code="head-too-large",
        hint="Send a shorter address and fewer or shorter header lines; pictures belong in the body.",
        field="head",
    )
