"""A training recipe: one TOML file an experiment, every key known, every default the paper's.

Recipes live in ``model/pretrain/recipes``; each file's header says hardware, cost, command and result.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from model.config import SIZES, MAEConfig
from model.errors import CheckpointError, RecipeError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run, but not where its data lies.

    Source of the defaults: arXiv 2111.06377, table 8, unless a comment says otherwise.
    """

    name: str  # the model's name in its weight file
    size: str = "vit_base"  # a key of model.config.SIZES
    target: Literal["pixel", "norm_pixel"] = "pixel"
    seed: int = 0  # decides every sample, crop, flip and mask

    steps: int  # optimiser steps in all
    batch_size: int = 4096  # photos a step
    mask_ratio: float = 0.75
    crop_scale: tuple[float, float] = (0.2, 1.0)  # share of the photo's area in a crop
    source_weights: dict[str, float] = field(
        default_factory=dict
    )  # photos a source gives an epoch, 0..1, default 1

    optimiser: Literal["adamw", "muon"] = "adamw"  # muon: block matrices by Muon, the rest by AdamW at `lr`
    lr: float = 2.4e-3  # real learning rate at the top (the paper's 1.5e-4 * batch / 256)
    muon_lr: float = 0.02  # learning rate of the block matrices, matched to AdamW's rms
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 0
    schedule: Literal["cosine", "trapezoid"] = "cosine"  # trapezoid: flat, then down; can be lengthened later
    decay_share: float = 0.3  # trapezoid: share of the steps in which the rate falls to zero
    clip_norm: float | None = None  # the paper does not clip

    precision: Literal["auto", "bf16", "fp32"] = (
        "auto"  # bf16: autocast, weights stay float32; auto: where fast
    )
    compile: bool = False  # torch.compile the blocks
    log_every: int = 20
    picture_every: int = 500
    checkpoint_every: int = 250

    def __post_init__(self) -> None:
        """Reject what cannot be trained, by name and with the reason."""
        if self.size not in SIZES:
            raise _bad("size", f"{self.size!r} is unknown; take one of {', '.join(SIZES)}")
        for name in ("steps", "batch_size", "log_every", "picture_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise _bad(name, f"{getattr(self, name)} must be at least 1")
        if not 0 < self.mask_ratio < 1:
            raise _bad("mask_ratio", f"{self.mask_ratio} must lie above 0 and below 1")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise _bad("crop_scale", f"{self.crop_scale} must rise within 0..1")
        if any(not 0 < weight <= 1 for weight in self.source_weights.values()):
            raise _bad("source_weights", "weights must lie above 0 and at most at 1")
        for name, allowed in (
            ("optimiser", ("adamw", "muon")),
            ("schedule", ("cosine", "trapezoid")),
            ("precision", ("auto", "bf16", "fp32")),
            ("target", ("pixel", "norm_pixel")),
        ):
            if getattr(self, name) not in allowed:
                raise _bad(name, f"{getattr(self, name)!r} is not one of {', '.join(allowed)}")

    @property
    def config(self) -> MAEConfig:
        """The network this recipe trains."""
        return MAEConfig.from_dict({**SIZES[self.size].to_dict(), "target": self.target})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as kept in checkpoints."""
        return asdict(self)


def load_recipe(name_or_path: str, **changes: Any) -> Recipe:
    """Read a recipe by file or by name, with command-line changes on top.

    Args:
        name_or_path: A TOML file, or the name of one in ``model/pretrain/recipes``.
        changes: Fields to replace; ``None`` means unchanged.

    Raises:
        RecipeError: No such recipe, a key is unknown or missing, or a value is out of range.
    """
    path = Path(name_or_path)
    shipped = resources.files("model.pretrain") / "recipes"
    if not path.is_file():
        path = Path(str(shipped / f"{name_or_path}.toml"))
    if not path.is_file():
        known = sorted(
            entry.name.removesuffix(".toml") for entry in shipped.iterdir() if entry.name.endswith(".toml")
        )
        raise _bad(
            "recipe", f"there is no file or recipe called {name_or_path!r}; known are {', '.join(known)}"
        )
    try:
        values = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise _bad("recipe", f"{path.name} is no valid TOML: {error}") from error
    values |= {key: value for key, value in changes.items() if value is not None}
    known_keys = {entry.name for entry in fields(Recipe)}
    if unknown := sorted(set(values) - known_keys):
        raise _bad(unknown[0], f"unknown key in {path.name}; known are {', '.join(sorted(known_keys))}")
    for key in ("crop_scale", "betas"):
        if key in values:
            values[key] = tuple(values[key])
    try:
        return Recipe(**values)
    except (TypeError, CheckpointError) as error:
        raise _bad("recipe", f"{path.name}: {error}") from error


def _bad(field_name: str, message: str) -> RecipeError:
    return RecipeError(
        f"{field_name}: {message}.", code="recipe", hint="Correct the recipe file.", field=field_name
    )
