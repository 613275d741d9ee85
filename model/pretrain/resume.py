"""Training state on disk: everything that makes the next step the same as if nothing had happened.

Samples, crops and masks depend on (seed, step) alone, so the state is step, network, optimisers and recipe.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.errors import CheckpointError
from model.pretrain.recipe import Recipe

LATEST = "LATEST"


def save(
    folder: Path, step: int, network: nn.Module, optimisers: list[torch.optim.Optimizer], recipe: Recipe
) -> Path:
    """Write one state and point ``LATEST`` at it; a crash at any moment leaves the previous one intact.

    Args:
        folder: The run's folder.
        step: Steps made so far.
        network: Its parameters are stored; positions are a formula.
        optimisers: In a fixed order.
        recipe: What the run was started with.

    Returns:
        The file written.
    """
    state = {
        "step": step,
        "network": {key: value.detach() for key, value in network.named_parameters()},
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        "recipe": recipe.to_dict(),
    }
    path = folder / f"state-{step:07d}.pt"
    _atomically(path, lambda part: torch.save(state, part))
    _atomically(folder / LATEST, lambda part: part.write_text(path.name))
    for old in sorted(folder.glob("state-*.pt"))[:-2]:
        old.unlink()
    return path


def _atomically(path: Path, write: Any) -> None:
    part = path.with_name(path.name + ".part")
    write(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)


def restore(folder: Path, network: nn.Module, optimisers: list[torch.optim.Optimizer], recipe: Recipe) -> int:
    """Load the state ``LATEST`` points at.

    Returns:
        Steps made so far.

    Raises:
        CheckpointError: There is none, or it was written for another network.
    """
    pointer = folder / LATEST
    if not pointer.is_file():
        raise CheckpointError(
            f"There is nothing to resume in {folder}.",
            code="resume-missing",
            hint="Leave out --resume to start a new run, or give the run's folder with --out.",
        )
    # Our own file, but read as a stranger's: tensors and plain values only.
    state = torch.load(folder / pointer.read_text(), map_location="cpu", weights_only=True)  # noqa: TID251
    saved, wanted = state["recipe"], recipe.to_dict()
    for key in ("size", "target", "optimiser", "batch_size", "seed", "mask_ratio"):
        if saved[key] != wanted[key]:
            raise CheckpointError(
                f"The run in {folder} has {key} = {saved[key]!r}, the recipe says {wanted[key]!r}.",
                code="resume-recipe",
                hint="Resume with the recipe it was started with, or start anew in another folder.",
            )
    for key, parameter in network.named_parameters():
        parameter.data.copy_(state["network"][key])
    for optimiser, saved_state in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved_state)
    return int(state["step"])
