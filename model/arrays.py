"""Arrays in, arrays out: for models of any number of channels, which no picture file holds.

An array ``[H, W, C]`` is taken as it is: no crop, no scaling, no colours. Bytes count as pixels and are normalised as
``MAEConfig.image_mean`` says; other numbers are taken to be in the units that the network was trained on, for nothing
in a file of n channels says which these were.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model import scores, views
from model.checkpoints.store import Checkpoint
from model.config import MAEConfig
from model.cover import Merged
from model.errors import ImageError, MaskError, first_line
from model.masking import Grid, Mask
from model.options import Options
from model.placement import MAX_CELLS, MIN_CELLS
from model.reconstruct import refuse_what_is_no_picture

Array = NDArray[np.generic]
Floats = NDArray[np.float32]

#: Of an array's numbers, in the network's units: far beyond what it was trained on, and its square is a float32 still.
_LARGEST = 1e9
#: Options that place a picture on the grid or choose how it is shown: an array is taken and given as it is.
_PICTURES = {"fit": "square", "crop": None, "grid": None, "view": None, "interpolation": False}


@dataclass(frozen=True)
class Repainted:
    """An array with its hidden patches predicted.

    Attributes:
        values: ``[H, W, C]`` in the type and units of the array that was given: hidden patches as predicted.
        masks: What was hidden, one mask at a time.
        seed: Where the masks came from; None where none was needed.
        nmse: Mean squared error over the hidden values, in the network's units.
        fill_nmse: The same of each channel's mean over what a mask leaves visible, put together as predictions are.
    """

    values: Array
    masks: tuple[Mask, ...]
    seed: int | None
    nmse: float
    fill_nmse: float


def read(path: Path) -> Array:
    """An array from a ``.npy`` file, not yet in memory.

    Raises:
        ImageError: It cannot be read, or holds Python objects, which would have to be run.
    """
    try:
        array: Array = np.lib.format.open_memmap(path, mode="r")  # refuses objects and archives
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{path} is not a readable array ({first_line(error)}).",
            code="array-unreadable",
            hint="Write it with numpy.save, numbers only.",
        ) from error
    return array


@torch.inference_mode()
def repaint(checkpoint: Checkpoint, array: Array, options: Options | None = None) -> Repainted:
    """Hide patches of an array and predict them.

    Args:
        checkpoint: A model of as many channels, from ``checkpoints.store.read``.
        array: ``[H, W, C]``, or ``[H, W]`` for one channel: uint8, or floats in the network's units. Height and width
            in whole patches, 4 to 40 of them.
        options: What to hide. A model of normalised pixels is seen by its view ``estimated``.

    Raises:
        ImageError: The array does not fit the model, or holds numbers that are not finite.
        MaskError: The options give no mask, or are about pictures.
        CheckpointError: The model predicts no pixels.
    """
    options = options or Options()
    network, config = checkpoint.network, checkpoint.network.config
    refuse_what_is_no_picture(checkpoint.name, config)
    _check_options(options)
    if np.ma.is_masked(array):
        raise ImageError(
            "The array has masked values, and the model knows no missing ones.",
            code="array-finite",
            hint="Put a number in their place: array.filled(NUMBER).",
        )
    array = np.asarray(array)
    grid = _check(array, config)
    original = _in_units(array.reshape(*array.shape[:2], -1), config)
    masks, seed = options.masks(grid)
    device = network.pos_embed.device
    image = torch.from_numpy(original.transpose(2, 0, 1)[None].copy()).to(device)
    merged, plain = Merged(), Merged()
    for mask in masks:
        ids = (torch.from_numpy(of)[None].to(device) for of in (mask.ids_keep, mask.ids_restore))
        pred = network(image, *ids, options.positions)[..., : config.patch_values].float()
        if config.target != "pixel":
            pred = _with_statistics(pred, network.patchify(image), mask)
        merged.add(network.unpatchify(pred, grid)[0].permute(1, 2, 0).cpu().numpy(), mask)
        holes = views.pixel_mask(mask.hidden, grid, config.patch_size)
        plain.add(scores.plain_fill(original, holes), mask)
    hidden = views.pixel_mask(np.any([mask.hidden for mask in masks], axis=0), grid, config.patch_size)
    values = np.where(hidden[..., None], merged.pixels(), original)
    errors = [
        float(np.square(guess - original)[hidden].mean(dtype=np.float64))
        for guess in (values, plain.pixels())
    ]
    result = np.array(array)
    result[hidden] = _as_given(values, array, config)[hidden]  # what is visible stays to the bit
    return Repainted(result, masks, seed, *errors)


def _with_statistics(pred: torch.Tensor, patches: torch.Tensor, mask: Mask) -> torch.Tensor:
    """Standardised patches with mean and deviation put back: the visible ones', interpolated where hidden."""
    deviation = (patches.var(dim=-1) + 1e-6).sqrt()
    true = torch.stack([patches.mean(dim=-1), deviation], dim=-1)[0].cpu().numpy().reshape(*mask.grid, 2)
    told = scores.interpolate(true, mask.hidden.reshape(mask.grid)).reshape(-1, 2)
    mean, spread = torch.from_numpy(told).to(pred.device).T[..., None]
    return pred * spread + mean


def _check_options(options: Options) -> None:
    options.check()
    if asked := [name for name, usual in _PICTURES.items() if getattr(options, name) != usual]:
        raise MaskError(
            f"{asked[0]} is about pictures, but this is an array, which is taken as it is.",
            code=asked[0],
            hint=f"Leave out {asked[0]}; cut the array itself.",
            field=asked[0],
        )


def _check(array: Array, config: MAEConfig) -> Grid:
    """Rows and columns of patches of an array that fits."""
    side, channels = config.patch_size, config.channels
    shape = array.shape if array.ndim != 2 else (*array.shape, 1)
    wanted = f"an array [H, W, {channels}]" + (" or [H, W]" if channels == 1 else "")
    if len(shape) != 3 or shape[2] != channels:
        first = len(shape) == 3 and shape[0] == channels
        raise ImageError(
            f"The array has the shape {list(array.shape)}, but the model looks at {channels} channels.",
            code="array-shape",
            hint="Move its channels last: numpy.moveaxis(array, 0, -1)." if first else f"Give {wanted}.",
        )
    rows, columns = shape[0] // side, shape[1] // side
    fits = all(MIN_CELLS <= cells <= MAX_CELLS for cells in (rows, columns))
    if not fits or shape[0] % side or shape[1] % side:
        raise ImageError(
            f"The array is {shape[0]} high and {shape[1]} wide; the model takes {MIN_CELLS} to {MAX_CELLS} whole "
            f"patches of {side} each way.",
            code="array-shape",
            hint=f"Cut or pad it, ideally to {config.image_size} x {config.image_size}, as the model was trained.",
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ImageError(
            f"The array holds {array.dtype}; uint8 and floats are read.",
            code="array-type",
            hint="Give uint8 pixels, or floats normalised as the model was trained.",
        )
    if not np.isfinite(array).all():
        raise ImageError(
            "The array holds numbers that are not finite.",
            code="array-finite",
            hint="Put a number in place of what is missing: numpy.nan_to_num(array).",
        )
    if array.dtype != np.uint8 and np.abs(array).max() > _LARGEST:
        raise ImageError(
            f"The array holds numbers beyond {_LARGEST:.0e}, as are put where there are no data.",
            code="array-finite",
            hint=f"Put a number in place of what is missing: numpy.where(abs(array) > {_LARGEST:.0e}, 0, array).",
        )
    return rows, columns


def _in_units(array: Array, config: MAEConfig) -> Floats:
    """In the network's units."""
    if array.dtype != np.uint8:
        return array.astype(np.float32)
    return views.Colours.of(config).normalised(array.view(np.uint8))


def _as_given(values: Floats, array: Array, config: MAEConfig) -> Array:
    """In the units, type and shape of the array that was given."""
    if array.dtype == np.uint8:
        return views.to_pixels(views.Colours.of(config).shown(values)).reshape(array.shape)
    return values.astype(array.dtype).reshape(array.shape)
