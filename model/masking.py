"""Which patches are hidden: the strategies of the paper, an explicit list, a drawing.

A ``Mask`` is a plain value made outside the network. Random choices come from a hash of (seed, patch number)
in 64-bit integers, not from a framework's generator: the same seed gives the same mask on every machine,
device and library version (docs/decisions/0001). Training draws its masks with ``random_hidden`` below, the
vectorised form of the same rule.

Source: arXiv 2111.06377 sec. 3 and fig. 6 (random, grid); BEiT, arXiv 2106.08254 alg. 1 (block).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.errors import MaskError

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Grid = tuple[int, int]

MAX_SEED = 2**32 - 1
DEFAULT_RATIO = "0.75"


@dataclass(frozen=True, eq=False)
class Mask:
    """Which patches of a grid are hidden.

    Attributes:
        grid: Rows and columns.
        hidden: ``[L] bool``, row-major, True = hidden (the paper's 1).
    """

    grid: Grid
    hidden: Bools

    @property
    def hidden_count(self) -> int:
        """Number of hidden patches."""
        return int(self.hidden.sum())

    @property
    def ratio(self) -> float:
        """True share hidden, 0..1."""
        return self.hidden_count / self.hidden.size

    @property
    def indices(self) -> list[int]:
        """Hidden patches as ascending row-major indices."""
        return [int(i) for i in np.flatnonzero(self.hidden)]

    @property
    def ids_keep(self) -> Ints:
        """Visible patches ``[K] int64``, ascending: order does not matter to the network, so it is fixed."""
        return np.flatnonzero(~self.hidden).astype(np.int64)

    @property
    def ids_restore(self) -> Ints:
        """``[L] int64``: where patch i stands in (visible ascending, then hidden ascending)."""
        return np.argsort(np.argsort(self.hidden, kind="stable"), kind="stable").astype(np.int64)

    @property
    def digest(self) -> str:
        """Names the mask: the first 16 hex digits of SHA-256 over its bits.

        One bit per patch, row-major, the first in the highest bit of the first byte, 1 is hidden.
        """
        return hashlib.sha256(np.packbits(self.hidden).tobytes()).hexdigest()[:16]


# --- counts -----------------------------------------------------------------------------------------------


def hidden_count(ratio: float | str | Fraction, patches: int) -> int:
    """Number of patches a ratio hides: all but floor(L * (1 - ratio)), at least one on either side.

    The product is taken on the ratio's decimal text (0.9 means nine tenths), so no patch is lost to floating
    point; equal to the public code on every whole percent of its own grid sizes.

    Raises:
        MaskError: The ratio is not a number above 0 and below 1.
    """
    text = str(ratio)
    exponent = re.search(r"[eE][+-]?(.*)", text)
    try:
        # Of 1e-9999999 Fraction makes a number of ten million digits, and no thread runs meanwhile.
        exact = Fraction(text) if exponent is None or len(exponent[1]) <= 3 else Fraction(-1)
    except (ValueError, ZeroDivisionError):
        exact = Fraction(-1)
    if not 0 < exact < 1:
        raise MaskError(
            f"ratio is {text:.40}; it must be a number above 0 and below 1.",
            code="mask-ratio",
            hint="Give the share of patches to hide, for example 0.75.",
            field="ratio",
        )
    # A share above 0 leaves fewer visible than there are: one is hidden at least.
    return patches - max(math.floor(patches * (1 - exact)), 1)


# --- noise --------------------------------------------------------------------------------------------------


def noise(keys: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """``count`` random 64-bit numbers for each key: ``[N] -> [N, count]``.

    SplitMix64 (Steele, Lea, Flood 2014): integers only, so equal everywhere and for ever.
    """
    with np.errstate(over="ignore"):
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return _mix(_mix(keys)[:, None] + steps)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def random_hidden(keys: NDArray[np.uint64], patches: int, count: int) -> Bools:
    """One uniformly random mask a key: ``[N] uint64 -> [N, L] bool`` with ``count`` hidden in each row.

    The patches with the smallest noise stay visible, as in the paper's shuffle-and-keep.
    """
    order = np.argsort(noise(keys, patches), axis=1, kind="stable")
    hidden = np.ones(order.shape, dtype=bool)
    np.put_along_axis(hidden, order[:, : patches - count], False, axis=1)
    return hidden


def draws(seed: int, count: int) -> NDArray[np.uint64]:
    """``[count] uint64``: the first draws of one seed."""
    return noise(np.array([seed], dtype=np.uint64), count)[0]


# --- strategies ---------------------------------------------------------------------------------------------


def random_mask(grid: Grid, count: int, seed: int) -> Bools:
    """Uniformly random patches, the paper's default."""
    return random_hidden(np.array([seed], dtype=np.uint64), grid[0] * grid[1], count)[0]


def random_order(grid: Grid, seed: int) -> NDArray[np.intp]:
    """All patches by chance."""
    return np.argsort(draws(seed, grid[0] * grid[1]), kind="stable")


def grid_mask(grid: Grid, count: int, seed: int) -> Bools:
    """A regular grid: the paper keeps one patch of every 2x2 cell, 75 % hidden.

    Other counts extend it: visible patches are dealt out cell by cell, one place of the 2x2 cells after the
    other (upper left, lower right, upper right, lower left). So at 75 % just the upper left ones are visible;
    below 75 % the further places fill up, in an order drawn from the seed; above 75 %, where 2x2 cells cannot
    do, an even spread is drawn from the coarser grid of upper left places, again by the seed.
    """
    order = grid_order(grid, seed)
    hidden = np.ones(order.size, dtype=bool)
    hidden[order[: order.size - count]] = False
    return hidden


def grid_order(grid: Grid, seed: int) -> NDArray[np.intp]:
    """All patches, one place of the 2x2 cells after the other; inside a place by chance."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    place = np.array([[0, 2], [3, 1]])[rows % 2, columns % 2]
    return np.lexsort((draws(seed, rows.size), place))


def block_mask(grid: Grid, count: int, seed: int) -> Bools:
    """Large rectangles until ``count`` patches are hidden.

    Blocks have a random area of at least 16 patches and an aspect between 0.3 and 1/0.3. BEiT stops when ten
    draws in a row do not fit and so hides too few in a third of its masks; here the rest grows from the edge
    of the blocks, so the count is exact and the shape stays a block.
    """
    rows, columns = grid
    chance = iter(draws(seed, 4096).tolist())
    hidden = np.zeros(grid, dtype=bool)
    failures = 0
    while (missing := count - int(hidden.sum())) > 0 and failures < 10:
        area = 16 + _unit(chance) * max(missing - 16, 0)
        aspect = math.exp((2 * _unit(chance) - 1) * math.log(1 / 0.3))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        top, left = _unit(chance), _unit(chance)
        failures += 1
        if height >= rows or width >= columns:
            continue
        top, left = int(top * (rows - height + 1)), int(left * (columns - width + 1))
        block = hidden[top : top + height, left : left + width]
        if 0 < block.size - int(block.sum()) <= missing:
            block[...] = True
            failures = 0
    _grow(hidden, count - int(hidden.sum()), draws(seed ^ MAX_SEED, hidden.size))
    return hidden.reshape(-1)


def _unit(chance: Iterator[int]) -> float:
    """The next draw as a number in 0..1."""
    return next(chance) / 2**64


def _grow(hidden: Bools, missing: int, order: NDArray[np.uint64]) -> None:
    """Hide ``missing`` more patches, each beside as many hidden ones as possible (ties by ``order``)."""
    rank = np.argsort(np.argsort(order, kind="stable"), kind="stable").reshape(hidden.shape)
    for _ in range(missing):
        padded = np.pad(hidden, 1).astype(int)
        beside = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
        score = np.where(hidden, -1, beside * hidden.size + rank)
        hidden[np.unravel_index(score.argmax(), hidden.shape)] = True


def block_order(grid: Grid, seed: int) -> NDArray[np.intp]:
    """All patches along a curve that stays near itself (Morton's), begun anywhere."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    # On a square of 64 x 64; cells of any grid are spread over it.
    y, x = rows * 64 // grid[0], columns * 64 // grid[1]
    code = sum(((y >> bit & 1) << (2 * bit + 1)) | ((x >> bit & 1) << (2 * bit)) for bit in range(6))
    return np.roll(np.argsort(code, kind="stable"), int(draws(seed, 1)[0] % np.uint64(rows.size)))


class Sampler(NamedTuple):
    """A strategy that needs a count and a seed.

    Attributes:
        mask: Of a grid, a count and a seed: ``[L] bool``, as many true as the count.
        order: Of a grid and a seed: all patches in the order in which complementary masks hide them (``cover``).
    """

    mask: Callable[[Grid, int, int], Bools]
    order: Callable[[Grid, int], NDArray[np.intp]]


#: Strategies by their names.
SAMPLERS = {
    "random": Sampler(random_mask, random_order),
    "block": Sampler(block_mask, block_order),
    "grid": Sampler(grid_mask, grid_order),
}

#: Every strategy a request may name.
STRATEGIES = (*SAMPLERS, "indices", "drawing")


def sample_mask(strategy: str, grid: Grid, count: int, seed: int) -> Mask:
    """A mask of a sampled strategy hiding exactly ``count`` patches.

    Args:
        strategy: A key of ``SAMPLERS``.
        grid: Rows and columns.
        count: Patches to hide, 1..L-1.
        seed: 0..``MAX_SEED``; the same seed gives the same mask for ever.

    Raises:
        MaskError: As ``check_sampling``.
    """
    check_sampling(strategy, grid, count, seed)
    return Mask(grid, SAMPLERS[strategy].mask(grid, count, seed))


def check_sampling(strategy: str, grid: Grid, count: int, seed: int) -> None:
    """Refuse what gives no sampled mask.

    Raises:
        MaskError: An argument of ``sample_mask`` is out of its range.
    """
    if strategy not in SAMPLERS:
        raise MaskError(
            f"strategy is {strategy!r:.60}; it must be one of {', '.join(STRATEGIES)}.",
            code="mask-strategy",
            hint="Choose one of the listed strategies.",
            field="strategy",
        )
    patches = grid[0] * grid[1]
    if not 1 <= count < patches:
        raise MaskError(
            f"hidden_count is {count}; it must lie between 1 and {patches - 1} for a grid of {patches} patches.",
            code="mask-count",
            hint="Hide at least one patch and leave at least one visible.",
            field="hidden_count",
        )
    if not 0 <= seed <= MAX_SEED:
        raise MaskError(
            f"seed is {seed}; it must lie between 0 and {MAX_SEED}.",
            code="mask-seed",
            hint="Give a whole number in that range, or leave the seed out.",
            field="seed",
        )


def mask_from_indices(indices: Sequence[int], grid: Grid) -> Mask:
    """A mask from a list of hidden patches, row-major, without repetition.

    Raises:
        MaskError: An index is out of range or repeated, or none or all patches are hidden.
    """
    patches = grid[0] * grid[1]
    bad = next((i for i in indices if not 0 <= i < patches), None)
    if bad is not None or len(set(indices)) != len(indices):
        wrong = f"{bad} is outside 0..{patches - 1}" if bad is not None else "an index is repeated"
        raise MaskError(
            f"indices are wrong: {wrong} (grid of {grid[0]} rows and {grid[1]} columns).",
            code="mask-indices",
            hint="List each hidden patch once, counted row by row from 0.",
            field="indices",
        )
    hidden = np.zeros(patches, dtype=bool)
    hidden[list(indices)] = True
    return Mask(grid, _some_but_not_all(hidden, "indices"))


def mask_from_drawing(drawing: NDArray[np.uint8], grid: Grid) -> Mask:
    """A mask from a black and white picture: a patch is hidden where its mean is above one half (white).

    Args:
        drawing: ``[H, W] uint8``, white is 255; any size of at least the grid.
        grid: Rows and columns.

    Raises:
        MaskError: It is smaller than the grid, or hides nothing or everything.
    """
    rows, columns = grid
    height, width = drawing.shape
    if height < rows or width < columns:
        raise MaskError(
            f"drawing is {width} x {height} pixels; it needs at least {columns} x {rows}, one pixel per patch.",
            code="mask-drawing",
            hint="Draw the mask at the size of the picture.",
            field="drawing",
        )
    # Cell borders at the nearest pixel; reduceat sums each cell, whatever its size.
    tops = np.arange(rows) * height // rows
    lefts = np.arange(columns) * width // columns
    sums = np.add.reduceat(np.add.reduceat(drawing, tops, axis=0, dtype=np.int64), lefts, axis=1)
    sizes = np.outer(np.diff([*tops, height]), np.diff([*lefts, width]))
    return Mask(grid, _some_but_not_all((2 * sums > 255 * sizes).reshape(-1), "drawing"))


def _some_but_not_all(hidden: Bools, field: str) -> Bools:
    if not 0 < int(hidden.sum()) < hidden.size:
        what = "every patch" if hidden.all() else "no patch"
        raise MaskError(
            f"{field} hides {what}; between 1 and {hidden.size - 1} of {hidden.size} must be hidden.",
            code=f"mask-{field}",
            hint="Hide at least one patch and leave at least one visible.",
            field=field,
        )
    return hidden
