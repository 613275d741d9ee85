"""Photos for training: folders and WebDataset tar shards, read at random, sampled reproducibly.

Every sample, crop and flip is a function of (seed, epoch, photo) through the integer hash of
``model.masking``: nothing is drawn from a generator's state, so a run resumes at any step by its number alone.
"""

from __future__ import annotations

import json
import math
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

from model.errors import DataError
from model.masking import hidden_count, noise, random_hidden
from model.pretrain.recipe import Recipe

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


class Entry(NamedTuple):
    """Where one photo's bytes lie."""

    path: Path
    offset: int
    size: int
    source: str  # a shard's sidecar names it; for a folder, the folder's name
    name: str


@dataclass(frozen=True)
class Photos:
    """All photos under some paths, in a fixed order, readable by number."""

    entries: tuple[Entry, ...]

    @classmethod
    def open(cls, paths: Sequence[Path]) -> Photos:
        """Index folders (recursively) and ``.tar`` shards; pictures are not decoded.

        Raises:
            DataError: A path does not exist, or no picture is found.
        """
        entries: list[Entry] = []
        for path in paths:
            if path.is_dir():
                entries += _folder(path)
            elif path.suffix == ".tar" and path.is_file():
                entries += _shard(path)
            else:
                raise DataError(
                    f"{path} is neither a folder nor a .tar shard.",
                    code="data-path",
                    hint="Give folders of pictures or WebDataset .tar files.",
                    field="data",
                )
        if not entries:
            raise DataError(
                f"No picture found under {', '.join(map(str, paths))}.",
                code="data-empty",
                hint=f"Pictures are files ending in {', '.join(sorted(SUFFIXES))}.",
                field="data",
            )
        return cls(tuple(entries))

    def __len__(self) -> int:
        """Number of photos."""
        return len(self.entries)

    def read(self, number: int) -> bytes:
        """The file bytes of one photo."""
        entry = self.entries[number]
        with entry.path.open("rb") as file:
            return os.pread(file.fileno(), entry.size, entry.offset)

    def decode(self, number: int) -> Tensor:
        """One photo as ``[3, H, W] uint8``.

        Raises:
            DataError: It cannot be decoded; the message names the file.
        """
        try:
            data = torch.frombuffer(bytearray(self.read(number)), dtype=torch.uint8)
            return decode_image(data, ImageReadMode.RGB, apply_exif_orientation=True)
        except (RuntimeError, ValueError) as error:
            entry = self.entries[number]
            raise DataError(
                f"{entry.name} in {entry.path} cannot be decoded: {str(error).splitlines()[0]}",
                code="data-broken",
                hint="Remove or replace this picture.",
                field="data",
            ) from error


def _folder(folder: Path) -> list[Entry]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [Entry(path, 0, path.stat().st_size, folder.name, str(path.relative_to(folder))) for path in files]


def _shard(path: Path) -> list[Entry]:
    """Pictures of a tar shard by offset; the JSON sidecars tell their source."""
    pictures: list[tuple[str, tarfile.TarInfo]] = []
    sources: dict[str, str] = {}
    with tarfile.open(path) as shard:
        for member in shard:
            stem, _, suffix = member.name.rpartition(".")
            if f".{suffix.lower()}" in SUFFIXES:
                pictures.append((stem, member))
            elif suffix == "json" and (file := shard.extractfile(member)):
                sources[stem] = str(json.load(file).get("source", path.stem))
    return [
        Entry(path, member.offset_data, member.size, sources.get(stem, path.stem), member.name)
        for stem, member in pictures
    ]


class Sample(NamedTuple):
    """One draw: which photo, and the key of everything random about it."""

    number: int
    key: np.uint64


@dataclass(frozen=True)
class Batch:
    """What one training step eats.

    Attributes:
        images: ``[B, 3, H, W] uint8``.
        hidden: ``[B, L] bool``.
    """

    images: Tensor
    hidden: Tensor


class Sampler:
    """The endless sequence of samples of a recipe.

    An epoch holds every photo of weight 1 once; of a source of weight w it holds another share w each time, so
    that all its photos come equally often in the long run.
    """

    def __init__(self, photos: Photos, recipe: Recipe) -> None:
        sources = np.array([entry.source for entry in photos.entries])
        self._seed = recipe.seed
        self._weight = np.ones(len(photos))
        self._phase = np.zeros(len(photos))
        for source, weight in recipe.source_weights.items():
            members = np.flatnonzero(sources == source)
            self._weight[members] = weight
            # Evenly spread phases, dealt out at random: each epoch takes an equal share.
            order = np.argsort(noise(_key(self._seed, 0), members.size)[0], kind="stable")
            self._phase[members[order]] = (np.arange(members.size) + 0.5) / max(members.size, 1)

    def epoch(self, number: int) -> list[Sample]:
        """All samples of one epoch in their order."""
        due = np.floor((number + 1) * self._weight + self._phase) - np.floor(
            number * self._weight + self._phase
        )
        members = np.flatnonzero(due > 0.5)
        keys = noise(_key(self._seed, number + 1), self._weight.size)[0]
        members = members[np.argsort(keys[members], kind="stable")]
        return [Sample(int(n), keys[n]) for n in members]

    def stream(self, start: int) -> Iterator[Sample]:
        """Samples from position ``start`` on, across epochs."""
        epoch = 0
        while True:
            samples = self.epoch(epoch)
            yield from samples[start:]
            start = max(0, start - len(samples))
            epoch += 1


def _key(seed: int, number: int) -> NDArray[np.uint64]:
    return noise(np.array([seed], dtype=np.uint64), 1)[0] + np.uint64(number)


def crop_box(
    key: np.uint64, height: int, width: int, scale: tuple[float, float]
) -> tuple[int, int, int, int, bool]:
    """A random resized crop and flip: top, left, height, width, flipped.

    Area share uniform in ``scale``, aspect log-uniform in 3/4..4/3; ten tries, then the largest centre square.
    Source: the crop of torchvision's RandomResizedCrop, as in the paper's table 8.
    """
    draws = noise(np.array([key], dtype=np.uint64), 41)[0] / np.float64(2**64)
    flip = bool(draws[40] < 0.5)
    for area_draw, aspect_draw, top, left in draws[:40].reshape(10, 4).tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        aspect = math.exp((2 * aspect_draw - 1) * math.log(4 / 3))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w, flip
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side, flip


def batches(photos: Photos, recipe: Recipe, start_step: int, workers: int) -> Iterator[Batch]:
    """Batches from ``start_step`` on, decoded by threads while the network works.

    Args:
        photos: Where samples come from.
        recipe: Batch size, crop, mask ratio, seed.
        start_step: Steps already made; the sequence goes on from there exactly.
        workers: Decoding threads.
    """
    config = recipe.config
    count = hidden_count(recipe.mask_ratio, config.patches)
    stream = Sampler(photos, recipe).stream(start_step * recipe.batch_size)

    def load(sample: Sample) -> Tensor:
        photo = photos.decode(sample.number)
        top, left, height, width, flip = crop_box(
            sample.key, photo.shape[1], photo.shape[2], recipe.crop_scale
        )
        side = [config.image_size, config.image_size]
        crop = resized_crop(photo, top, left, height, width, side, InterpolationMode.BICUBIC, antialias=True)
        return crop.flip(-1) if flip else crop

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:

        def submit() -> tuple[list[Future[Tensor]], Tensor]:
            samples = [next(stream) for _ in range(recipe.batch_size)]
            # Another key than the crop's: mask and crop of a sample are independent.
            keys = np.array([sample.key for sample in samples]) ^ np.uint64(0x5DEECE66D)
            hidden = torch.from_numpy(random_hidden(keys, config.patches, count))
            return [pool.submit(load, sample) for sample in samples], hidden

        ahead = [submit(), submit()]
        while True:
            futures, hidden = ahead.pop(0)
            ahead.append(submit())
            yield Batch(torch.stack([future.result() for future in futures]), hidden)
