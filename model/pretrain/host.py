"""The host's data path: threads decode and crop the photos of the next batches while the network works."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

from model.errors import DataError
from model.pretrain.data import Photos
from model.pretrain.recipe import Recipe
from model.pretrain.samples import Batch, Sample, Sampler, crop_boxes, masks, stand_ins
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

    def load(sample: Sample) -> tuple[Tensor, list[int]]:
        photo, broken = decode_or_stand_in(photos, sample)
        keys = np.array([sample.key])
        box = [int(of[0]) for of in crop_boxes(keys, [photo.shape[1]], [photo.shape[2]], recipe.crop_scale)]
        crop = resized_crop(photo, *box[:4], [side, side], InterpolationMode.BICUBIC, antialias=True)
        return crop.flip(-1) if box[4] else crop, broken

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:

        def submit() -> tuple[list[Future[tuple[Tensor, list[int]]]], Tensor]:
            step, samples = next(parts)
            hidden = torch.from_numpy(masks(samples, recipe, step))
            return [pool.submit(load, sample) for sample in samples], hidden

        ahead = [submit() for _ in range(AHEAD)]
        while True:
            futures, hidden = ahead.pop(0)
            ahead.append(submit())
            loaded = [future.result() for future in futures]
            images = torch.stack([crop for crop, _ in loaded])
            broken = frozenset(number for _, numbers in loaded for number in numbers)
            if pinned:
                images, hidden = images.pin_memory(), hidden.pin_memory()
            yield Batch(images, hidden, broken)


def decode_or_stand_in(photos: Photos, sample: Sample) -> tuple[Tensor, list[int]]:
    """The sample's photo, or the first of its stand-ins that can be decoded, and the numbers that cannot.

    Raises:
        DataError: None of them can, or a file can no longer be read at all.
    """
    broken: list[int] = []
    for number in (sample.number, *stand_ins(sample, len(photos))):
        try:
            return photos.decode(number), broken
        except DataError as error:
            if error.code != "data-broken":
                raise
            broken.append(number)
            last = error
    raise last
