"""Several masks for one picture, so that every patch is predicted, and what their predictions have in common.

``complete``: complementary masks; every patch is hidden in at least one of them and predicted from the others.
``ensemble``: the same question asked with several seeds: the mean prediction, and how much it varies.
Arrays only: no network.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model import views
from model.errors import MaskError
from model.masking import MAX_SEED, SAMPLERS, Grid, Mask, check_sampling, sample_mask

Floats = NDArray[np.float32]

COVERS = ("single", "complete", "ensemble")
MIN_SAMPLES, MAX_SAMPLES, DEFAULT_SAMPLES = 2, 32, 8
#: Masks of ``complete`` where nobody said how much each may hide: a quarter each, every patch exactly once.
DEFAULT_COMPLETE = 4


def complement(mask: Mask) -> tuple[Mask, Mask]:
    """A given mask and its opposite: every patch is hidden exactly once."""
    return mask, Mask(mask.grid, ~mask.hidden)


def complementary(strategy: str, grid: Grid, count: int | None, seed: int) -> tuple[Mask, ...]:
    """Masks of one strategy that together hide every patch.

    All patches are put in an order once, and each mask hides the next ``count`` of it, beginning anew at the end:
    no patch is hidden more than once before every one was. The order is the strategy's: four masks of ``grid`` are
    the four shifts of the grid, and each mask of ``block`` hides coherent areas.

    Args:
        strategy: ``random``, ``block`` or ``grid``.
        grid: Rows and columns.
        count: Patches each mask hides; None for ``DEFAULT_COMPLETE`` masks that hide each patch exactly once.
        seed: Decides the order.

    Raises:
        MaskError: As ``sample_mask``; or it would take more than ``MAX_SAMPLES`` masks.
    """
    patches = grid[0] * grid[1]
    check_sampling(strategy, grid, patches // 2 if count is None else count, seed)
    if count is None:
        borders = np.arange(DEFAULT_COMPLETE + 1) * patches // DEFAULT_COMPLETE
        spans = list(pairwise(borders.tolist()))
    else:
        number = math.ceil(patches / count)
        if number > MAX_SAMPLES:
            raise MaskError(
                f"Hiding {count} of {patches} patches at a time takes {number} masks to cover the picture; "
                f"the limit is {MAX_SAMPLES}.",
                code="cover",
                hint=f"Hide at least {math.ceil(patches / MAX_SAMPLES)} patches at a time, or leave the ratio out.",
                field="cover",
            )
        spans = [(start * count, (start + 1) * count) for start in range(number)]
    order = SAMPLERS[strategy].order(grid, seed)
    masks = []
    for start, stop in spans:
        hidden = np.zeros(patches, dtype=bool)
        hidden[order[np.arange(start, stop) % patches]] = True
        masks.append(Mask(grid, hidden))
    return tuple(masks)


def ensemble(strategy: str, grid: Grid, count: int, seed: int, samples: int) -> tuple[Mask, ...]:
    """Masks of ``samples`` seeds from ``seed`` on; each can be had alone under its own seed.

    Raises:
        MaskError: As ``sample_mask``.
    """
    check_sampling(strategy, grid, count, seed)  # a wrong seed, which the sum below would hide
    return tuple(
        sample_mask(strategy, grid, count, (seed + number) % (MAX_SEED + 1)) for number in range(samples)
    )


class Merged:
    """Predictions of one picture under several masks, added one at a time.

    A patch that was hidden counts only with the predictions made while it was; one that never was (it carries no
    loss) with the mean of all. The spread is running (Welford's), for 32 pictures would not fit. One prediction
    alone comes out as it is.
    """

    def __init__(self) -> None:
        self._added = 0

    def add(self, picture: Floats, mask: Mask) -> None:
        """Take the prediction ``[H, W, C]`` made under a mask."""
        hidden = mask.hidden.reshape(mask.grid)
        self._added += 1
        if self._added == 1:
            self._side = len(picture) // mask.grid[0]  # of a patch, pixels
            self._raw, self._mean = picture, picture  # where it was not hidden, the mean is not looked at
            self._squares = np.zeros(mask.grid)
            self._times = hidden.astype(np.int64)
            return
        self._times += hidden
        share = self._per_pixel(hidden / np.maximum(self._times, 1)).astype(np.float32)
        difference = picture - self._mean
        self._mean = self._mean + share * difference
        square = views.by_patch(difference * (picture - self._mean), self._side)
        self._squares += hidden * square.mean(axis=(1, 3, 4), dtype=np.float64)
        self._raw = self._raw + (picture - self._raw) / np.float32(self._added)

    def pixels(self) -> Floats:
        """The mean prediction ``[H, W, C]``."""
        if self._added == 1:
            return self._raw
        return np.where(self._per_pixel(self._times > 0), self._mean, self._raw)

    def spread(self) -> Floats:
        """Deviation of each patch's predictions from each other ``[rows, columns]``: the root of the mean variance
        (unbiased) over its pixels and colours, in units of the picture. NaN where fewer than two were made.
        """  # noqa: D205 (one thought)
        variance = self._squares / np.maximum(self._times - 1, 1)
        return np.where(self._times > 1, np.sqrt(variance.clip(0)), np.nan).astype(np.float32)

    def _per_pixel(self, cells: NDArray[Any]) -> NDArray[Any]:
        """``[rows, columns]`` to ``[H, W, 1]``."""
        return views.per_pixel(cells, self._side)[..., None]
