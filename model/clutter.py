"""What a picture file is made of, counted before it is opened.

Pillow reads the segments of a JPEG, the chunks of a PNG and the blocks of a GIF one by one, in Python, and keeps an
object for each or appends it to those before; libjpeg goes over the whole picture again for each scan of a progressive
JPEG. A few megabytes of empty ones would take minutes. A TIFF's directory, which EXIF is one of, may name the same
megabytes as the content of thousands of entries. Nothing is decoded here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import IO

from PIL import TiffImagePlugin

#: Parts of a file: the largest photos have some hundred.
MAX_PARTS = 10_000
#: Scans of a JPEG, of which encoders write some ten. Each costs 40 ms where 40 million pixels are allowed.
MAX_SCANS = 50
#: Pieces of a JPEG's EXIF, of which cameras write one. Pillow copies all those before for each.
MAX_EXIF = 100
#: Numbers in an entry of a TIFF's directory: a table for each of three 16-bit channels.
MAX_NUMBERS = 3 * 65_536
#: Strips or tiles of a TIFF: Pillow keeps an object for each.
MAX_STRIPS = 65_536

# A marker with a length, or the end of the picture; not the stuffing and restarts inside of a scan.
_MARKER = re.compile(rb"\xff+[^\x00\x01\xff\xd0-\xd8]")
_START_OF_SCAN, _END_OF_IMAGE, _APP1 = 0xDA, 0xD9, 0xE1
_OFFSETS = (273, 324)  # TIFF tags: where strips and tiles are
_BYTES = (1, 2, 7)  # TIFF types that are read as they are, not number by number


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
            yield MAX_PARTS // MAX_SCANS
        elif marker == _APP1 and data.startswith(b"Exif", at + 2):
            yield MAX_PARTS // MAX_EXIF
        else:
            yield 1
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


class Directory(TiffImagePlugin.ImageFileDirectory_v2):
    """Pillow's directory of a TIFF or of EXIF, which refuses what would cost more than the file has bytes.

    Every format hands its EXIF to this class, so it is the one place where all of it can be counted.
    """

    def load(self, fp: IO[bytes]) -> None:
        """Read the directory where the file stands.

        Raises:
            ValueError: It has more than ``MAX_PARTS`` entries, an entry more than ``MAX_NUMBERS`` numbers, it has more
                than ``MAX_STRIPS`` strips, or its entries name the same bytes over and over.
        """
        start = fp.tell()
        length = fp.seek(0, 2)
        fp.seek(start)
        # As Pillow takes it apart; a file that ends too soon is its to tell.
        head, entry, place = ("Q", "HHQ8s", "Q") if self._bigtiff else ("H", "HHL4s", "L")
        head, entry, place = (self._endian + form for form in (head, entry, place))
        counted = fp.read(struct.calcsize(head))
        entries = struct.unpack(head, counted)[0] if len(counted) == struct.calcsize(head) else 0
        if entries > MAX_PARTS:
            raise ValueError(f"{entries} entries")
        entry_size = struct.calcsize(entry)
        table = fp.read(entries * entry_size)
        whole = table[: len(table) // entry_size * entry_size]
        total = 0
        for tag, kind, numbers, value in struct.iter_unpack(entry, whole):
            if kind not in self._load_dispatch:
                continue
            size = numbers * self._load_dispatch[kind][0]
            if size > len(value):
                if struct.unpack(place, value)[0] + size > length:
                    break  # Pillow reads no further
                total += size
            if kind not in _BYTES and numbers > (MAX_STRIPS if tag in _OFFSETS else MAX_NUMBERS):
                raise ValueError(f"{numbers} numbers in entry {tag}")
        if total > 2 * length:  # some share a few
            raise ValueError(f"entries of {total} bytes in {length}")
        fp.seek(start)
        super().load(fp)
