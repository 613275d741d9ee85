"""What strangers may reach and what browsers may do: the gate in front of Gradio, and the security headers.

Gradio answers some sixty paths, most of which the page does not need and some of which serve anybody (an
open relay, endless streams, run histories). Only what the page's own traffic showed is let through.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from types import SimpleNamespace

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model import UnmaskError
from server import problems
from server.limits import KEY_SCOPE

API_PATHS = frozenset({"/reconstruct", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"})
HEALTH_PATHS = frozenset({"/healthz", "/readyz"})
API_FOLDERS = ("/v1/", "/docs/", "/docs-assets/")

# The page draws itself and talks to the API; it needs none of Gradio's calls, queues, uploads and files.
PAGE_PATHS = frozenset({"/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"})
PAGE_FOLDERS = ("/assets/", "/static/")

# Paths whose body may hold a picture; everything else is small.
PICTURE_PATHS = ("/reconstruct", "/v1/reconstruct", "/v1/embed", "/v1/settings")
# What needs a place in the line; batches wait for theirs one by one.
WORK_PATHS = ("/reconstruct", "/v1/reconstruct", "/v1/embed")
BATCH_PATH = "/v1/reconstruct/batch"
SMALL_BODY_BYTES = 256 * 1024

# Gradio builds the page's root address from these without asking who sent them, which poisons caches.
# uvicorn has already applied what a trusted proxy said about scheme and client.
UNTRUSTED_HEADERS = frozenset({b"x-forwarded-host", b"x-forwarded-proto", b"x-gradio-server"})

COMMON_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Longer than any name in the page's folders; longer ones no file system takes, which gradio answers with a crash.
MAX_PATH_BYTES = 255

INLINE_SCRIPT = re.compile(r"<script(?![^>]*\ssrc\s*=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE)


def local_path(scope: Scope) -> str:
    """The decoded path without the prefix of a proxy."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] or "/" if root and path.startswith(root) else path


def is_api(path: str) -> bool:
    """Whether a path belongs to the API and never to the page."""
    return path in API_PATHS or path.startswith(API_FOLDERS)


def is_served(path: str) -> bool:
    """Whether a path belongs to the API or to what the page needs."""
    short = len(path.encode()) <= MAX_PATH_BYTES
    return is_api(path) or path in PAGE_PATHS or (path.startswith(PAGE_FOLDERS) and short)


class PageMount(Mount):
    """The page's mount at `/`, which would answer every path, without the API's.

    A wrong method or an unknown name below `/v1` is the API's to refuse.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match what does not belong to the API."""
        return (Match.NONE, {}) if is_api(local_path(scope)) else super().matches(scope)


def body_limit(picture_bytes: int, batch_bytes: int) -> Callable[[str, str], int]:
    """The rule of how many bytes a path takes, by the kind of the body.

    Args:
        picture_bytes: Limit where a picture is sent; base64 in JSON may take a third more.
        batch_bytes: The same where many are sent.
    """

    def limit(path: str, kind: str) -> int:
        path = path.rstrip("/")  # what is wrong with one that ends so is told as 404, not by its size
        if path.endswith(BATCH_PATH):
            allowed = batch_bytes
        elif path.endswith(PICTURE_PATHS):
            allowed = picture_bytes
        else:
            return SMALL_BODY_BYTES
        return allowed * 4 // 3 if kind.startswith("application/json") else allowed

    return limit


class Gate:
    """Lets through only what is served, and strips what must not reach the application.

    Args:
        app: The next application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer 404."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks it
            return
        if not is_served(local_path(scope)):
            detail = "There is nothing at this path. The API is described at /docs."
            await problems.problem(404, "not-found", detail=detail)(scope, receive, send)
            return
        scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() not in UNTRUSTED_HEADERS]
        await self.app(scope, receive, send)


class Admission:
    """Refuses work for which there is no room, before its body is read and before it is routed.

    Under a flood refusing is most of what the event loop does: routing would take twice as long as the rest.

    Args:
        app: The next application.
        check: Raises where there is no room.
    """

    def __init__(self, app: ASGIApp, check: Callable[[], None]) -> None:
        self.app = app
        self.check = check
        # Counted under the route that it would have led to.
        self.routes = {path: SimpleNamespace(path=path) for path in WORK_PATHS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer 503."""
        if scope["type"] == "http" and scope["method"] == "POST":
            route = self.routes.get(local_path(scope))
            try:
                if route:
                    self.check()
            except UnmaskError as error:
                scope["route"] = route
                await problems.from_error(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Keys:
    """Asks for a key on every path but those of health: the page is no way around it, and neither is a shared cache.

    Args:
        app: The next application.
        digests: SHA-256 of the keys, in hex. Keys themselves are kept nowhere.
    """

    def __init__(self, app: ASGIApp, digests: Iterable[str]) -> None:
        self.app = app
        self.digests = tuple(digests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or answer 401."""

        async def keep_private(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if "cache-control" in headers:
                    headers["Cache-Control"] = headers["cache-control"].replace("public", "private")
            await send(message)

        open_to_all = scope["type"] != "http" or local_path(scope) in HEALTH_PATHS
        digest = "" if open_to_all else hashlib.sha256(_given_key(Headers(scope=scope))).hexdigest()
        if open_to_all or self._known(digest):
            scope[KEY_SCOPE] = digest
            await self.app(scope, receive, keep_private)
        else:
            await problems.from_error(problems.UnauthorisedError())(scope, receive, send)

    def _known(self, digest: str) -> bool:
        # All are compared, each in constant time: how long it takes tells nothing.
        return sum(hmac.compare_digest(digest, known) for known in self.digests) > 0


def _given_key(headers: Headers) -> bytes:
    """The key in a request, as the bytes that were sent; empty when there is none."""
    if "x-api-key" in headers:
        return headers["x-api-key"].encode("latin-1")
    scheme, _, value = headers.get("authorization", "").partition(" ")
    key = value.strip().encode("latin-1")
    if scheme.lower() == "bearer":
        return key
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(key, validate=True).partition(b":")[2]
    except ValueError:
        return b""


class SecurityHeaders:
    """Adds the headers that keep browsers honest, and a content policy to every page.

    Inline scripts of the page change with its configuration, so they are hashed as they pass.

    Args:
        app: The next application.
        frame_ancestors: Who may frame the page.
    """

    def __init__(self, app: ASGIApp, frame_ancestors: Iterable[str]) -> None:
        self.app = app
        self.frame_ancestors = " ".join(frame_ancestors) or "'none'"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        held: Message | None = None
        parts: list[bytes] = []

        async def dress(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(COMMON_HEADERS)
                if headers.get("content-type", "").startswith("text/html"):
                    held = message
                    return
            elif held is not None:
                parts.append(message.get("body", b""))
                if message.get("more_body"):
                    return
                page = b"".join(parts)
                headers = MutableHeaders(scope=held)
                headers["Content-Security-Policy"] = self._policy(page)
                headers["Cache-Control"] = "no-cache"
                await send(held)
                held = None
                message = {"type": "http.response.body", "body": page}
            await send(message)

        await self.app(scope, receive, dress)

    def _policy(self, page: bytes) -> str:
        # Not compressed yet: `Compress` stands outside, and Gradio leaves its page to others.
        scripts = INLINE_SCRIPT.findall(page.decode("utf-8", "replace"))
        hashes = sorted(
            {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts}
        )
        allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
        return (
            # gradio compiles its custom widgets in the browser ('unsafe-eval') and sets styles inline
            f"default-src 'none'; script-src 'self' 'unsafe-eval' {allowed}; style-src 'self' 'unsafe-inline'; "
            "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; manifest-src 'self'; "
            "object-src 'none'; base-uri 'self'; form-action 'self'; "
            f"frame-ancestors {self.frame_ancestors}"
        )
