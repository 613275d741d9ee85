"""From numbers to pictures a person can read. Arrays only: no network, no file.

All panels are ``[H, W, 3] uint8``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

#: Every panel a reconstruction offers.
PANELS = ("original", "masked", "reconstruction", "pasted", "error")

#: Neutral grey of a hidden patch, the same as on the page.
HIDDEN_COLOUR = (107, 114, 128)

#: The error map: mean absolute colour error, white at 0 to dark red at ``ERROR_TOP`` percent and above.
ERROR_TOP = 40.0
_ERROR_STOPS = (0.0, 0.25, 0.6, 1.0)
_ERROR_COLOURS = ((255, 255, 255), (250, 190, 170), (200, 50, 40), (80, 0, 10))


def pixel_mask(hidden: Bools, grid: tuple[int, int], patch_size: int) -> Bools:
    """A mask of patches ``[L]`` as a mask of pixels ``[H, W]``."""
    return hidden.reshape(grid).repeat(patch_size, axis=0).repeat(patch_size, axis=1)


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
    return np.where(hidden[..., None], reconstruction, original)


def error_map(original: Floats, reconstruction: Floats, hidden: Bools) -> Pixels:
    """Colour error of the hidden pixels by the scale above; visible ones faded to a quarter."""
    error = 100 * np.abs(reconstruction - original).mean(axis=-1) / ERROR_TOP
    colours = np.array(_ERROR_COLOURS, dtype=np.float64)
    mapped = np.stack([np.interp(error, _ERROR_STOPS, colours[:, c]) for c in range(3)], axis=-1)
    faded = 255 - 0.25 * (255 - 255 * original)
    return np.where(hidden[..., None], mapped, faded).round().astype(np.uint8)


def error_scale() -> dict[str, object]:
    """What the colours of ``error_map`` mean, for a legend."""
    stops = [
        {"percent": round(stop * ERROR_TOP, 1), "colour": "#" + bytes(colour).hex()}
        for stop, colour in zip(_ERROR_STOPS, _ERROR_COLOURS, strict=True)
    ]
    return {"low": 0.0, "high": ERROR_TOP, "unit": "percent of the full colour range", "stops": stops}


def side_by_side(panels: list[Pixels], gap: int = 8) -> Pixels:
    """Panels of equal height in one row on white, as in the paper's Fig. 2."""
    bar = np.full((panels[0].shape[0], gap, 3), 255, dtype=np.uint8)
    row: list[Pixels] = [panels[0]]
    for panel in panels[1:]:
        row += [bar, panel]
    return np.concatenate(row, axis=1)
