"""Masked autoencoders: hide patches of a picture, let the model paint them back.

    from pathlib import Path
    from model import load
    result = load()("photo.jpg", ratio=0.75, seed=7)
    Path("triptych.png").write_bytes(result.sheet())

Public names are resolved on first use, so that ``import model`` and ``python -m model --help`` stay free of the
seconds that torch and timm take.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.checkpoints.store import load_network
    from model.config import SIZES, MAEConfig
    from model.errors import CheckpointError, DataError, ImageError, MaskError, RecipeError, UnmaskError
    from model.evaluate.features import Encoder, load_encoder
    from model.masking import STRATEGIES, Mask
    from model.network import MAE
    from model.options import Options
    from model.reconstruct import Reconstructor, load
    from model.result import Job, Prediction, Reconstruction, Sheet
    from model.scores import Score
    from model.views import EVERY_PANEL, PANELS

__version__ = "0.1.0"

_HOMES = {
    "model.checkpoints.store": ("load_network",),
    "model.config": ("SIZES", "MAEConfig"),
    "model.errors": ("CheckpointError", "DataError", "ImageError", "MaskError", "RecipeError", "UnmaskError"),
    "model.evaluate.features": ("Encoder", "load_encoder"),
    "model.masking": ("STRATEGIES", "Mask"),
    "model.network": ("MAE",),
    "model.options": ("Options",),
    "model.reconstruct": ("Reconstructor", "load"),
    "model.result": ("Job", "Prediction", "Reconstruction", "Sheet"),
    "model.scores": ("Score",),
    "model.views": ("EVERY_PANEL", "PANELS"),
}

__all__ = [
    "EVERY_PANEL",
    "MAE",
    "PANELS",
    "SIZES",
    "STRATEGIES",
    "CheckpointError",
    "DataError",
    "Encoder",
    "ImageError",
    "Job",
    "MAEConfig",
    "Mask",
    "MaskError",
    "Options",
    "Prediction",
    "RecipeError",
    "Reconstruction",
    "Reconstructor",
    "Score",
    "Sheet",
    "UnmaskError",
    "load",
    "load_encoder",
    "load_network",
]


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'model' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
