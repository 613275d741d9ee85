"""Fixed 2-D sine-cosine positions, in the channel order of the public weights.

The first half of the channels encodes the column (x), the second half the row (y); inside each half all
sines come first, then all cosines. Swapping the halves changes predictions by a third, silently.
Source: arXiv 2111.06377, appendix A; order as in facebookresearch/mae (checked channel by channel in tests).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Grid = tuple[int, int]

#: Names of the tables of positions: buffers of the network, which public files store beside the weights.
POSITIONS = ("pos_embed", "decoder_pos_embed")


def sincos_positions(rows: int, columns: int, width: int, trained: Grid | None = None) -> Tensor:
    """``sincos_table`` as a tensor."""
    import torch  # here, so that a service whose engine is another one starts without it

    return torch.from_numpy(sincos_table(rows, columns, width, trained))


def sincos_table(rows: int, columns: int, width: int, trained: Grid | None = None) -> NDArray[np.float32]:
    """Position table for any grid, with one zero row in front for the class token.

    Args:
        rows: Patch rows of the grid.
        columns: Patch columns of the grid.
        width: Token width, a multiple of 4.
        trained: Grid of a model that is to see this one stretched over its own: patch i of n then stands at
            (i + 1/2) * trained / n - 1/2. As good as resizing the table (cosine 0.9993); counting on as if the
            picture were larger is not (0.85 at 20 x 20).

    Returns:
        ``[1, 1 + rows * columns, width] float32``; cells in row-major order.
    """
    if width % 4:
        raise ValueError(f"width must be a multiple of 4, not {width}")
    quarter = width // 4
    # float64 inside: the public tables were made in double precision and rounded once.
    frequency = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)
    own_rows, own_columns = trained or (rows, columns)
    y, x = np.meshgrid(_places(rows, own_rows), _places(columns, own_columns), indexing="ij")
    x_angle = x.reshape(-1, 1) * frequency
    y_angle = y.reshape(-1, 1) * frequency
    cells = np.concatenate([np.sin(x_angle), np.cos(x_angle), np.sin(y_angle), np.cos(y_angle)], axis=1)
    return np.concatenate([np.zeros((1, width)), cells]).astype(np.float32)[None]


def _places(count: int, trained: int) -> NDArray[Any]:
    """Centres of ``count`` patches, in patches of the trained grid."""
    places = np.arange(count, dtype=np.float64)
    return places if count == trained else (places + 0.5) * (trained / count) - 0.5


def resized(table: Tensor, own: Grid, grid: Grid) -> Tensor:
    """A position table for another grid than its own.

    The formula's table is computed anew at the places of the other grid's patches; any other one (a public file
    may store what it likes) is resized bicubically in both directions, as the public code does.

    Args:
        table: ``[1, 1 + L, width]`` for ``own``.
        own: Rows and columns it was made for.
        grid: Rows and columns wanted.

    Returns:
        ``[1, 1 + rows * columns, width]``; the very table where the grids are equal.
    """
    if grid == own:
        return table
    import torch

    width = table.shape[-1]
    if _is_formula(table, own):
        return _formula(grid, own, width).to(table)
    cells = table[:, 1:].float().reshape(1, *own, width).permute(0, 3, 1, 2)
    cells = torch.nn.functional.interpolate(cells, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], cells.flatten(2).transpose(1, 2).to(table)], dim=1)


def unrounded(table: Tensor) -> Tensor:
    """A stored table, in float32 where it is the formula's rounded to half precision.

    Rounded, it would be resized on other grids as if it were learned, and bind an engine to its own.
    """
    import torch

    half = table.dtype in (torch.float16, torch.bfloat16) and not table.is_meta
    if not half or table.ndim != 3 or len(table) != 1 or table.shape[-1] % 4:
        return table
    side = math.isqrt(max(table.shape[1] - 1, 0))
    if 1 + side * side != table.shape[1] or not _is_formula(table, (side, side)):
        return table
    return sincos_positions(side, side, table.shape[-1])


def _is_formula(table: Tensor, own: Grid) -> bool:
    """Whether a table is the formula's, as far as its type can say: half precision rounds by up to half its step."""
    import torch

    formula = _formula(own, own, table.shape[-1])
    rounding = torch.finfo(table.dtype).eps / 2
    return torch.allclose(table.float().cpu(), formula, rtol=rounding, atol=1e-5)


# Pictures of one shape tend to follow each other; at most 8 MB each, for the largest grid and model.
@lru_cache(maxsize=8)
def _formula(grid: Grid, trained: Grid, width: int) -> Tensor:
    import torch

    with torch.inference_mode(False):  # or whoever comes first would decide whether training may use it
        return sincos_positions(*grid, width, trained)
