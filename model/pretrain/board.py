"""Curves and sheets for TensorBoard, where that package is installed (the extra ``tensorboard``)."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Board:
    """Events of one run in ``out/tensorboard``; does nothing where TensorBoard is not installed.

    Args:
        out: The run's folder.
        start: Steps already made; what a killed process wrote after them is taken back.
    """

    def __init__(self, out: Path, start: int) -> None:
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of its own dependencies
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Record numbers by name."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def sheet(self, step: int, sheet: NDArray[np.uint8]) -> None:
        """Record a picture ``[H, W, 3]``."""
        if self._writer:
            self._writer.add_image("pictures", sheet, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is still held back."""
        if self._writer:
            self._writer.close()
