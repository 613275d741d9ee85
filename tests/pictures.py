"""Small pictures and files that the tests of several rooms are built from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def photo(width: int = 96, height: int = 80, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random colour picture: low noise scaled up, so that neighbours agree as in photos."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def two_classes(place: Path, *, train: int, test: int) -> Path:
    """Folders ``train`` and ``test`` of so many photos a class; the classes ``blue`` and ``red`` differ in colour."""
    for part, count in (("train", train), ("test", test)):
        for name, colour in (("blue", (0, 0, 160)), ("red", (160, 0, 0))):
            folder = place / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = photo(72, 68, 100 * number + len(name)) // 3 + np.array(colour, dtype=np.uint8)
                (folder / f"{number}.png").write_bytes(encoded(pixels.astype(np.uint8)))
    return place


def evaluating(question: str, weights: Path, place: Path, out: Path) -> list[str]:
    """The command line that asks something about weights, of the folders that ``two_classes`` made."""
    photos = ["--data", str(place / "train"), "--test", str(place / "test")]
    return ["evaluate", question, str(weights), *photos, "--out", str(out), "--device", "cpu"]
