"""The device's data path: all photos decoded once, kept as uint8 in the device's memory, cropped there in batches.

Threads of a host feed a GPU a few hundred photos a second each; the network consumes thousands. A set that fits
is therefore laid end to end in one tensor, and a batch is: boxes (from the same keys as on the host) ->
gather -> two matrix products a photo, which are torchvision's antialiased bicubic resize -> uint8.
The same samples, boxes, flips and masks as ``host``; pixels differ by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from model.masking import Bools, Ints
from model.pretrain.augment import Boxes, Keys, boxes, jitter
from model.pretrain.data import Photos, in_order
from model.pretrain.recipe import Recipe
from model.pretrain.samples import Batch, Sample, Sampler, first_whole, masks
from model.pretrain.world import ALONE, World

#: Pixels gathered at once: bounds the working memory of a crop to about 2 GB.
CHUNK = 2**26
#: Share of the device's free memory that the photos may take where the choice is left to us.
FREE_SHARE = 0.5
#: Photos by which the size of the decoded set is judged, ...
SAMPLED = 64
#: ... and the room that is taken for it: a judgement that proves too low costs a second copy for a moment.
ROOM = 1.1
#: Photos of each thread that are decoded and not yet on the device.
AHEAD = 4


@dataclass(frozen=True)
class Pool:
    """Decoded photos, end to end.

    Attributes:
        pixels: ``[P, 3] uint8`` on the device, rows of photo after photo.
        start: ``[N] int64``, first pixel of each photo.
        height: ``[N] int64``; 0 where the photo cannot be decoded.
        width: ``[N] int64``.
    """

    pixels: Tensor
    start: Ints
    height: Ints
    width: Ints

    @classmethod
    def decode(cls, photos: Photos, device: torch.device, workers: int, quiet: bool = True) -> Pool:
        """Decode every photo, by ``workers`` threads; what cannot be decoded has height 0.

        Each goes to the device as it comes: the host never holds more than a few.

        Raises:
            DataError: A file can no longer be read.
            torch.OutOfMemoryError: They do not fit the device's memory.
        """

        def decode(number: int) -> Tensor:
            photo = photos.decode_or_none(number)
            if photo is None:
                return torch.zeros(0, 0, 3, dtype=torch.uint8)
            return photo.permute(1, 2, 0).contiguous()

        height, width = np.zeros((2, len(photos)), dtype=np.int64)
        pixels = torch.empty(round(ROOM * _expected(photos) / 3), 3, dtype=torch.uint8, device=device)
        end = 0
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as threads:
            decoded = in_order(decode, range(len(photos)), threads, AHEAD * workers)
            for number, photo in enumerate(tqdm(decoded, total=len(photos), desc="decode", disable=quiet)):
                height[number], width[number], _ = photo.shape
                first, end = end, end + height[number] * width[number]
                if end > len(pixels):
                    larger = pixels.new_empty(round(ROOM * end * len(photos) / (number + 1)), 3)
                    larger[:first] = pixels[:first]
                    pixels = larger
                pixels[first:end] = photo.reshape(-1, 3)
        return cls(pixels[:end], np.cumsum(height * width) - height * width, height, width)

    @property
    def broken(self) -> Bools:
        """``[N] bool``: which photos cannot be decoded."""
        return self.height == 0


def fits(photos: Photos, device: torch.device) -> bool:
    """Whether the decoded set is small enough for the device's free memory, judged by some photos of it."""
    free, _ = torch.cuda.mem_get_info(device)
    return 0 < _expected(photos) < FREE_SHARE * free


def _expected(photos: Photos) -> float:
    """Bytes of the decoded set, judged by some photos of it; 0 where none of these can be decoded."""
    numbers = np.linspace(0, len(photos) - 1, min(SAMPLED, len(photos))).astype(int).tolist()
    sizes = [photo.numel() for number in numbers if (photo := photos.decode_or_none(number)) is not None]
    return float(np.mean(sizes)) * len(photos) if sizes else 0.0


def batches(
    pool: Pool, photos: Photos, recipe: Recipe, start_step: int, world: World = ALONE
) -> Iterator[Batch]:
    """Batches from ``start_step`` on, made on the device; a thread plans the next one meanwhile."""
    part = world.part(recipe.batch_size, recipe.accumulate)
    parts = Sampler(photos, recipe).batches(recipe.batch_size, start_step, part)

    def plan() -> tuple[NDArray[np.int64], Keys, Boxes, Tensor, frozenset[int]]:
        step, samples = next(parts)
        numbers, broken = _replace(samples, photos, pool.broken)
        keys = np.array([sample.key for sample in samples], dtype=np.uint64)
        cut = boxes(keys, pool.height[numbers], pool.width[numbers], recipe)
        hidden = torch.from_numpy(masks(samples, recipe, step))
        # From memory that is not page-locked a copy would wait for all the GPU still has to do.
        return numbers, keys, cut, hidden.pin_memory() if pool.pixels.is_cuda else hidden, frozenset(broken)

    with ThreadPoolExecutor(1, thread_name_prefix="plan") as thread:
        ahead = thread.submit(plan)
        while True:
            numbers, keys, cut, hidden, broken = ahead.result()
            ahead = thread.submit(plan)
            images = crop(pool, numbers, cut, recipe.config.image_size)
            yield Batch(jitter(images, keys) if recipe.augment == "colour" else images, hidden, broken)


def _replace(samples: list[Sample], photos: Photos, broken: Bools) -> tuple[Ints, set[int]]:
    """Photo numbers of the samples, broken ones replaced as the host replaces them, and those met broken."""
    numbers = np.array([sample.number for sample in samples], dtype=np.int64)
    met: set[int] = set()
    for place in np.flatnonzero(broken[numbers]).tolist():
        numbers[place], skipped = first_whole(
            samples[place], photos, lambda number: None if broken[number] else number
        )
        met.update(skipped)
    return numbers, met


def crop(pool: Pool, numbers: Ints, cut: Boxes, side: int) -> Tensor:
    """Cut, scale and mirror: ``[B, 3, side, side] uint8`` on the pool's device, without waiting for it."""
    rows, columns = int(cut.height.max()), int(cut.width.max())
    chunk = max(1, CHUNK // (rows * columns))
    fields = np.stack(
        [pool.start[numbers] + cut.top * pool.width[numbers] + cut.left, pool.width[numbers],
         cut.height, cut.width, cut.flip]
    )  # fmt: skip
    table = torch.from_numpy(fields)
    if pool.pixels.is_cuda:
        table = table.pin_memory().to(pool.pixels.device, non_blocking=True)
    return torch.cat(
        [_crop(pool.pixels, part, rows, columns, side) for part in torch.split(table, chunk, dim=1)]
    )


def _crop(pixels: Tensor, table: Tensor, rows: int, columns: int, side: int) -> Tensor:
    first, stride, height, width, flip = table[:, :, None]
    y = torch.arange(rows, device=pixels.device)
    x = torch.arange(columns, device=pixels.device)
    # Beyond its box a crop repeats its last row and column; they have weight 0.
    row = first + torch.minimum(y, height - 1) * stride  # [B, rows]
    column = torch.minimum(x, width - 1)  # [B, columns]
    cut = pixels[row[:, :, None] + column[:, None, :]]  # [B, rows, columns, 3]
    across = _weights(width, columns, side)  # [B, side, columns]
    across = torch.where(flip[:, :, None] > 0, across.flip(1), across)
    down = _weights(height, rows, side)  # [B, side, rows]
    # Colours stand beside rows, then beside columns, so that either pass is one product a photo and no copy.
    # Across first, and rounded to 8 bit in between, as torchvision does it.
    wide = cut.permute(0, 1, 3, 2).to(torch.float32, memory_format=torch.contiguous_format)
    wide = torch.bmm(wide.flatten(1, 2), across.mT).round_().clamp_(0, 255)  # [B, rows * 3, side]
    tall = torch.bmm(down, wide.view(-1, rows, 3 * side)).round_().clamp_(0, 255)  # [B, side, 3 * side]
    crops = tall.view(-1, side, 3, side).permute(0, 2, 1, 3)
    return crops.to(torch.uint8, memory_format=torch.contiguous_format)


def _weights(lengths: Tensor, longest: int, side: int) -> Tensor:
    """Bicubic resampling of lengths ``[B, 1]`` to ``side``, as matrices ``[B, side, longest]``.

    Shrinking widens the kernel by the same factor (antialiasing). Source: Keys 1981, a = -0.5, as in Pillow.
    """
    scale = lengths[:, :, None] / side  # [B, 1, 1]
    place = torch.arange(side, device=lengths.device)[:, None] + 0.5
    source = torch.arange(longest, device=lengths.device)
    distance = ((source + 0.5 - place * scale) / scale.clamp_min(1)).abs()
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weight = torch.where(distance < 1, near, far) * (distance < 2) * (source < lengths[:, :, None])
    return weight / weight.sum(dim=-1, keepdim=True)
