"""From numbers to pictures a person can read. Arrays only: no network, no file.

All panels are ``[H, W, 3] uint8``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from model.config import IMAGE_MEAN, IMAGE_STD, MAEConfig

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
N = TypeVar("N", bound=np.generic)

#: The panels that every reconstruction offers.
PANELS = ("original", "masked", "reconstruction", "pasted", "error")
#: One more with cover ``ensemble``: how much the predictions of each patch differ.
UNCERTAINTY = "uncertainty"
EVERY_PANEL = (*PANELS, UNCERTAINTY)

#: How a prediction becomes a picture, and what that is worth. A pixel model has the first alone; a model of
#: normalised pixels predicts every patch without its mean and deviation, and has the others; ``predicted`` where it was
#: trained to tell them beside (target ``norm_pixel_stats``).
VIEWS = {
    "pixels": "The prediction is the picture.",
    "estimated": "Mean and deviation of each hidden patch are interpolated from the visible patches.",
    "predicted": "Mean and deviation of each hidden patch are predicted by the model too, from the visible patches.",
    "normalised": "Contrast only: every patch at mean grey, as predicted; the figures compare the photo seen this way.",
    "oracle": "Uses the answer: mean and deviation of each hidden patch are taken from the hidden original.",
}
#: Grey levels for one deviation in the view ``normalised``: 2.5 deviations reach black and white.
_CONTRAST = 0.2

#: Neutral grey of a hidden patch, the same as on the page.
HIDDEN_COLOUR = (107, 114, 128)

_STOPS = (0.0, 0.25, 0.6, 1.0)  # shares of the scale at which the colours of a map stand

#: The error map: mean absolute colour error, white at 0 to dark red at ``ERROR_TOP`` percent and above.
ERROR_TOP = 40.0
_ERROR_COLOURS = ((255, 255, 255), (250, 190, 170), (200, 50, 40), (80, 0, 10))

#: The uncertainty map: deviation of a patch's predictions, white at 0 to dark blue at this many percent and above.
UNCERTAINTY_TOP = 20.0
_UNCERTAINTY_COLOURS = ((255, 255, 255), (170, 200, 245), (45, 95, 190), (10, 15, 80))


def pixel_mask(hidden: Bools, grid: tuple[int, int], patch_size: int) -> Bools:
    """A mask of patches ``[L]`` as a mask of pixels ``[H, W]``."""
    return per_pixel(hidden.reshape(grid), patch_size)


def per_pixel(cells: NDArray[N], patch_size: int) -> NDArray[N]:
    """One value for each patch ``[rows, columns, ...]`` to one for each pixel ``[H, W, ...]``."""
    return cells.repeat(patch_size, axis=0).repeat(patch_size, axis=1)


def by_patch(image: NDArray[N], patch_size: int) -> NDArray[N]:
    """A picture ``[H, W, C]`` cut along its patches: ``[rows, P, columns, P, C]``; axes 1, 3 and 4 lie in a patch."""
    height, width, channels = image.shape
    return image.reshape(height // patch_size, patch_size, width // patch_size, patch_size, channels)


@dataclass(frozen=True)
class Colours:
    """Pixels to a model's normalised units and back, and the target that is normalised by patches.

    Attributes:
        mean: Of every channel, for pixels in 0..1.
        std: Deviation of every channel.
    """

    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD

    @classmethod
    def of(cls, config: MAEConfig) -> Colours:
        """A model's."""
        return cls(config.image_mean, config.image_std)

    def normalised(self, pixels: Pixels) -> Floats:
        """Pixels ``[..., C] uint8`` to normalised units."""
        return self._normalised(to_floats(pixels))

    def statistics(self, image: Floats, patch_size: int) -> Floats:
        """Mean and deviation of every patch, as the normalised target takes them.

        Args:
            image: ``[H, W, C]`` in 0..1.
            patch_size: Side of a patch.

        Returns:
            ``[rows, columns, 2]`` in normalised units: over all values of a patch together, the variance unbiased
            and with 1e-6 inside the root (arXiv 2111.06377, sec. 3, and its code).
        """
        cut = by_patch(self._normalised(image), patch_size)
        deviation = np.sqrt(cut.var(axis=(1, 3, 4), ddof=1) + 1e-6)
        return np.stack([cut.mean(axis=(1, 3, 4)), deviation], axis=-1).astype(np.float32)

    def denormalise(self, standardised: Floats, values: Floats) -> Floats:
        """Put mean and deviation back.

        Args:
            standardised: ``[H, W, C]``, every patch with mean 0 and deviation 1.
            values: ``[rows, columns, 2]`` as from ``statistics``.

        Returns:
            ``[H, W, C]``, clamped to 0..1.
        """
        cut = by_patch(standardised, standardised.shape[0] // values.shape[0])
        mean, deviation = _beside(values)
        return self.shown((cut * deviation + mean).reshape(standardised.shape))

    def shown(self, normalised: Floats) -> Floats:
        """Normalised units ``[..., C]`` to pixels, clamped to 0..1."""
        mean, std = self._of_row(normalised)
        return (normalised.reshape(-1, mean.size) * std + mean).clip(0, 1).reshape(normalised.shape)

    def as_contrast(self, image: Floats, patch_size: int) -> Floats:
        """What a prediction in the view ``normalised`` is held against: the photo ``[H, W, C]`` seen the same way."""
        mean, deviation = _beside(self.statistics(image, patch_size))
        cut = by_patch(self._normalised(image), patch_size)
        return contrast(((cut - mean) / deviation).reshape(image.shape))

    def _normalised(self, image: Floats) -> Floats:
        mean, std = self._of_row(image)
        return ((image.reshape(-1, mean.size) - mean) / std).reshape(image.shape)

    def _of_row(self, image: Floats) -> tuple[Floats, Floats]:
        """Mean and deviation of every value in a row of ``[..., W, C]``: numpy takes rows at once, but not channels."""
        mean, std = (np.tile(np.array(of, dtype=np.float32), image.shape[-2]) for of in (self.mean, self.std))
        return mean, std


def _beside(values: Floats) -> tuple[Floats, Floats]:
    """Mean and deviation of each patch ``[rows, columns, 2]``, each in the shape that meets ``by_patch``."""
    return values[:, None, :, None, None, 0], values[:, None, :, None, None, 1]


def unpatchify(pred: Floats, grid: tuple[int, int], patch_size: int) -> Floats:
    """Patches ``[B, L, P*P*C]`` laid out as pictures ``[B, H, W, C]``."""
    rows, columns = grid
    cut = pred.reshape(len(pred), rows, columns, patch_size, patch_size, -1).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(len(pred), rows * patch_size, columns * patch_size, -1)


def contrast(standardised: Floats) -> Floats:
    """Standardised patches around mean grey, ``[H, W, C]`` in 0..1."""
    return (0.5 + _CONTRAST * standardised).clip(0, 1)


def to_floats(pixels: Pixels) -> Floats:
    """0..255 to 0..1."""
    return pixels.astype(np.float32) / np.float32(255)


def to_pixels(image: Floats) -> Pixels:
    """0..1 to 0..255, rounded; what lies outside is clamped."""
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def masked(original: Pixels, hidden: Bools) -> Pixels:
    """The picture as the model gets it: hidden pixels ``[H, W]`` grey."""
    shown = original.copy()
    shown[hidden] = HIDDEN_COLOUR
    return shown


def paste(original: Floats, reconstruction: Floats, hidden: Bools) -> Floats:
    """The reconstruction with its visible pixels put back."""
    pasted = cv2.copyTo(reconstruction, hidden.view(np.uint8), original.copy())
    return pasted.astype(np.float32, copy=False).reshape(original.shape)


def error_map(original: Floats, reconstruction: Floats, hidden: Bools) -> Pixels:
    """Colour error of the hidden pixels by the scale above; visible ones faded to a quarter."""
    error = 100 * np.abs(reconstruction - original).mean(axis=-1)
    return _map(original, np.where(hidden, error, np.nan), ERROR_TOP, _ERROR_COLOURS)


def uncertainty_map(original: Floats, spread: Floats) -> Pixels:
    """Spread of every patch ``[rows, columns]`` by the scale above; where it is NaN the picture, faded."""
    each = per_pixel(100 * spread, original.shape[0] // spread.shape[0])
    return _map(original, each, UNCERTAINTY_TOP, _UNCERTAINTY_COLOURS)


def _map(original: Floats, percent: Floats, top: float, palette: tuple[tuple[int, ...], ...]) -> Pixels:
    colours = np.array(palette, dtype=np.float64)
    mapped = np.stack([np.interp(percent / top, _STOPS, colours[:, c]) for c in range(3)], axis=-1)
    faded = 255 - 0.25 * (255 - 255 * original)
    return np.where(np.isnan(percent)[..., None], faded, mapped).round().astype(np.uint8)


def error_scale() -> dict[str, object]:
    """What the colours of ``error_map`` mean, for a legend."""
    return _scale(ERROR_TOP, _ERROR_COLOURS)


def uncertainty_scale() -> dict[str, object]:
    """What the colours of ``uncertainty_map`` mean, likewise."""
    return _scale(UNCERTAINTY_TOP, _UNCERTAINTY_COLOURS)


def _scale(top: float, palette: tuple[tuple[int, ...], ...]) -> dict[str, object]:
    stops = [
        {"percent": round(stop * top, 1), "colour": "#" + bytes(colour).hex()}
        for stop, colour in zip(_STOPS, palette, strict=True)
    ]
    return {"low": 0.0, "high": top, "unit": "percent of the full colour range", "stops": stops}


def side_by_side(panels: list[Pixels], gap: int = 8) -> Pixels:
    """Panels of equal height in one row on white, as in the paper's Fig. 2."""
    bar = np.full((panels[0].shape[0], gap, 3), 255, dtype=np.uint8)
    row: list[Pixels] = [panels[0]]
    for panel in panels[1:]:
        row += [bar, panel]
    return np.concatenate(row, axis=1)
