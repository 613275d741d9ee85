"""Text in fewer bytes for clients that accept it: the page, its scripts, descriptions. Never pictures."""

import anyio.to_thread
import brotli  # type: ignore[import-untyped]
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.answers import read_weights
from server.security import local_path

# Their answers are pictures, in base64 at worst: a quarter fewer bytes for milliseconds of every drag.
PICTURE_ANSWERS = frozenset({"/reconstruct", "/v1/reconstruct", "/v1/reconstruct/batch"})
PAGE = "/"
LEAST_BYTES = 1024  # below, a packet is a packet
LEVEL = 6  # nine takes twice the time for one per cent
QUALITY = 5  # of Brotli: a quarter fewer bytes of the page than gzip in twice its time; nine wins 4 % and takes 0.1 s


class Compress:
    """Compresses what gains from it.

    Args:
        app: The next application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        # Pictures, fonts and streams of events stay as they are; so do lines that are wanted one by one.
        left = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "application/x-ndjson")
        self.compressed = GZipMiddleware(app, LEAST_BYTES, LEVEL, exclude_content_types=left)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or local_path(scope) in PICTURE_ANSWERS:
            await self.app(scope, receive, send)
            return

        async def weaken(message: Message) -> None:
            """The tag of what was packed, by gradio too: its bytes are not those of the file."""
            if message["type"] == "http.response.start":
                told = MutableHeaders(scope=message)
                if "content-encoding" in told and told.get("etag", "").startswith('"'):
                    told["ETag"] = f"W/{told['etag']}"
            await send(message)

        headers = MutableHeaders(scope=scope)
        weights = read_weights(",".join(headers.getlist("accept-encoding")))
        # Starlette and gradio look for the name alone: what is refused must not stand there.
        headers["Accept-Encoding"] = ", ".join(name for name, weight in weights.items() if weight)
        if local_path(scope) == PAGE and weights.get("br"):
            await self.app(scope, receive, _Packer(send))
        else:
            await self.compressed(scope, receive, weaken)


class _Packer:
    """Sends the page, which comes in one piece (the policy is made of the whole of it), as Brotli."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.start: Message = {}

    async def __call__(self, message: Message) -> None:
        """Hold the head back until the length is known."""
        if message["type"] == "http.response.start":
            self.start = message
            return
        if self.start:
            message = await self._packed(message)
            await self.send(self.start)
            self.start = {}
        await self.send(message)

    async def _packed(self, message: Message) -> Message:
        headers, body = MutableHeaders(scope=self.start), message.get("body", b"")
        headers.add_vary_header("Accept-Encoding")
        html = headers.get("content-type", "").startswith("text/html")
        if not html or message.get("more_body") or len(body) < LEAST_BYTES:
            return message
        body = await anyio.to_thread.run_sync(_pack, body)
        headers["Content-Encoding"], headers["Content-Length"] = "br", str(len(body))
        return {**message, "body": body}


def _pack(body: bytes) -> bytes:
    packed: bytes = brotli.compress(body, mode=brotli.MODE_TEXT, quality=QUALITY)
    return packed
