"""Which part of a picture the network sees, and how it lies on a grid of patches. Numbers only.

``square``: one square of the upright picture, the centre one or a chosen one, on the model's own grid.
``whole``: the whole picture at its aspect, on a grid of about as many patches as the model's own. Grids have few
shapes, so the two directions may be scaled differently by up to ``MAX_STRETCH``; where that is not enough (a grid
was asked for, or the picture is longer than 10:1) the longer side is cut evenly at both ends instead.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

from model.errors import MaskError

Grid = tuple[int, int]

FITS = ("square", "whole")
#: Patches per side, of grids that are not the model's own.
MIN_CELLS, MAX_CELLS = 4, 40
#: How much one direction may be scaled more than the other before the picture is cut instead; 4 % is not seen.
MAX_STRETCH = 1.04
MIN_CROP = 8  # pixels; as small as a picture may be
_MAX_TEXT = 64  # characters of a crop or grid; anything longer cannot be valid


@dataclass(frozen=True)
class Placement:
    """A box of the upright original; what is outside of it was not looked at.

    Attributes:
        fit: One of ``FITS``.
        left: Pixels left of the box.
        top: Pixels above the box.
        width: Of the box.
        height: Of the box.
        original_width: Of the upright original.
        original_height: Of the upright original.
    """

    fit: str
    left: int
    top: int
    width: int
    height: int
    original_width: int
    original_height: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, by the attributes' names."""
        return asdict(self)


def place(
    size: tuple[int, int], own: Grid, *, fit: str, crop: tuple[int, int, int] | None, grid: Grid | None
) -> tuple[Placement, Grid]:
    """Where the network looks, and on what grid.

    Args:
        size: Width and height of the upright picture.
        own: The model's own grid, rows and columns.
        fit: One of ``FITS``.
        crop: Left, top and side of the square, pixels; None for the centre square.
        grid: Rows and columns for ``whole``; None for the ones that fit best.

    Raises:
        MaskError: The crop leaves the picture.
    """
    width, height = size
    if fit == "square":
        side = min(width, height)
        left, top, side = crop or ((width - side) // 2, (height - side) // 2, side)
        if min(left, top) < 0 or side < MIN_CROP or left + side > width or top + side > height:
            raise MaskError(
                f"crop is {left},{top},{side}; it must lie inside the upright picture of {width} x {height} pixels "
                f"and have a side of at least {MIN_CROP}.",
                code="crop",
                hint="Give left, top and side in pixels of the original, or leave crop out for the centre square.",
                field="crop",
            )
        return Placement(fit, left, top, side, side, width, height), own
    rows, columns = grid or best_grid(width / height, own[0] * own[1])
    box = _box(width, height, columns / rows)
    return Placement(fit, *box, width, height), (rows, columns)


def best_grid(aspect: float, patches: int) -> Grid:
    """Rows and columns of the grid that is nearest to an aspect and to a number of patches.

    One per cent of stretch counts as much as five per cent more or fewer patches; more than ``MAX_STRETCH``, which
    would cut the picture, is taken only where nothing else is left.
    """
    cells = range(MIN_CELLS, MAX_CELLS + 1)

    def cost(grid: Grid) -> tuple[bool, float]:
        rows, columns = grid
        stretch = abs(math.log(columns / rows / aspect))
        return stretch > math.log(MAX_STRETCH), stretch + 0.2 * abs(math.log(rows * columns / patches))

    return min(((rows, columns) for rows in cells for columns in cells), key=cost)


def _box(width: int, height: int, aspect: float) -> tuple[int, int, int, int]:
    """Left, top, width and height of the part that goes on a grid of this aspect."""
    if 1 / MAX_STRETCH <= width / height / aspect <= MAX_STRETCH:
        return 0, 0, width, height
    if width > height * aspect:
        cut = max(round(height * aspect), 1)
        return (width - cut) // 2, 0, cut, height
    cut = max(round(width / aspect), 1)
    return 0, (height - cut) // 2, width, cut


def read_crop(crop: str | tuple[int, int, int]) -> tuple[int, int, int]:
    """``left,top,side`` as text or as numbers.

    Raises:
        MaskError: It is neither.
    """
    left, top, side = _numbers(
        crop, r"(\d{1,6}),(\d{1,6}),(\d{1,6})", 3, "crop", "left,top,side like 40,0,512"
    )
    return left, top, side


def read_grid(grid: str | Grid, *, any_size: bool = False) -> Grid:
    """``ROWSxCOLUMNS`` as text or as numbers; ``any_size`` lets a model's own grid through, however small or large.

    Raises:
        MaskError: It is neither, or a side has too few or too many patches.
    """
    example = f"ROWSxCOLUMNS like 12x18, each {MIN_CELLS} to {MAX_CELLS}"
    rows, columns = _numbers(grid, r"(\d{1,3})[x×](\d{1,3})", 2, "grid", example)
    if not any_size and not (MIN_CELLS <= rows <= MAX_CELLS and MIN_CELLS <= columns <= MAX_CELLS):
        raise _unreadable(grid, "grid", example)
    return rows, columns


def _numbers(given: object, pattern: str, count: int, field: str, example: str) -> tuple[int, ...]:
    if isinstance(given, str) and len(given) <= _MAX_TEXT:
        found = re.fullmatch(pattern, re.sub(r"\s", "", given), re.ASCII)
        if found:
            return tuple(map(int, found.groups()))
    elif isinstance(given, tuple) and len(given) == count and all(type(one) is int for one in given):
        return tuple(given)
    raise _unreadable(given, field, example)


def _unreadable(given: object, field: str, example: str) -> MaskError:
    return MaskError(
        f"{field} is {str(given)[:60]!r}; it must be {example}.",
        code=field,
        hint=f"Correct {field}, or leave it out.",
        field=field,
    )
