"""Fills of the same holes without a model, and the figures of one photo under one mask.

``true_means`` is not a fill but a warning: the mean colour of every hidden patch, read from the answer. A picture
"un-normalised with the true statistics" has that for free, so it stands beside every honest figure.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import cv2
import numpy as np
from numpy.typing import NDArray

from model import scores, views
from model.config import IMAGE_MEAN, IMAGE_STD
from model.masking import Bools
from model.scores import Floats

#: What is measured of each photo. From ``agreement`` on they are parts of figures that only many photos together give:
#: see ``norm_pixel_agreement``, ``inner_steps``, ``border_steps``, ``fine_detail``.
METRICS = (
    "nmse", "psnr_db", "ssim", "colour_error_percent", "agreement",
    "inner_steps", "true_inner_steps", "steps", "true_steps", "detail", "true_detail",
)  # fmt: skip

#: How often photos are drawn again for an interval.
_DRAWS = 1000


def _inpainted(method: int) -> Callable[[Floats, Bools, int], Floats]:
    def fill(original: Floats, hidden: Bools, patch_size: int) -> Floats:
        pixels = (original * 255).round().astype(np.uint8)
        filled = cv2.inpaint(pixels, hidden.astype(np.uint8), 3, method)
        return filled.astype(np.float32) / np.float32(255)

    return fill


def _true_means(original: Floats, hidden: Bools, patch_size: int) -> Floats:
    """The mean colour of every hidden patch: uses the answer."""
    cut = views.by_patch(original, patch_size)
    means = np.broadcast_to(cut.mean(axis=(1, 3), keepdims=True), cut.shape).reshape(original.shape)
    return np.where(hidden[..., None], means, original)


#: Name to fill of ``original [H, W, 3]`` in 0..1 where ``hidden [H, W]``, patches of a side.
FILLS: dict[str, Callable[[Floats, Bools, int], Floats]] = {
    "plain_fill": lambda original, hidden, _: scores.plain_fill(original, hidden),
    "interpolation": lambda original, hidden, _: scores.interpolate(original, hidden),
    "telea": _inpainted(cv2.INPAINT_TELEA),  # Telea 2004, radius 3 pixels
    "navier_stokes": _inpainted(cv2.INPAINT_NS),  # Bertalmio et al. 2001, radius 3 pixels
    "true_means": _true_means,
}


def figures(original: Floats, picture: Floats, hidden: Bools, patch_size: int) -> NDArray[np.float64]:
    """Rows of ``METRICS`` for the model's picture and every fill: ``[1 + F, M]``.

    Args:
        original: ``[H, W, 3]`` in 0..1.
        picture: What the model painted, everywhere.
        hidden: ``[H, W]``.
        patch_size: Side of a patch.
    """
    candidates = [np.where(hidden[..., None], picture, original)]
    candidates += [fill(original, hidden, patch_size) for fill in FILLS.values()]
    halves = (inner_steps, border_steps, fine_detail)
    true = [of(original, hidden, patch_size) for of in halves]
    rows = []
    for candidate, score in zip(candidates, scores.score(original, candidates, hidden), strict=True):
        agreement = norm_pixel_agreement(original, candidate, hidden, patch_size)
        painted = [of(candidate, hidden, patch_size) for of in halves]
        errors = (score.nmse, score.psnr_db, score.ssim, score.colour_error_percent)
        rows.append([*errors, agreement, *chain.from_iterable(zip(painted, true, strict=True))])
    return np.array(rows)


def norm_pixel_agreement(original: Floats, candidate: Floats, hidden: Bools, patch_size: int) -> float:
    """Mean correlation r of the hidden patches with the true ones, over all values of a patch together.

    1 - r * r (r below 0 counts as 0) is the share of the true patches' variance, as the paper's normalised target has
    it, that the candidate leaves unexplained when its patches are standardised too and scaled by one best factor: 1
    for grey, 0 for the truth; so all models compare. It is not the paper's loss, which takes a prediction as it is.
    A flat colour has less than 1 (of photos some 0.85), because that target standardises the three colours of a patch
    together.
    """
    true, other = (_standardised(image, patch_size) for image in (original, candidate))
    corners = hidden[::patch_size, ::patch_size].reshape(-1)
    return float((true * other).mean(axis=1)[corners].mean())


def inner_steps(image: Floats, hidden: Bools, patch_size: int) -> float:
    """Steps between neighbouring pixels inside the hidden patches, root mean square.

    Over that of the photo it is the sharpness: 1 is as sharp, 0 is flat. Steps across the seams of patches do not
    count.

    Args:
        image: ``[H, W, C]``.
        hidden: ``[H, W]``; at least one patch.
        patch_size: Side of a patch.
    """
    patches = views.by_patch(image, patch_size).swapaxes(1, 2)[hidden[::patch_size, ::patch_size]]
    return float(np.sqrt(sum(np.square(np.diff(patches, axis=axis)).mean() for axis in (1, 2))))


def border_steps(image: Floats, hidden: Bools, patch_size: int) -> float:
    """Mean absolute step between the two pixels on either side of a border of hidden and visible patches.

    Over that of the photo at the same borders it tells of seams: 1 is none, above 1 the patches stand out, below 1
    one side is smoother than a photo is. 0 where nothing or everything is hidden.

    Args:
        image: ``[H, W, C]``, painted and visible patches put together.
        hidden: ``[H, W]``.
        patch_size: Side of a patch.
    """
    found = [
        np.abs(np.diff(turned, axis=0))[patch_size - 1 :: patch_size][
            (where[1:] != where[:-1])[patch_size - 1 :: patch_size]
        ]
        for turned, where in ((image, hidden), (image.swapaxes(0, 1), hidden.T))
    ]
    steps = np.concatenate(found)
    return float(steps.mean()) if len(steps) else 0.0


def fine_detail(image: Floats, hidden: Bools, patch_size: int) -> float:
    """Power above half the Nyquist frequency in the hidden patches' grey values, mean per pixel.

    Each patch on its own under a Hann window, so seams do not count; over that of the photo 1 is as much fine detail
    as it has (not: the same), 0 none.

    Args:
        image: ``[H, W, C]``.
        hidden: ``[H, W]``.
        patch_size: Side of a patch.
    """
    grey = views.by_patch(image, patch_size).mean(axis=4).swapaxes(1, 2)
    patches = grey[hidden[::patch_size, ::patch_size]]
    window = np.hanning(patch_size + 2)[1:-1]
    window = np.outer(window, window) / np.sqrt(np.square(np.outer(window, window)).sum())
    power = np.square(np.abs(np.fft.fft2((patches - patches.mean(axis=(1, 2), keepdims=True)) * window)))
    frequency = np.abs(np.fft.fftfreq(patch_size))
    fine = np.hypot(frequency[:, None], frequency) > 0.25  # cycles a pixel; Nyquist's is 0.5
    return float(power[:, fine].sum() / max(len(patches), 1) / patch_size**2)


def _standardised(image: Floats, side: int) -> Floats:
    """Patches ``[L, P*P*3]`` of mean 0 and deviation 1; a flat patch becomes zeros."""
    patches = _patches((image - np.asarray(IMAGE_MEAN)) / np.asarray(IMAGE_STD), side)
    patches = patches - patches.mean(axis=1, keepdims=True)
    deviation = patches.std(axis=1, keepdims=True)
    return np.divide(patches, deviation, out=np.zeros_like(patches), where=deviation > 1e-4)


def norm_pixel_loss(normalised: Floats, pred: Floats, hidden: Bools, patch_size: int) -> float:
    """The loss of the paper's normalised target (arXiv 2111.06377, sec. 3), as a model trained on it has it.

    Args:
        normalised: The photo ``[H, W, C]`` in the model's normalised units.
        pred: ``[L, P*P*C]``, what the network says: nothing is fitted to the truth.
        hidden: ``[L]``; at least one.
        patch_size: P.
    """
    patches = _patches(normalised, patch_size)
    deviation = np.sqrt(patches.var(axis=1, ddof=1, keepdims=True) + 1e-6)
    target = (patches - patches.mean(axis=1, keepdims=True)) / deviation
    return float(np.square(pred - target)[hidden].mean())


def _patches(image: Floats, side: int) -> Floats:
    """``[H, W, C]`` cut into ``[L, P*P*C]``: patches row-major; inside one row, column, colour."""
    cut = views.by_patch(image, side).swapaxes(1, 2)
    return cut.reshape(-1, side * side * image.shape[2]).astype(np.float32)


def resampled(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Means of ``values [N, ...]`` over photos drawn with repetition: ``[1000, ...]``, and the draws ``[1000, N]``.

    The draws are the same for every call with as many photos: differences between rows are paired.
    """
    chosen = np.random.default_rng(0).integers(0, len(values), (_DRAWS, len(values)))
    return np.stack([values[row].mean(axis=0) for row in chosen]), chosen
