"""The sample photos the page offers, read once; file and web names never meet a path a client has written."""

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Picture:
    """One file, ready to be sent."""

    content: bytes
    media_type: str
    etag: str


@dataclass(frozen=True)
class Sample:
    """A photo of known free licence.

    Attributes:
        facts: name, title, licence, author and source, as text.
        photo: The photo itself.
        thumb: The same, small.
    """

    facts: dict[str, str]
    photo: Picture
    thumb: Picture


FACTS = ("name", "title", "licence", "author", "source")


def read_samples(folder: Path) -> dict[str, Sample]:
    """Samples by name, in the order of `samples.toml`.

    Args:
        folder: Holds samples.toml and, per sample, NAME.jpg and NAME.thumb.webp.
    """
    entries = tomllib.loads((folder / "samples.toml").read_text(encoding="utf-8"))["sample"]
    return {
        entry["name"]: Sample(
            facts={key: entry[key] for key in FACTS if key in entry},
            photo=_read(folder / f"{entry['name']}.jpg", "image/jpeg"),
            thumb=_read(folder / f"{entry['name']}.thumb.webp", "image/webp"),
        )
        for entry in entries
    }


def _read(path: Path, media_type: str) -> Picture:
    content = path.read_bytes()
    return Picture(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
