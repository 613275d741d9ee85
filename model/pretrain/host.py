"""The host's data path: threads decode and crop the photos of the next batches while the network works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from model.pretrain.augment import Box, jitter, one_by_one
from model.pretrain.data import Photos
from model.pretrain.recipe import Recipe
from model.pretrain.samples import Batch, Sample, Sampler, first_whole, masks
from model.pretrain.world import ALONE, World

#: Batches in the making while one is computed.
AHEAD = 2


def batches(
    photos: Photos, recipe: Recipe, start_step: int, workers: int, world: World = ALONE, pinned: bool = False
) -> Iterator[Batch]:
    """Batches from ``start_step`` on.

    Args:
        photos: Where samples come from.
        recipe: Batch size, crop, mask ratio, seed.
        start_step: Steps already made; the sequence goes on from there exactly.
        workers: Decoding threads.
        world: Who computes which part of a batch.
        pinned: Put batches into page-locked memory, from which a GPU fetches without waiting.
    """
    part = world.part(recipe.batch_size, recipe.accumulate)
    parts = Sampler(photos, recipe).batches(recipe.batch_size, start_step, part)
    side = recipe.config.image_size

    def decode(sample: Sample) -> tuple[Tensor, list[int]]:
        return first_whole(sample, photos, photos.decode_or_none)

    def load(crops: list[tuple[Sample, Callable[[int, int], Box]]]) -> list[tuple[Tensor, list[int]]]:
        """Samples of one photo, decoded once; each has a stand-in of its own if it is broken."""
        first = decode(crops[0][0])
        loaded = []
        for place, (sample, box_in) in enumerate(crops):
            photo, broken = first if place == 0 or not first[1] else decode(sample)
            box = box_in(photo.shape[1], photo.shape[2])
            crop = scaled(photo, box, side)
            if recipe.augment == "colour":
                crop = jitter(crop[None], np.array([sample.key]))[0]
            loaded.append((crop, broken))
        return loaded

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:

        def submit() -> tuple[list[Future[list[tuple[Tensor, list[int]]]]], Tensor]:
            step, samples = next(parts)
            hidden = torch.from_numpy(masks(samples, recipe, step))
            box = one_by_one(np.array([sample.key for sample in samples], dtype=np.uint64), recipe)
            boxed = [(sample, partial(box, n)) for n, sample in enumerate(samples)]
            photo_by_photo = groupby(boxed, key=lambda of: of[0].number)
            return [pool.submit(load, list(crops)) for _, crops in photo_by_photo], hidden

        ahead = [submit() for _ in range(AHEAD)]
        while True:
            futures, hidden = ahead.pop(0)
            ahead.append(submit())
            loaded = [crop for future in futures for crop in future.result()]
            images = torch.stack([crop for crop, _ in loaded])
            broken = frozenset(number for _, numbers in loaded for number in numbers)
            if pinned:
                images, hidden = images.pin_memory(), hidden.pin_memory()
            yield Batch(images, hidden, broken)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # batches made ahead would keep a stopped run waiting


def scaled(photo: Tensor, box: Box, side: int) -> Tensor:
    """Cut, scale and mirror ``[3, H, W] uint8``: what torchvision's ``resized_crop`` does, without its detours."""
    cut = photo[None, :, box.top : box.top + box.height, box.left : box.left + box.width]
    crop = interpolate(cut, (side, side), mode="bicubic", align_corners=False, antialias=True)[0]
    return crop.flip(-1) if box.flip else crop
