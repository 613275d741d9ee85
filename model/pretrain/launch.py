"""From a recipe and paths to a finished weight file: device chosen, threads started, run watched, weights written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from model.checkpoints import store
from model.network import MAE
from model.pretrain.data import Photos
from model.pretrain.loop import Progress, run
from model.pretrain.recipe import Recipe
from model.pretrain.watch import Watch


def pretrain(
    recipe: Recipe,
    data: Sequence[Path],
    out: Path,
    *,
    resumed: bool = False,
    device: str | None = None,
    workers: int = 1,
) -> Path:
    """Train by a recipe.

    Args:
        recipe: What to train and how.
        data: Folders of pictures and tar shards.
        out: The run's folder.
        resumed: Go on from its last state.
        device: ``cpu``, ``cuda``, ...; None for the GPU where there is one.
        workers: Decoding threads.

    Returns:
        The weight file, ``out/<name>.safetensors``.

    Raises:
        DataError: There are no photos, or the loss is no longer finite.
        CheckpointError: There is nothing to resume, or it belongs to another recipe.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    photos = Photos.open(data)
    watch = Watch(recipe, photos, out, where)
    made = 0

    def report(progress: Progress, network: MAE) -> None:
        nonlocal made
        made = progress.step
        watch.report(progress.step, progress.loss, progress.lr, progress.images_per_second, network)

    network = run(recipe, photos, out, device=where, workers=workers, resumed=resumed, report=report)
    watch.close()
    weights = out / f"{recipe.name}.safetensors"
    card = {"steps": made, "samples": made * recipe.batch_size, "recipe": recipe.to_dict()}
    store.write(weights, network, name=recipe.name, card=card)
    return weights
