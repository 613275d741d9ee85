"""The one sequence of samples: which photo, which crop, which flip, which mask, at every step of a run.

Everything is a function of (seed, epoch, photo) through the integer hash of ``model.masking``: nothing is
drawn from a generator's state. So a run resumes at any step by its number alone, and both data paths
(``host``, ``resident``) and any number of processes see the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from model.errors import DataError, listed
from model.masking import MAX_SEED, SAMPLERS, Bools, Ints, draws, hidden_count, noise, random_hidden
from model.pretrain.data import Photos
from model.pretrain.recipe import Recipe

Keys = NDArray[np.uint64]
T = TypeVar("T")

#: Photos tried in place of one that cannot be decoded.
STAND_INS = 16
#: Broken photos that stop no run, however few photos there are: a share of a small folder is less than one photo.
FEW_BROKEN = 3


class Sample(NamedTuple):
    """One draw: which photo, and the key of everything random about it."""

    number: int
    key: np.uint64


@dataclass(frozen=True)
class Batch:
    """What one training step consumes: a process's share of the batch.

    Attributes:
        images: ``[B, 3, H, W] uint8``.
        hidden: ``[B, L] bool``, the same count in every row.
        broken: Numbers of photos that could not be decoded and were replaced.
    """

    images: Tensor
    hidden: Tensor
    broken: frozenset[int] = frozenset()


class Sampler:
    """The endless sequence of samples of a recipe.

    An epoch holds every photo of weight 1 once; of a source of weight w it holds another share w each time, so
    that all its photos come equally often in the long run. With ``crops`` every photo comes as often in a row, each
    time with another key.
    """

    def __init__(self, photos: Photos, recipe: Recipe) -> None:
        sources = np.array([entry.source for entry in photos.entries])
        self._seed = recipe.seed
        self._crops = recipe.crops
        self._weighted = bool(recipe.source_weights)
        self._weight = np.ones(len(photos))
        self._phase = np.zeros(len(photos))
        for source, weight in recipe.source_weights.items():
            members = np.flatnonzero(sources == source)
            self._weight[members] = weight
            # Evenly spread phases, dealt out at random: each epoch takes an equal share.
            order = np.argsort(noise(_key(self._seed, 0), members.size)[0], kind="stable")
            self._phase[members[order]] = (np.arange(members.size) + 0.5) / max(members.size, 1)

    def epoch(self, number: int) -> tuple[Ints, Keys]:
        """All samples of one epoch in their order: which photos, and the keys; both ``[S]``."""
        members = np.flatnonzero(self._due(number))
        keys = noise(_key(self._seed, number + 1), self._weight.size)[0]
        members = members[np.argsort(keys[members], kind="stable")]
        each = keys[members][:, None]
        if self._crops > 1:
            further = noise(keys[members] ^ np.uint64(0x7FEB352D), self._crops - 1)
            each = np.concatenate([each, further], axis=1)
        return members.repeat(self._crops), each.reshape(-1)

    def length(self, number: int) -> int:
        """Samples of one epoch, counted without making them."""
        photos = int(self._due(number).sum()) if self._weighted else self._weight.size
        return photos * self._crops

    @property
    def mean_length(self) -> int:
        """Samples of an epoch, at least one photo's; of weighted sources the mean, for epochs differ a little."""
        return max(round(float(self._weight.sum())), 1) * self._crops

    def _due(self, number: int) -> Bools:
        """``[N] bool``: which photos come in an epoch."""
        before, behind = (np.floor(n * self._weight + self._phase) for n in (number, number + 1))
        return behind - before > 0.5

    def batches(self, size: int, start_step: int, part: slice) -> Iterator[tuple[int, list[Sample]]]:
        """Step by step from ``start_step`` on: its number, and the ``part`` of its batch this process computes.

        Batches run on across epochs; samples before the first step are counted and not made.
        """
        epoch, start = 0, start_step * size
        while start >= (length := self.length(epoch)):
            start -= length
            epoch += 1
        numbers, keys = (of[start:] for of in self.epoch(epoch))
        for step in count(start_step):
            while numbers.size < size:
                epoch += 1
                further = self.epoch(epoch)
                numbers, keys = (np.concatenate(pair) for pair in zip((numbers, keys), further, strict=True))
            batch = zip(numbers[:size][part].tolist(), keys[:size][part], strict=True)
            yield step, [Sample(number, key) for number, key in batch]
            numbers, keys = numbers[size:], keys[size:]


def _key(seed: int, number: int) -> Keys:
    return draws(seed, 1) + np.uint64(number)


def stand_ins(sample: Sample, photos: int) -> list[int]:
    """Photos to try, in this order, when the sample's own cannot be decoded: a function of the sample alone."""
    # Another key than the crop's and the mask's.
    key = int(sample.key ^ np.uint64(0xB5297A4D))
    return [int(draw % np.uint64(photos)) for draw in draws(key, STAND_INS)]


def first_whole(sample: Sample, photos: Photos, find: Callable[[int], T | None]) -> tuple[T, list[int]]:
    """What ``find`` gives for the sample's photo, or for the first of its stand-ins that is not broken.

    Args:
        sample: The photo's number and the key of its stand-ins.
        photos: All of them.
        find: Gives None for a photo that cannot be decoded.

    Returns:
        What was found, and the numbers of the photos that were met broken.

    Raises:
        DataError: Photo and stand-ins are all broken.
    """
    broken: list[int] = []
    for number in (sample.number, *stand_ins(sample, len(photos))):
        if (found := find(number)) is not None:
            return found, broken
        broken.append(number)
    raise DataError(
        f"Neither {photos.entries[sample.number].place} nor any of its {STAND_INS} stand-ins can be decoded.",
        code="data-broken",
        hint="Remove or replace the broken photos.",
        field="data",
    )


def refuse_too_many_broken(broken: set[int], photos: Photos, recipe: Recipe) -> None:
    """Stop a run on a set that is damaged as a whole.

    Raises:
        DataError: More than ``recipe.max_broken_share`` of the photos, and more than ``FEW_BROKEN`` (where the share
            is 0, any), cannot be decoded.
    """
    share = recipe.max_broken_share
    if len(broken) <= (max(FEW_BROKEN, share * len(photos)) if share else 0):
        return
    named = listed([photos.entries[number].name for number in sorted(broken)], 10)
    raise DataError(
        f"At least {len(broken)} of {len(photos)} photos cannot be decoded ({named}), "
        f"more than max_broken_share = {recipe.max_broken_share:g} of them.",
        code="data-broken",
        hint="Remove or replace them, pack the photos without them (python -m model shards), or raise max_broken_share "
        "in the recipe.",
        field="data",
    )


def batch_record(photos: Photos, recipe: Recipe, step: int) -> dict[str, Any]:
    """Which photos the whole batch of a step holds, JSON-ready: enough to make it again.

    ``key`` decides the sample's crop, flip and mask; as text, because JSON's numbers end at 2**53 for many readers.
    """
    _, samples = next(Sampler(photos, recipe).batches(recipe.batch_size, step, slice(None)))
    named = [(photos.entries[sample.number], sample) for sample in samples]
    return {
        "step": step,
        "seed": recipe.seed,
        "samples": [
            {"photo": entry.name, "within": str(entry.path), "number": sample.number, "key": str(sample.key)}
            for entry, sample in named
        ],
    }


def masks(samples: Sequence[Sample], recipe: Recipe, step: int) -> Bools:
    """Masks of the samples of one step: ``[B, L] bool``, True = hidden, the same count in every row.

    A range of ratios is drawn from once a step, so that the batch stays rectangular; the strategy is drawn once
    a sample.
    """
    patches = recipe.config.patches
    low, high = recipe.ratio_range
    drawn = float(noise(_key(recipe.seed ^ 0x2545F491, step), 1)[0, 0]) / 2**64
    hidden_number = hidden_count(low + (high - low) * drawn, patches)
    # Another key than the crop's: mask and crop of a sample are independent.
    keys = np.array([sample.key for sample in samples], dtype=np.uint64) ^ np.uint64(0x5DEECE66D)
    hidden = random_hidden(keys, patches, hidden_number)
    names = list(recipe.masking)
    edges = np.cumsum(list(recipe.masking.values()))[:-1]
    chosen = np.searchsorted(edges, noise(keys ^ np.uint64(0x9E3779B1), 1)[:, 0] / 2**64, side="right")
    for row, place in enumerate(chosen.tolist()):
        if names[place] != "random":
            seed = int(keys[row]) & MAX_SEED
            hidden[row] = SAMPLERS[names[place]].mask(recipe.config.grid, hidden_number, seed)
    return hidden
