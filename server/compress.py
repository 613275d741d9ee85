"""Text in fewer bytes for who takes it so: the page, its scripts, descriptions. Never pictures."""

from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from server.security import local_path

# Their answers are pictures, in base64 at worst: a quarter fewer bytes for milliseconds of every drag.
PICTURE_ANSWERS = frozenset({"/reconstruct", "/v1/reconstruct", "/v1/reconstruct/batch"})
LEAST_BYTES = 1024  # below, a packet is a packet
LEVEL = 6  # nine takes twice the time for one per cent


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
        plain = scope["type"] != "http" or local_path(scope) in PICTURE_ANSWERS
        await (self.app if plain else self.compressed)(scope, receive, send)
