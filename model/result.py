"""What goes through a reconstruction and what comes out of it: job, prediction, panels, figures, answer."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model import images, placement, provenance, views
from model.errors import ImageError, MaskError
from model.images import Photo
from model.masking import Mask
from model.options import Options
from model.placement import Placement
from model.views import EVERY_PANEL, PANELS, UNCERTAINTY, VIEWS

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

#: The paper's Fig. 2: what the model saw, what it made of it, what was there.
TRIPTYCH = ("masked", "reconstruction", "original")
#: Of a JPEG in a notebook, which keeps every picture it shows in its file.
_NOTEBOOK_QUALITY = 90


@dataclass(frozen=True)
class Job:
    """A picture and its masks, ready for the network.

    Attributes:
        pixels: ``[H, W, 3] uint8``, what the network looks at: whole patches of the grid.
        masks: What is hidden, each time the network runs; all on one grid.
        options: As asked.
        seed: The seed really used, where one was needed.
        prepare_ms: Time this took.
        view: How the prediction will become a picture.
        placement: Which part of the original the pixels are.
    """

    pixels: Pixels = field(repr=False)
    masks: tuple[Mask, ...] = field(repr=False)
    options: Options
    seed: int | None
    prepare_ms: float
    view: str
    placement: Placement

    @property
    def mask(self) -> Mask:
        """The mask; of several the first."""
        return self.masks[0]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.mask.grid

    @cached_property
    def hidden(self) -> NDArray[np.bool_]:
        """``[L]``: patches that were hidden at least once, so that there is a prediction worth the name."""
        every: NDArray[np.bool_] = np.logical_or.reduce([mask.hidden for mask in self.masks])
        return every


@dataclass(frozen=True)
class Prediction:
    """What the network painted.

    Attributes:
        pixels: ``[H, W, 3] float32``, 0..1, every patch, visible ones too; of several masks the mean over those
            that hid the patch.
        run_ms: Time of the network for the groups this job ran in.
        spread: With several masks ``[rows, columns] float32``, see ``cover.Merged.spread``; else None.
        engine: What computed it, see ``engines``.
        precision: In which numbers.
    """

    pixels: Floats = field(repr=False)
    run_ms: float
    spread: Floats | None = field(default=None, repr=False)
    engine: str = "torch"
    precision: str = "float32"


@dataclass(frozen=True)
class Reconstruction:
    """The result: panels, scores, and what is needed to repeat it.

    Attributes:
        job: What was asked.
        prediction: What the network painted.
        model: Name of the model.
        digest: SHA-256 of its weights, hex.
        target: What it predicts, one of ``model.config.PICTURE_TARGETS``.
        patch_size: Of the model.
        metrics: Figures over the hidden pixels.
        compared: ``[H, W, 3]`` in 0..1, what the prediction is held against.
        finish_ms: Time of scoring.
    """

    job: Job
    prediction: Prediction
    model: str
    digest: str
    target: str
    patch_size: int
    metrics: dict[str, Any]
    compared: Floats = field(repr=False)
    finish_ms: float = field(default=0.0)

    @cached_property
    def _hidden(self) -> NDArray[np.bool_]:
        return views.pixel_mask(self.job.hidden, self.job.grid, self.patch_size)

    def panel(self, name: str) -> Pixels:
        """One picture ``[H, W, 3] uint8``.

        Args:
            name: One of ``PANELS``: ``original``, ``masked`` (of several masks the first), ``reconstruction`` (raw
                output everywhere; visible patches look worse there because no loss ever asked for them), ``pasted``
                (patches that were never hidden put back), ``error`` (see ``views.error_scale``); or with cover
                ``ensemble`` also ``uncertainty`` (see ``views.uncertainty_scale``).

        Raises:
            MaskError: There is no such panel.
        """
        check_panels((name,), self.job.options.cover)
        if name == "original":
            return self.job.pixels
        if name == "masked":
            hidden = views.pixel_mask(self.job.mask.hidden, self.job.grid, self.patch_size)
            return views.masked(self.job.pixels, hidden)
        if name == "error":
            return views.error_map(self.compared, self.prediction.pixels, self._hidden)
        if name == UNCERTAINTY:
            assert self.prediction.spread is not None  # an ensemble has one
            return views.uncertainty_map(self.compared, self.prediction.spread)
        if name == "pasted":
            return views.to_pixels(views.paste(self.compared, self.prediction.pixels, self._hidden))
        return views.to_pixels(self.prediction.pixels)

    def full_size(self, image: Photo, name: str = "pasted") -> Pixels:
        """A panel laid over the upright original at its size and place: ``[H, W, 3] uint8``.

        ``pasted`` and ``masked`` change hidden patches alone: whatever was visible, or not looked at, keeps every
        pixel of the original. Of the other panels the whole box is laid over it, enlarged.

        Args:
            image: The picture that was reconstructed, as it was given.
            name: A panel.

        Raises:
            MaskError: There is no such panel.
            ImageError: The file is of another size than the one that was reconstructed.
        """
        panel = self.panel(name)  # refuses an unknown one before anything is decoded
        place = self.job.placement
        with images.Picture(images.file_of(image)) as picture:
            if picture.size != (place.original_width, place.original_height):
                raise ImageError(
                    f"image is {picture.size[0]} x {picture.size[1]} pixels, but the reconstructed one was "
                    f"{place.original_width} x {place.original_height}.",
                    code="image-other",
                    hint="Give the file that was reconstructed.",
                    field="image",
                )
            whole = picture.cut((0, 0, *picture.size), picture.size)
        if name == "original":
            return whole
        shown = {"masked": self.job.mask.hidden, "pasted": self.job.hidden}.get(name)
        if self.job.view == "normalised" and name == "pasted":
            shown = None  # its visible patches are no photo
        hidden = None if shown is None else shown.reshape(self.job.grid)
        return images.lay_over(whole, panel, place.box, hidden, smooth=name in ("reconstruction", "pasted"))

    def png(self, name: str) -> bytes:
        """One panel as a PNG file, labelled."""
        return provenance.write(self.panel(name), self.settings((name,)))

    def sheet(self, names: tuple[str, ...] = TRIPTYCH) -> bytes:
        """Several panels side by side as one PNG file, labelled."""
        return provenance.write(
            views.side_by_side([self.panel(name) for name in names]), self.settings(names)
        )

    def __repr__(self) -> str:
        job, own, plain = self.job, self.metrics, self.metrics["plain_fill"]
        masks = f"{job.mask.hidden_count} of {job.mask.hidden.size} patches hidden"
        if len(job.masks) > 1:
            masks = f"{len(job.masks)} masks, {masks} in the first"
        seed = "" if job.seed is None else f", seed {job.seed}"
        return (
            f"<Reconstruction by {self.model}: {masks} ({job.options.strategy}{seed}), "
            f"PSNR {own['psnr_db']:.1f} dB, a plain fill {plain['psnr_db']:.1f} dB>"
        )

    def _repr_jpeg_(self) -> bytes:
        """What a notebook shows for a result that ends a cell: the triptych, a sixth of the bytes of a PNG."""
        pixels = views.side_by_side([self.panel(name) for name in TRIPTYCH])
        return provenance.write(pixels, self.settings(TRIPTYCH), format="JPEG", quality=_NOTEBOOK_QUALITY)

    def settings(self, panels: tuple[str, ...]) -> provenance.Settings:
        """What paints these panels again (``Options.from_settings``), for ``provenance.write``."""
        options, job = self.job.options, self.job
        mask, mask_grid = provenance.pack(job.mask)
        return {
            provenance.MARK: provenance.FORM,
            "model": self.model,
            "model_digest": self.digest,
            "target": self.target,
            "panels": list(panels),
            # What hides the same again: a drawing is told by its mask.
            "strategy": "indices" if options.strategy == "drawing" else options.strategy,
            "ratio": None if options.ratio is None else str(options.ratio),
            "hidden_count": options.hidden_count,
            "seed": job.seed,
            "mask": mask,
            "mask_grid": mask_grid,
            "view": job.view,
            "view_note": VIEWS[job.view],
            "fit": options.fit,
            "crop": None if options.crop is None else ",".join(map(str, placement.read_crop(options.crop))),
            "grid": None if options.grid is None else "x".join(map(str, placement.read_grid(options.grid))),
            "cover": options.cover,
            "samples": len(job.masks) if options.cover == "ensemble" else None,
            "positions": options.positions,
        }

    def patches(self) -> dict[str, Any] | None:
        """Figures of every patch, row-major, None where it was not predicted; only where several masks ran.

        ``error_percent`` is the mean absolute colour error, ``spread_percent`` (ensemble) the deviation of its
        predictions from each other, both in percent of the full range: the numbers behind the panels ``error``
        and ``uncertainty``, usable as an anomaly map.
        """
        if self.job.options.cover == "single":
            return None
        error = views.by_patch(np.abs(self.prediction.pixels - self.compared), self.patch_size)
        each = np.where(self.job.hidden, error.mean(axis=(1, 3, 4)).reshape(-1), np.nan)
        spread = self.prediction.spread if self.job.options.cover == "ensemble" else None
        return {
            "error_percent": _percent(each),
            "spread_percent": None if spread is None else _percent(spread.reshape(-1)),
        }

    def to_dict(self, panels: tuple[str, ...] = TRIPTYCH) -> dict[str, Any]:
        """JSON-ready answer with the asked panels as data addresses."""
        job = self.job
        return {
            "model": self.model,
            "model_digest": self.digest,
            "engine": self.prediction.engine,
            "precision": self.prediction.precision,
            "strategy": job.options.strategy,
            "ratio": job.mask.ratio,
            "seed": job.seed,
            "grid": list(job.grid),
            "hidden": job.mask.indices,
            "mask_hash": job.mask.digest,
            "placement": job.placement.to_dict(),
            "cover": job.options.cover,
            "samples": len(job.masks),
            "positions": job.options.positions,
            "view": job.view,
            "view_note": VIEWS[job.view],
            "metrics": self.metrics,
            "patches": self.patches(),
            "error_scale": views.error_scale(),
            "uncertainty_scale": views.uncertainty_scale() if job.options.cover == "ensemble" else None,
            "images": {
                name: "data:image/png;base64," + base64.b64encode(self.png(name)).decode() for name in panels
            },
            "timings_ms": {
                "prepare": round(job.prepare_ms, 2),
                "run": round(self.prediction.run_ms, 2),
                "finish": round(self.finish_ms, 2),
            },
        }


class Sheet:
    """Pictures in rows, which show themselves where a sheet ends a notebook's cell.

    Args:
        *rows: Pictures of one size, as many in each row: ``[H, W, 3]`` or ``[H, W]``, ``uint8`` as panels are, or
            floats in 0..1 (what lies outside is clamped).

    Attributes:
        pixels: ``[height, width, 3] uint8``, the pictures on white.

    Raises:
        ImageError: They are none of these, or do not fit together.
    """

    def __init__(self, *rows: Iterable[ArrayLike]) -> None:
        pictures = [[_in_colour(picture) for picture in row] for row in rows]
        told = [[f"{one.shape[1]} x {one.shape[0]}" for one in row] for row in pictures]
        if len({tuple(row) for row in told}) != 1 or len(set(told[0])) != 1:
            raise ImageError(
                f"rows hold pictures of {'; '.join(', '.join(row) or 'nothing' for row in told) or 'nothing'} pixels.",
                code="image-rows",
                hint="Give at least one picture, all of one size, and as many in each row.",
                field="rows",
            )
        lying = [views.side_by_side(row).swapaxes(0, 1) for row in pictures]
        self.pixels: Pixels = views.side_by_side(lying).swapaxes(0, 1)

    def __repr__(self) -> str:
        return f"<Sheet of {self.pixels.shape[1]} x {self.pixels.shape[0]} px>"

    def _repr_jpeg_(self) -> bytes:
        return images.encode(self.pixels, "JPEG", quality=_NOTEBOOK_QUALITY)


def _in_colour(picture: ArrayLike) -> Pixels:
    """One picture of a sheet as ``[H, W, 3] uint8``."""
    array = np.asarray(picture)
    shaped = array.ndim in (2, 3) and array.shape[2:] in ((), (3,)) and array.size > 0
    if not shaped or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise ImageError(
            f"rows hold an array of {array.dtype} {list(array.shape)}; pictures are [H, W, 3] or [H, W].",
            code="image-array",
            hint="Channels come last, and values are uint8, or floats in 0..1.",
            field="rows",
        )
    pixels = views.to_pixels(array) if array.dtype.kind == "f" else array
    return pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, axis=2)


def _percent(values: NDArray[Any]) -> list[float | None]:
    return [round(100 * float(value), 3) if np.isfinite(value) else None for value in values]


def check_panels(names: tuple[str, ...], cover: str | None = None) -> None:
    """Refuse unknown panel names.

    Args:
        names: Wanted panels.
        cover: Of the request, where it is known: ``uncertainty`` needs an ensemble.

    Raises:
        MaskError: Naming the unknown one and the known ones.
    """
    if unknown := [name for name in names if name not in EVERY_PANEL]:
        raise MaskError(
            f"panels names {unknown[0]!r:.60}; known are {', '.join(EVERY_PANEL)}.",
            code="panels",
            hint="Choose from the listed panels.",
            field="panels",
        )
    if UNCERTAINTY in names and cover not in (None, "ensemble"):
        raise MaskError(
            f"panels names {UNCERTAINTY!r}, but with cover {cover!r} there is only one prediction for each patch; "
            f"known are {', '.join(PANELS)}.",
            code="panels",
            hint=f"Ask for cover=ensemble, or leave {UNCERTAINTY} out.",
            field="panels",
        )
