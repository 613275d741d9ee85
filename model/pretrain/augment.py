"""What of a photo is seen: its crop, whether it is mirrored, how its colours are changed (the paper's table 1e).

    none    the centre square as it stands
    fixed   a square of 7/8 of the short side at a random place (224 of 256 pixels), mirrored or not
    random  a rectangle of random area and aspect, mirrored or not: the paper's choice
    colour  the same, with brightness, contrast and saturation changed at random

Functions of a sample's key alone: both data paths and any number of processes see the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.masking import Bools, Ints, noise
from model.pretrain.recipe import Recipe

Keys = NDArray[np.uint64]
Reals = NDArray[np.float64]
Sides = Sequence[int] | Ints

#: Share of the short side in a crop of fixed size.
FIXED_SHARE = 224 / 256
#: Brightness, contrast and saturation are each changed by up to this share.
COLOUR_RANGE = 0.4
#: How bright red, green and blue seem. Source: ITU-R BT.601, as in Pillow.
_GREY = (0.299, 0.587, 0.114)


class Boxes(NamedTuple):
    """Crops of a batch in pixels of their photos: ``[N] int64`` each, and whether mirrored ``[N] bool``."""

    top: Ints
    left: Ints
    height: Ints
    width: Ints
    flip: Bools


class Box(NamedTuple):
    """One of ``Boxes``."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def crop_boxes(keys: Keys, heights: Sides, widths: Sides, scale: tuple[float, float]) -> Boxes:
    """Random resized crops and flips, one per key.

    Area share uniform in ``scale``, aspect log-uniform in 3/4..4/3; ten tries, then the largest centre square.
    Source: the crop of torchvision's RandomResizedCrop, as in the paper's table 8.
    """
    share, aspect, top, left, flip = _draw(keys, scale)
    whole_h, whole_w = (np.asarray(sides, dtype=np.int64)[:, None] for sides in (heights, widths))
    area = whole_h * whole_w * share
    h, w = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (h > 0) & (h <= whole_h) & (w > 0) & (w <= whole_w)
    tries = np.stack([top * (whole_h - h + 1), left * (whole_w - w + 1), h, w]).astype(np.int64)
    chosen = np.take_along_axis(tries, fits.argmax(axis=1)[None, :, None], axis=2)[:, :, 0]
    side = np.minimum(whole_h, whole_w)
    centre = np.concatenate([(whole_h - side) // 2, (whole_w - side) // 2, side, side], axis=1).T
    box = np.where(fits.any(axis=1), chosen, centre)
    return Boxes(box[0], box[1], box[2], box[3], flip)


def _draw(keys: Keys, scale: tuple[float, float]) -> tuple[Reals, Reals, Reals, Reals, Bools]:
    """Ten tries a key: area share, aspect, place from above and from the left, ``[N, 10]``; and whether mirrored."""
    draws = noise(keys, 41) / np.float64(2**64)
    area, aspect, top, left = np.moveaxis(draws[:, :40].reshape(-1, 10, 4), 2, 0)
    share = scale[0] + (scale[1] - scale[0]) * area
    return share, np.exp((2 * aspect - 1) * math.log(4 / 3)), top, left, draws[:, 40] < 0.5


def one_by_one(keys: Keys, recipe: Recipe) -> Callable[[int, int, int], Box]:
    """The same as ``boxes`` for photos whose sizes come one after the other, without numpy's cost for each.

    Returns:
        A function of a key's place, height and width.
    """
    if recipe.augment not in ("random", "colour"):

        def square(n: int, height: int, width: int) -> Box:
            *box, flip = boxes(keys[n : n + 1], [height], [width], recipe)
            top, left, h, w = (int(of[0]) for of in box)
            return Box(top, left, h, w, bool(flip[0]))

        return square
    *tries, flips = (of.tolist() for of in _draw(keys, recipe.crop_scale))

    def box(n: int, height: int, width: int) -> Box:
        for share, aspect, top, left in zip(*(of[n] for of in tries), strict=True):
            area = height * width * share
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                return Box(int(top * (height - h + 1)), int(left * (width - w + 1)), h, w, flips[n])
        side = min(height, width)
        return Box((height - side) // 2, (width - side) // 2, side, side, flips[n])

    return box


def boxes(keys: Keys, heights: Sides, widths: Sides, recipe: Recipe) -> Boxes:
    """The crops a recipe asks for, one per key."""
    if recipe.augment in ("random", "colour"):
        return crop_boxes(keys, heights, widths, recipe.crop_scale)
    return _squares(keys, heights, widths, centred=recipe.augment == "none")


def _squares(keys: Keys, heights: Sides, widths: Sides, *, centred: bool) -> Boxes:
    height, width = (np.asarray(sides, dtype=np.int64) for sides in (heights, widths))
    short = np.minimum(height, width)
    if centred:
        return Boxes(
            (height - short) // 2, (width - short) // 2, short, short, np.zeros(len(keys), dtype=bool)
        )
    side = np.maximum(np.rint(FIXED_SHARE * short), 1).astype(np.int64)
    draws = noise(keys, 3) / np.float64(2**64)
    top, left = (
        (draws[:, place] * (whole - side + 1)).astype(np.int64) for place, whole in enumerate((height, width))
    )
    return Boxes(top, left, side, side, draws[:, 2] < 0.5)


def jitter(images: Tensor, keys: Keys) -> Tensor:
    """Change the colours of ``images [B, 3, H, W] uint8``, one key per picture."""
    draws = noise(keys ^ np.uint64(0x846CA68B), 3) / np.float64(2**64)
    factors = torch.from_numpy((1 + COLOUR_RANGE * (2 * draws - 1)).astype(np.float32))
    # From memory that is not page-locked a copy would wait for all the GPU still has to do.
    if images.is_cuda:
        factors = factors.pin_memory()
    brightness, contrast, saturation = factors.to(images.device, non_blocking=True).T[:, :, None, None, None]
    colours = (images.float() * brightness).clamp_(0, 255)
    mean = _grey(colours).mean(dim=(2, 3), keepdim=True)
    colours = torch.lerp(mean.expand_as(colours), colours, contrast).clamp_(0, 255)
    colours = torch.lerp(_grey(colours).expand_as(colours), colours, saturation)
    return colours.round_().clamp_(0, 255).to(torch.uint8)


def _grey(colours: Tensor) -> Tensor:
    """``[B, 3, H, W]`` to brightness ``[B, 1, H, W]``."""
    red, green, blue = colours.unbind(1)
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue)[:, None]
