"""What a picture file is made of, counted before it is opened.

Pillow reads the segments of a JPEG, the chunks of a PNG and the blocks of a GIF one by one, in Python, and keeps an
object for each or appends it to those before; libjpeg goes over the whole picture again for each scan of a progressive
JPEG. A few megabytes of empty ones would take minutes. Nothing is decoded here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Parts of a file: the largest photos have some hundred.
MAX_PARTS = 10_000
#: Scans of a JPEG, of which encoders write some ten. Each costs 40 ms where 40 million pixels are allowed.
MAX_SCANS = 50

# A marker with a length, or the end of the picture; not the stuffing and restarts inside of a scan.
_MARKER = re.compile(rb"\xff+[^\x00\x01\xff\xd0-\xd8]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


def is_cluttered(data: bytes) -> bool:
    """Whether a picture file has more than ``MAX_PARTS`` parts; of other formats nothing is counted."""
    for magic, parts in ((b"\xff\xd8", _jpeg), (b"\x89PNG\r\n\x1a\n", _png), (b"GIF8", _gif)):
        if data.startswith(magic):
            counted = 0
            for weight in parts(data):
                counted += weight
                if counted > MAX_PARTS:
                    return True
    return False


def _jpeg(data: bytes) -> Iterator[int]:
    at, scanned = 2, False
    while found := _MARKER.search(data, at):
        if not scanned:
            yield found.end() - at - 1  # before the first scan Pillow looks at each byte between markers
        at, marker = found.end(), data[found.end() - 1]
        if marker == _END_OF_IMAGE:
            return
        if marker == _START_OF_SCAN:
            # Bytes that look like more may lie in what follows the picture; only then is all of it walked through.
            if not scanned and data.count(b"\xff\xda", at) < MAX_SCANS:
                return
            scanned = True
        yield MAX_PARTS // MAX_SCANS if marker == _START_OF_SCAN else 1
        at += int.from_bytes(data[at : at + 2], "big")


def _png(data: bytes) -> Iterator[int]:
    at = 8
    while at < len(data) and data[at + 4 : at + 8] != b"IEND":
        yield 1
        at += 12 + int.from_bytes(data[at : at + 4], "big")  # length, name, content, checksum


def _gif(data: bytes) -> Iterator[int]:
    """Up to the first picture."""
    at = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)  # header and colours
    while at < len(data) and data[at : at + 1] not in (b",", b";"):
        yield 1
        if data[at : at + 1] != b"!":
            at += 1
            continue
        at += 2  # an extension and its kind
        while at < len(data) and (size := data[at]):
            yield 1
            at += 1 + size
        at += 1
