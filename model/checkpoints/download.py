"""One address to one file: goes on where it was cut, shows how far it is, and keeps nothing it cannot vouch for.

Knows HTTP and the disk; what the files are and what may be fetched is ``registry``.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, NoReturn
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from tqdm import tqdm

from model.checkpoints.files import refuse

_CHUNK = 1 << 20
_TIMEOUT_S = 30  # without a byte
_ATTEMPTS = 5  # connections in a row that bring nothing
_PAUSE_S = 0.5  # before the second of them; doubles
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_SHA256 = re.compile(r'^"?([0-9a-f]{64})"?$')


class _CutError(Exception):
    """The connection ended before the file did; worth another try."""


@dataclass
class _Received:
    """What is known of a file that is being fetched.

    Attributes:
        url: Where it comes from.
        part: Where it grows.
        sha256: As published; empty where nobody says.
        tag: The server's name for this version, which lets a cut transfer go on.
        total: Its size, None where the server does not say.
    """

    url: str
    part: Path
    sha256: str
    tag: str = ""
    total: int | None = None

    @property
    def have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    @property
    def note(self) -> Path:
        """Beside the part: tag and size, for the process that goes on."""
        return self.part.with_name(self.part.name + ".json")

    def forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def download(url: str, out: Path, *, sha256: str = "", md5: str = "") -> str:
    """Fetch one file; a reader of ``out`` sees nothing or the whole, checked file.

    Args:
        url: ``https`` (or ``http``, which ``registry`` allows for this machine alone or with a hash).
        out: Where to.
        sha256: What it must be, hex; empty: not known.
        md5: First digits of what it must be, likewise.

    Returns:
        SHA-256 of the file, hex.

    Raises:
        CheckpointError: The host cannot be reached, has no such file, broke off too often, sent another file
            than promised, or the disk is full. What came so far stays for the next try, except a wrong file.
    """
    file = _Received(url, out.with_name(out.name + ".download"), sha256)
    try:
        return _download(file, out, md5)
    except OSError as error:  # the network's are all sorted by now
        raise refuse(
            f"{out.parent} cannot be written to ({error.strerror or error})",
            "Set XDG_CACHE_HOME to a folder that can.",
            "write",
        ) from error


def _download(file: _Received, out: Path, md5: str) -> str:
    with _alone(file.part), tqdm(desc=out.name, unit="B", unit_scale=True, disable=None) as bar:
        _remember(file)
        barren = 0
        while file.total is None or file.have != file.total:
            before = file.have
            try:
                _receive(file, bar)
                break
            except _CutError as cut:
                barren = 0 if file.have > before else barren + 1
                if barren == _ATTEMPTS:
                    raise refuse(
                        f"{file.url} was interrupted at {file.have / 1e6:.1f} MB ({cut})",
                        "Run the same command again: it goes on from there.",
                        "cut",
                    ) from cut
                time.sleep(_PAUSE_S * 2**barren)
        digest = _checked(file, md5)
        with file.part.open("rb+") as done:
            os.fsync(done.fileno())
        file.part.replace(out)
        file.forget()
    return digest


def _receive(file: _Received, bar: tqdm[NoReturn]) -> None:
    """One connection: from where the part ends, or from the start where the server will not go on."""
    # Without a tag the file may have changed since; only a known hash would notice.
    start = file.have if file.tag or file.sha256 else 0
    headers = {"User-Agent": "unmask", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if file.tag:
            headers["If-Range"] = file.tag
    redirects = _Redirects()
    with _answer(urllib.request.Request(file.url, headers=headers), redirects, file) as answer:
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # the server sends it all
        length = answer.headers.get("Content-Length")
        file.total = start + int(length) if length else None
        tag = answer.headers.get("ETag", "")
        # A weak tag may stand for several contents and is not allowed here.
        file.tag = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")
        file.sha256 = file.sha256 or redirects.sha256
        _check_room(file, start)
        file.note.write_text(json.dumps({"tag": file.tag, "total": file.total, "sha256": file.sha256}))
        bar.total, bar.n = file.total, start
        bar.refresh()
        _write(answer, file, start, bar)
    if file.total is not None and file.have < file.total:
        raise _CutError(f"{file.total - file.have} bytes short")


def _write(answer: http.client.HTTPResponse, file: _Received, start: int, bar: tqdm[NoReturn]) -> None:
    with file.part.open("r+b" if start else "wb", buffering=0) as out:
        if start:
            out.seek(start)
            out.truncate()
        while True:
            try:
                chunk = answer.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _CutError(str(error) or type(error).__name__) from error
            if not chunk:
                return
            try:
                left = memoryview(chunk)
                while left:
                    left = left[out.write(left) :]
            except OSError as error:
                raise _no_room(file, error.strerror or "cannot be written") from error
            bar.update(len(chunk))


@contextmanager
def _answer(
    request: urllib.request.Request, redirects: _Redirects, file: _Received
) -> Iterator[http.client.HTTPResponse]:
    """The server's answer, its ways to fail sorted into: try again, not there, not reachable."""
    host = urlsplit(file.url).netloc
    try:
        answer = urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what we have is no beginning of it
            file.forget()
            file.tag, file.total = "", None
        if error.code == 416 or error.code in _TRANSIENT:
            raise _CutError(f"{error.code} {error.reason}") from error
        hint = (
            "It needs an account, or its licence accepted there: fetch it by hand, then `weights add NAME FILE`."
            if error.code in (401, 403)
            else "See `python -m model weights list` for what is known, or give another address."
        )
        raise refuse(f"{file.url} answers {error.code} {error.reason}", hint, "absent") from error
    except urllib.error.URLError as error:
        if file.have:
            raise _CutError(str(error.reason)) from error
        raise refuse(
            f"{host} cannot be reached ({error.reason})",
            "Go online, or fetch the file elsewhere and give it a name: "
            "python -m model weights add NAME FILE.",
            "offline",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(str(error) or type(error).__name__) from error
    with answer:
        yield answer


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows, never from https down to http; keeps the hash that the Hub tells on the way."""

    sha256 = ""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise refuse(f"{req.host} redirects to an address without https", "Do not use it.", "absent")
        if told := _SHA256.match(headers.get("X-Linked-ETag", "")):
            self.sha256 = told[1]
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _remember(file: _Received) -> None:
    """Tag and size of a part that an earlier process left."""
    try:
        note = json.loads(file.note.read_text())
        file.tag, file.total = str(note["tag"]), note["total"]
        file.sha256 = file.sha256 or str(note["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        file.note.unlink(missing_ok=True)
    if file.total is not None and file.have > file.total:
        file.forget()


def _check_room(file: _Received, start: int) -> None:
    if file.total is None:
        return
    free = shutil.disk_usage(file.part.parent).free
    if file.total - start > free:
        raise _no_room(file, f"{(file.total - start) / 1e6:,.0f} MB to come, {free / 1e6:,.0f} MB free")


def _no_room(file: _Received, why: str) -> Exception:
    return refuse(
        f"{file.part.parent} has no space left for {file.url} ({why})",
        "Free some space, or set XDG_CACHE_HOME to where there is some; the same command goes on from what came.",
        "disk",
    )


def _checked(file: _Received, md5: str) -> str:
    """The file's SHA-256, once it is the promised one."""
    digests = {"sha256": hashlib.sha256(), "md5": hashlib.md5(usedforsecurity=False)}
    with file.part.open("rb") as whole:
        while chunk := whole.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    found = {name: digest.hexdigest() for name, digest in digests.items()}
    for name, wanted in (("sha256", file.sha256), ("md5", md5)):
        if not found[name].startswith(wanted):
            file.forget()
            raise refuse(
                f"{file.url} sent a file of {name} {found[name]}, and {wanted} was promised; it was discarded",
                "Try again; if it happens twice, the file there is a different one: do not use it.",
                "hash",
            )
    return found["sha256"]


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """Only one process may write a part."""
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(part.with_name(part.name + ".lock"), timeout=0):
            yield
    except Timeout as error:
        raise refuse(
            f"{part.name.removesuffix('.download')} is being fetched by another process",
            "Wait for it.",
            "busy",
        ) from error
