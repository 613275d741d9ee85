"""How far a picture is off over the hidden pixels, and what trivial fills would have scored.

Every figure is taken over hidden pixels only: visible ones are given away and would flatter any model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.config import IMAGE_STD

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

#: Channels that OpenCV knows at most.
_CV_CHANNELS = 4


@dataclass(frozen=True)
class Score:
    """Errors over hidden pixels.

    Attributes:
        mse: Mean squared error, pixels in 0..1.
        nmse: Mean squared error in ImageNet-normalised units (each channel over its deviation), the unit of
            the paper's pixel loss. The picture is clamped to 0..1 first, as it is shown.
        psnr_db: 10 log10(1 / mse), decibels.
        ssim: Structural similarity (Wang et al. 2004): Gaussian window of deviation 1.5, mean over channels
            and hidden pixels of the picture with its visible patches put back; None where it was not asked for.
        colour_error_percent: Mean absolute error in percent of the full range.
    """

    mse: float
    nmse: float
    psnr_db: float
    ssim: float | None
    colour_error_percent: float

    def to_dict(self) -> dict[str, float]:
        """Rounded to what is meaningful, for JSON."""
        return {key: round(value, 6) for key, value in vars(self).items() if value is not None}


def score(original: Floats, candidates: list[Floats], hidden: Bools, *, ssim: bool = True) -> list[Score]:
    """Score pictures against the original.

    Args:
        original: ``[H, W, 3]`` in 0..1.
        candidates: Each ``[H, W, 3]`` in 0..1, visible pixels equal to the original's.
        hidden: ``[H, W]``, True where hidden; at least one pixel.
        ssim: Also the structural similarity, which costs more than all else together.

    Returns:
        One score for each candidate.
    """
    similarity = _ssim(original, candidates) if ssim else [None] * len(candidates)
    scores = []
    for candidate, map_ in zip(candidates, similarity, strict=True):
        error = candidate - original
        square = _mean(error * error, hidden)
        mse = float(square.mean())
        scores.append(
            Score(
                mse=mse,
                nmse=float((square / np.square(IMAGE_STD)).mean()),
                # A perfect fill has no error at all: 100 dB instead of infinity, which JSON cannot hold.
                psnr_db=100.0 if mse == 0 else min(-10 * math.log10(mse), 100.0),
                ssim=None if map_ is None else float(_mean(map_, hidden)[0]),
                colour_error_percent=100 * float(_mean(np.abs(error), hidden).mean()),
            )
        )
    return scores


def _mean(picture: Floats, where: Bools) -> NDArray[np.float64]:
    """``[C]``: the mean of every channel where it is wanted, summed in double precision.

    OpenCV's takes a fiftieth of what numpy needs to gather the pixels first.
    """
    mask, channels = where.view(np.uint8), np.atleast_3d(picture)
    means: list[float] = []
    for first in range(0, channels.shape[-1], _CV_CHANNELS):
        some = np.ascontiguousarray(channels[..., first : first + _CV_CHANNELS])
        means += cv2.mean(some, mask=mask)[: some.shape[-1]]
    return np.array(means)


def _ssim(original: Floats, candidates: list[Floats]) -> list[Floats]:
    """Similarity maps ``[H, W]``, mean over channels; equal to scikit-image's with Gaussian weights."""
    mean_x, square_x = _blur(original), _blur(original * original)
    var_x = square_x - mean_x**2
    c1, c2 = 0.01**2, 0.03**2
    maps = []
    for candidate in candidates:
        mean_y = _blur(candidate)
        var_y = _blur(candidate * candidate) - mean_y**2
        covariance = _blur(original * candidate) - mean_x * mean_y
        upper = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        lower = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
        maps.append((upper / lower).mean(axis=-1))
    return maps


def _blur(image: Floats) -> Floats:
    """Gaussian of deviation 1.5 over 11 pixels, mirrored at the border with the edge pixel twice, as scipy does."""
    # OpenCV's own type says "some number"; a float32 picture comes back as one, without a copy here.
    return cv2.GaussianBlur(image, (11, 11), 1.5, borderType=cv2.BORDER_REFLECT).astype(
        np.float32, copy=False
    )


def plain_fill(original: Floats, hidden: Bools) -> Floats:
    """The mean colour of the visible pixels in every hidden one: what knowing nothing more would give."""
    if original.shape[-1] > _CV_CHANNELS:
        return np.where(hidden[..., None], _mean(original, ~hidden).astype(np.float32), original)
    filled = np.empty_like(original, order="C")
    filled[:] = _mean(original, ~hidden)
    filled = cv2.copyTo(original, (~hidden).view(np.uint8), filled).astype(np.float32, copy=False)
    return filled.reshape(original.shape)


def interpolate(original: Floats, hidden: Bools) -> Floats:
    """Linear interpolation of the visible pixels (Delaunay triangles), nearest outside their hull: scipy's.

    Only visible pixels that touch a hidden one, or the picture's edge, can be corners of a triangle over a hidden
    pixel; leaving out the rest makes it seven times faster.
    """
    # A second of every start, if above.
    from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
    from scipy.spatial import QhullError

    filled = original.copy()
    touching = cv2.dilate(np.pad(hidden, 1, constant_values=True).astype(np.uint8), np.ones((3, 3), np.uint8))
    corners = ~hidden & (touching[1:-1, 1:-1] > 0)
    seen, wanted = np.argwhere(corners), np.argwhere(hidden)
    values = original[corners]
    try:
        linear = LinearNDInterpolator(seen, values)(wanted)
    except QhullError:  # points on one line have no triangles
        linear = np.full((len(wanted), original.shape[-1]), np.nan)
    outside = np.isnan(linear[:, 0])
    if outside.any():
        linear[outside] = NearestNDInterpolator(seen, values)(wanted[outside])
    filled[hidden] = linear
    return filled
