"""A server of files that cuts, lies and forgets, for what fetches them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Host:
    """A server of files.

    Attributes:
        url: Its address.
        files: Content by path.
        cuts: Bytes after which the next answers break off, first to last.
        ranges: Whether it goes on where a part ends.
        tag: Whether it names versions.
        length: Promised size, where it is not the real one.
        statuses: Of the next answers instead of 200.
        headers: Also sent.
        redirects: Where a path sends on to.
        asked: (path, Range header) of every request.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    tag: bool = True
    length: int | None = None
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, wanted = handler.path, handler.headers.get("Range", "")
        self.asked.append((path, wanted))
        if path in self.redirects:
            handler.send_response(302)
            handler.send_header("Location", self.redirects[path])
            for name, value in self.headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            return
        if self.statuses or path not in self.files:
            handler.send_error(self.statuses.pop(0) if self.statuses else 404)
            return
        content, start = self.files[path], 0
        tag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        unchanged = handler.headers.get("If-Range", tag) == tag
        if wanted and self.ranges and unchanged:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                handler.send_error(416)
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
        if self.tag:
            handler.send_header("ETag", tag)
        handler.send_header("Content-Length", str(self.length or len(content) - start))
        handler.end_headers()
        end = start + self.cuts.pop(0) if self.cuts else len(content)
        handler.wfile.write(content[start:end])


@contextmanager
def serving() -> Iterator[Host]:
    """A host that answers."""
    host = Host()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        host.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield host
        finally:
            server.shutdown()
            thread.join()
