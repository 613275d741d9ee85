"""Fixed 2-D sine-cosine positions, in the channel order of the public weights.

The first half of the channels encodes the column (x), the second half the row (y); inside each half all
sines come first, then all cosines. Swapping the halves changes predictions by a third, silently.
Source: arXiv 2111.06377, appendix A; order as in facebookresearch/mae (checked channel by channel in tests).
"""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Position table for any grid, with one zero row in front for the class token.

    Args:
        rows: Patch rows of the grid.
        columns: Patch columns of the grid.
        width: Token width, a multiple of 4.

    Returns:
        ``[1, 1 + rows * columns, width] float32``; cells in row-major order.
    """
    if width % 4:
        raise ValueError(f"width must be a multiple of 4, not {width}")
    quarter = width // 4
    # float64 inside: the public tables were made in double precision and rounded once.
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    x_angle = x.reshape(-1, 1) * frequency
    y_angle = y.reshape(-1, 1) * frequency
    cells = torch.cat([x_angle.sin(), x_angle.cos(), y_angle.sin(), y_angle.cos()], dim=1)
    table = torch.cat([torch.zeros(1, width, dtype=torch.float64), cells])
    return table.float().unsqueeze(0)
