"""Which way photos take to the network: through the host's threads, or kept in the device's memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from model.errors import RecipeError
from model.pretrain import host, resident
from model.pretrain.data import Photos
from model.pretrain.recipe import Recipe
from model.pretrain.samples import Batch
from model.pretrain.world import ALONE, World


def batches(
    photos: Photos,
    recipe: Recipe,
    start_step: int,
    *,
    device: torch.device,
    workers: int,
    world: World = ALONE,
) -> Iterator[Batch]:
    """Batches from ``start_step`` on, the same samples by either path.

    Args:
        photos: Where samples come from.
        recipe: ``data_path`` chooses; ``auto`` keeps a set in a GPU's memory if half of what is free holds it.
        start_step: Steps already made.
        device: Where the network lives.
        workers: Decoding threads.
        world: Who computes which part of a batch.

    Raises:
        RecipeError: The photos do not fit the device's memory.
    """
    gpu = device.type == "cuda"
    if recipe.data_path == "device" or (recipe.data_path == "auto" and gpu and resident.fits(photos, device)):
        try:
            pool = resident.Pool.decode(photos, device, workers, quiet=not world.first)
        except torch.OutOfMemoryError as error:
            raise RecipeError(
                f"The {len(photos)} photos, decoded, do not fit into the memory of {device}.",
                code="memory",
                hint="Use --data-path host: threads then decode them as they are needed.",
                field="data_path",
            ) from error
        return resident.batches(pool, photos, recipe, start_step, world)
    return host.batches(photos, recipe, start_step, workers, world, pinned=gpu)
