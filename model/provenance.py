"""What a picture file says about itself: that a model painted in it, and the settings that paint it again.

The IPTC digital source type in XMP, for programs that look for generated pictures; the settings as JSON, in a PNG in
the text chunk ``parameters`` that image tools know, elsewhere in an XMP property of our own. Files come back from
strangers, so what is read is short, flat and of known names and types, or it is not there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape, unescape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model import images
from model.errors import ImageError
from model.masking import Grid, Mask

Settings = dict[str, Any]

#: First key of all settings, and the version of their form.
MARK, FORM = "unmask", 1
#: What settings may hold, and of what type. Those that are options bear the options' names.
FIELDS: dict[str, tuple[type, ...]] = {
    MARK: (int,),
    "model": (str,), "model_digest": (str,), "target": (str,), "panels": (list,), "view_note": (str,),
    "strategy": (str,), "ratio": (str,), "hidden_count": (int,), "seed": (int,), "mask": (str,), "mask_grid": (str,),
    "view": (str,), "fit": (str,), "crop": (str,), "grid": (str,), "cover": (str,), "samples": (int,),
    "positions": (str,),
}  # fmt: skip

_KEYWORD = "parameters"
_PROPERTY = re.compile(r'unmask:settings="([^"]{1,32768})"')
_MOST_BYTES = 16_384  # a mask of 40 x 40 takes 400; nothing of ours is near
_MOST_TEXT = 1024  # of one value
_VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
#: Panels that show what a model painted: alone, or among pixels of the photo.
_PAINTED = {"reconstruction": "trainedAlgorithmicMedia", "pasted": "compositeWithTrainedAlgorithmicMedia"}
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:unmask="urn:x-unmask:settings#"'
    '{}/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


def packet(panels: tuple[str, ...]) -> str:
    """The XMP of a picture that is put together of panels elsewhere: where it comes from, no settings."""
    return _XMP.format(_term(panels))


def _term(panels: tuple[str, ...]) -> str:
    """The IPTC's term for a picture of these panels; nothing where no model painted in it."""
    painted = [_PAINTED[name] for name in panels if name in _PAINTED]
    if not painted:
        return ""
    term = _VOCABULARY + (painted[0] if len(panels) == 1 else "compositeWithTrainedAlgorithmicMedia")
    return f' Iptc4xmpExt:DigitalSourceType="{escape(term)}"'


def write(pixels: images.Pixels, settings: Mapping[str, Any], *, format: str = "PNG", **saving: Any) -> bytes:
    """A picture file that says so.

    Args:
        pixels: ``[H, W, 3] uint8``.
        settings: Values for ``FIELDS``; ``panels`` decides the source type.
        format: ``PNG``, ``WEBP``, ``JPEG`` or ``AVIF``.
        **saving: What Pillow takes for this format.
    """
    text = json.dumps({key: settings[key] for key in FIELDS if settings.get(key) is not None})
    properties = _term(tuple(settings.get("panels", ())))
    if note := settings.get("view_note"):
        properties += f' unmask:note="{escape(note)}"'
    if format == "PNG":
        return images.encode(pixels, format, xmp=_XMP.format(properties), text={_KEYWORD: text}, **saving)
    properties += f' unmask:settings="{escape(text)}"'
    return images.encode(pixels, format, xmp=_XMP.format(properties), **saving)


def read(data: bytes) -> Settings | None:
    """The settings in a picture file of ours; None where it has none that can be trusted in form.

    Only names in ``FIELDS`` with values of their type come out. Values may still make no sense: whoever uses them
    (``Options.from_settings``) checks as for any request.
    """
    try:
        notes = images.notes(data)
    except ImageError:
        return None
    text = notes.get(_KEYWORD)
    if text is None:
        found = _PROPERTY.search(notes.get("xmp", ""))
        text = unescape(found[1]) if found else ""
    if len(text) > _MOST_BYTES:
        return None
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict):
        return None
    known = {key: given[key] for key in FIELDS if _fits(given.get(key), FIELDS[key])}
    return known if known.get(MARK) == FORM else None


def _fits(value: object, types: tuple[type, ...]) -> bool:
    if type(value) not in types:  # a bool is no int here
        return False
    if isinstance(value, str):
        return len(value) <= _MOST_TEXT
    if isinstance(value, list):
        return len(value) <= len(FIELDS) and all(isinstance(one, str) and len(one) <= 64 for one in value)
    return isinstance(value, int) and abs(value) < 2**53  # exact for any number of digits


def pack(mask: Mask) -> tuple[str, str]:
    """A mask as text: its bits in hex, row by row, the first patch in the highest bit; and ``ROWSxCOLUMNS``."""
    return np.packbits(mask.hidden).tobytes().hex(), f"{mask.grid[0]}x{mask.grid[1]}"


def unpack(bits: str, grid: Grid) -> tuple[int, ...] | None:
    """The hidden patches in a packed mask; None where it is not a mask of this grid."""
    patches = grid[0] * grid[1]
    try:
        raw = np.frombuffer(bytes.fromhex(bits), dtype=np.uint8)
    except ValueError:
        return None
    hidden: NDArray[np.uint8] = np.unpackbits(raw)
    if len(raw) != (patches + 7) // 8 or hidden[patches:].any():
        return None
    return tuple(np.flatnonzero(hidden).tolist())
