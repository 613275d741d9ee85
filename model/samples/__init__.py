"""Photos of known free licence that come with the package: offered to visitors, and painted while a run goes on."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Sample:
    """One photo.

    Attributes:
        name: Its files'.
        title: In English.
        licence: ``CC0`` or ``Public domain``.
        author: Who made it.
        source: Where it is from.
        photo: JPEG.
        thumb: The same, small, WebP.
        main: Where the main thing is, as shares of the picture: left, top, right, bottom; None: in the middle.
    """

    name: str
    title: str
    licence: str
    author: str
    source: str
    photo: bytes
    thumb: bytes
    main: list[float] | None


def load() -> list[Sample]:
    """All of them, in the order of ``samples.toml``."""
    entries = tomllib.loads((FOLDER / "samples.toml").read_text(encoding="utf-8"))["sample"]
    return [
        Sample(
            **{key: entry[key] for key in ("name", "title", "licence", "author", "source")},
            photo=(FOLDER / f"{entry['name']}.jpg").read_bytes(),
            thumb=(FOLDER / ".thumbs" / f"{entry['name']}.webp").read_bytes(),
            main=entry.get("main"),
        )
        for entry in entries
    ]
