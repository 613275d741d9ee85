"""The sample photos the page offers, read once; file and web names never meet a path a client has written."""

import hashlib
from dataclasses import dataclass

from model import samples


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


def read_samples() -> dict[str, Sample]:
    """Samples by name, in the order of the page."""
    return {
        sample.name: Sample(
            facts={key: getattr(sample, key) for key in FACTS},
            photo=_picture(sample.photo, "image/jpeg"),
            thumb=_picture(sample.thumb, "image/webp"),
        )
        for sample in samples.load()
    }


def _picture(content: bytes, media_type: str) -> Picture:
    return Picture(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
