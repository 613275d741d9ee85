"""A picture file and options in, a reconstruction out: the whole path in three steps.

    prepare (bytes, options -> Job)  ->  run (jobs -> predictions)  ->  finish (-> Reconstruction)

The server calls the outer two in threads and ``run`` in its one model worker; everyone else calls the
``Reconstructor`` itself, which does all three.
"""

from __future__ import annotations

import base64
import secrets
import time
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import images, scores, views
from model.checkpoints import store
from model.errors import CheckpointError, MaskError
from model.masking import (
    DEFAULT_RATIO,
    MAX_SEED,
    Mask,
    hidden_count,
    mask_from_drawing,
    mask_from_indices,
    sample_mask,
)
from model.views import PANELS, VIEWS

#: The paper's Fig. 2: what the model saw, what it made of it, what was there.
TRIPTYCH = ("masked", "reconstruction", "original")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to hide and what to measure; the same for REST, page and command line.

    Attributes:
        strategy: ``random``, ``block``, ``grid``, ``indices`` or ``drawing``.
        ratio: Share to hide, above 0 and below 1; by default 0.75. Read by its decimal text.
        hidden_count: Patches to hide, instead of ``ratio``.
        seed: Decides a sampled mask; drawn where it is left out, and told in the result.
        indices: Hidden patches, row-major from 0, for strategy ``indices``.
        drawing: A picture file, white = hide, for strategy ``drawing``.
        interpolation: Also score linear interpolation, which takes a tenth of a second.
    """

    strategy: str = "random"
    ratio: Decimal | float | str | None = None
    hidden_count: int | None = None
    seed: int | None = None
    indices: tuple[int, ...] | None = None
    drawing: bytes | None = None
    interpolation: bool = False
    view: str | None = None

    def mask(self, grid: tuple[int, int]) -> tuple[Mask, int | None]:
        """The mask these options ask for, and the seed it came from (None: none was needed).

        Raises:
            MaskError: Options are out of range or contradict each other.
            ImageError: The drawing is no readable picture.
        """
        self._check_fits()
        if self.strategy == "indices":
            return mask_from_indices(self.indices or (), grid), self.seed
        if self.strategy == "drawing":
            return mask_from_drawing(images.load_grey(self.drawing or b""), grid), self.seed
        patches = grid[0] * grid[1]
        count = self.hidden_count
        if count is None:
            count = hidden_count(str(DEFAULT_RATIO if self.ratio is None else self.ratio), patches)
        seed = secrets.randbelow(MAX_SEED + 1) if self.seed is None else self.seed
        return sample_mask(self.strategy, grid, count, seed), seed

    def _check_fits(self) -> None:
        """Refuse options that the strategy would have to ignore: nothing is guessed silently."""
        for name in ("indices", "drawing"):
            given = getattr(self, name) is not None
            if given != (self.strategy == name):
                verb = "needs" if not given else "is only read with"
                what = f"strategy {name!r} needs {name}" if not given else f"{name} {verb} strategy {name!r}"
                raise MaskError(
                    f"{what}, and strategy is {self.strategy!r:.60}.",
                    code=f"mask-{name}",
                    hint=f"Give {name} together with strategy={name}, or leave it out.",
                    field=name,
                )
        listed = self.strategy in ("indices", "drawing")
        for name in ("ratio", "hidden_count"):
            if getattr(self, name) is not None and (
                listed or (name == "ratio" and self.hidden_count is not None)
            ):
                why = (
                    f"strategy {self.strategy!r} says itself what is hidden"
                    if listed
                    else "hidden_count is given too"
                )
                raise MaskError(
                    f"{name} cannot be used here: {why}.",
                    code="mask-ratio" if name == "ratio" else "mask-count",
                    hint=f"Leave out {name}.",
                    field=name,
                )


@dataclass(frozen=True)
class Job:
    """A picture and its mask, ready for the network.

    Attributes:
        pixels: ``[S, S, 3] uint8``.
        mask: What is hidden.
        options: As asked.
        seed: The seed really used, where one was needed.
        prepare_ms: Time this took.
        view: How the prediction will become a picture.
    """

    pixels: NDArray[np.uint8]
    mask: Mask
    options: Options
    seed: int | None
    prepare_ms: float
    view: str = "pixels"


@dataclass(frozen=True)
class Prediction:
    """What the network painted.

    Attributes:
        pixels: ``[S, S, 3] float32``, 0..1, every patch, visible ones too.
        run_ms: Time of the network for the group this job ran in.
    """

    pixels: NDArray[np.float32]
    run_ms: float


@dataclass(frozen=True)
class Reconstruction:
    """The result: panels, scores, and what is needed to repeat it."""

    job: Job
    prediction: Prediction
    model: str
    patch_size: int
    metrics: dict[str, Any]
    finish_ms: float = field(default=0.0)

    @cached_property
    def _original(self) -> NDArray[np.float32]:
        return _compared(self.job, self.patch_size)

    @cached_property
    def _hidden(self) -> NDArray[np.bool_]:
        return views.pixel_mask(self.job.mask.hidden, self.job.mask.grid, self.patch_size)

    def panel(self, name: str) -> NDArray[np.uint8]:
        """One picture ``[S, S, 3] uint8``.

        Args:
            name: One of ``PANELS``: ``original``, ``masked``, ``reconstruction`` (raw output everywhere; visible
                patches look worse there because no loss ever asked for them), ``pasted`` (visible patches put
                back), ``error`` (see ``views.error_scale``).

        Raises:
            MaskError: There is no such panel.
        """
        check_panels((name,))
        if name == "original":
            return self.job.pixels
        if name == "masked":
            return views.masked(self.job.pixels, self._hidden)
        if name == "error":
            return views.error_map(self._original, self.prediction.pixels, self._hidden)
        if name == "pasted":
            return views.to_pixels(views.paste(self._original, self.prediction.pixels, self._hidden))
        return views.to_pixels(self.prediction.pixels)

    def png(self, name: str) -> bytes:
        """One panel as a PNG file."""
        return images.encode_png(self.panel(name))

    def sheet(self, names: tuple[str, ...] = TRIPTYCH) -> bytes:
        """Several panels side by side as one PNG file."""
        return images.encode_png(views.side_by_side([self.panel(name) for name in names]))

    def to_dict(self, panels: tuple[str, ...] = TRIPTYCH) -> dict[str, Any]:
        """JSON-ready answer with the asked panels as data addresses."""
        return {
            "model": self.model,
            "strategy": self.job.options.strategy,
            "ratio": self.job.mask.ratio,
            "seed": self.job.seed,
            "grid": list(self.job.mask.grid),
            "hidden": self.job.mask.indices,
            "view": self.job.view,
            "view_note": VIEWS[self.job.view],
            "metrics": self.metrics,
            "error_scale": views.error_scale(),
            "images": {
                name: "data:image/png;base64," + base64.b64encode(self.png(name)).decode() for name in panels
            },
            "timings_ms": {
                "prepare": round(self.job.prepare_ms, 2),
                "run": round(self.prediction.run_ms, 2),
                "finish": round(self.finish_ms, 2),
            },
        }


def check_panels(names: tuple[str, ...]) -> None:
    """Refuse unknown panel names.

    Raises:
        MaskError: Naming the unknown one and the known ones.
    """
    if unknown := next((name for name in names if name not in PANELS), None):
        raise MaskError(
            f"panels names {unknown!r:.60}; known are {', '.join(PANELS)}.",
            code="panels",
            hint="Choose from the listed panels.",
            field="panels",
        )


class Reconstructor:
    """Weights that repaint hidden patches. Safe to share between threads.

    Args:
        checkpoint: A weight file that was read.
        device: Where to run it.
    """

    def __init__(self, checkpoint: store.Checkpoint, device: torch.device) -> None:
        config = checkpoint.network.config
        self._network = checkpoint.network.to(device).eval()
        self._device = device
        self._card = checkpoint.card
        self.name = checkpoint.name
        self.digest = checkpoint.digest
        self.grid = config.grid
        self.image_size = config.image_size
        self.patch_size = config.patch_size
        #: Views this model has; the first is taken where none is asked for.
        self.views = ("pixels",) if config.target == "pixel" else ("estimated", "normalised", "oracle")
        self.parameters = sum(parameter.numel() for parameter in self._network.parameters())

    @property
    def device(self) -> str:
        """Where the network runs: ``cpu`` or ``cuda:0``."""
        return str(self._device)

    def describe(self) -> dict[str, Any]:
        """What this model is, JSON-ready: name, shape, parameters, digest, and its card's facts."""
        config = self._network.config
        return {
            "name": self.name,
            "parameters": self.parameters,
            "grid": list(self.grid),
            **config.to_dict(),
            "views": list(self.views),
            "digest": self.digest,
            "device": self.device,
            **self._card,
        }

    def prepare(self, image: bytes, options: Options) -> Job:
        """Decode and crop the picture, make the mask.

        Raises:
            ImageError: The picture cannot be used.
            MaskError: The options give no mask, or ask for a view this model does not have.
        """
        began = time.perf_counter()
        view = self.views[0] if options.view is None else options.view
        if view not in self.views:
            raise MaskError(
                f"view is {view!r:.60}, and {self.name} has {', '.join(self.views)}.",
                code="view",
                hint="Leave out view, or choose one of these.",
                field="view",
            )
        mask, seed = options.mask(self.grid)
        pixels = images.load_square(image, self.image_size)
        return Job(pixels, mask, options, seed, 1000 * (time.perf_counter() - began), view)

    @torch.inference_mode()
    def run(self, jobs: list[Job]) -> list[Prediction]:
        """Predict for several jobs.

        On the CPU one by one: a batch is hardly faster there, and matrix products of another height round
        otherwise, so the same request would not always give the same bytes. On a GPU in groups of equal visible
        count (padding is slower).
        """
        groups: dict[int, list[int]] = {}
        for position, job in enumerate(jobs):
            group = position if self._device.type == "cpu" else job.mask.hidden_count
            groups.setdefault(group, []).append(position)
        results: list[Prediction | None] = [None] * len(jobs)
        for members in groups.values():
            began = time.perf_counter()
            pixels = self._predict([jobs[position] for position in members])
            elapsed = 1000 * (time.perf_counter() - began)
            for position, picture in zip(members, pixels, strict=True):
                results[position] = Prediction(self._as_viewed(picture, jobs[position]), elapsed)
        return [result for result in results if result is not None]

    def _predict(self, jobs: list[Job]) -> NDArray[np.float32]:
        """``[B, S, S, 3]`` for jobs with equally many visible patches: colours in 0..1, or standardised patches."""

        def stack(arrays: list[NDArray[Any]]) -> Tensor:
            return torch.from_numpy(np.stack(arrays)).to(self._device)

        network = self._network
        pixels = stack([job.pixels for job in jobs]).permute(0, 3, 1, 2)  # [B, 3, S, S]
        image = network.normalise(pixels.float() / 255)
        ids_keep = stack([job.mask.ids_keep for job in jobs])
        ids_restore = stack([job.mask.ids_restore for job in jobs])
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            pred = network(image, ids_keep, ids_restore)
        picture = network.unpatchify(pred.float())
        if network.config.target == "pixel":
            picture = network.denormalise(picture).clamp(0, 1)
        result: NDArray[np.float32] = picture.permute(0, 2, 3, 1).cpu().numpy()
        return result

    def _as_viewed(self, picture: NDArray[np.float32], job: Job) -> NDArray[np.float32]:
        """The output of the network as a picture in 0..1."""
        if job.view == "pixels":
            return picture
        if job.view == "normalised":
            return views.contrast(picture)
        true = views.statistics(_original(job), self.patch_size)
        if job.view == "oracle":
            return views.denormalise(picture, true)
        hidden = job.mask.hidden.reshape(job.mask.grid)
        # What stands in the hidden places of ``true`` is overwritten unread.
        return views.denormalise(picture, scores.interpolate(true, hidden))

    def finish(self, job: Job, prediction: Prediction) -> Reconstruction:
        """Score the prediction over the hidden pixels, beside the trivial fills."""
        began = time.perf_counter()
        original = _compared(job, self.patch_size)
        hidden = views.pixel_mask(job.mask.hidden, job.mask.grid, self.patch_size)
        names = ["plain_fill"]
        candidates = [views.paste(original, prediction.pixels, hidden), scores.plain_fill(original, hidden)]
        if job.options.interpolation:
            names.append("interpolation")
            candidates.append(scores.interpolate(original, hidden))
        own, *others = scores.score(original, candidates, hidden)
        metrics: dict[str, Any] = own.to_dict()
        metrics |= {name: other.to_dict() for name, other in zip(names, others, strict=True)}
        elapsed = 1000 * (time.perf_counter() - began)
        return Reconstruction(job, prediction, self.name, self.patch_size, metrics, elapsed)

    def __call__(self, image: bytes, options: Options | None = None) -> Reconstruction:
        """``prepare``, ``run`` and ``finish`` for one picture."""
        job = self.prepare(image, options or Options())
        return self.finish(job, self.run([job])[0])


def _original(job: Job) -> NDArray[np.float32]:
    """The photo, ``[S, S, 3]`` in 0..1."""
    return job.pixels.astype(np.float32) / np.float32(255)


def _compared(job: Job, patch_size: int) -> NDArray[np.float32]:
    """What the prediction of a job is held against."""
    return views.as_compared(_original(job), job.view, patch_size)


def load(path: Path | str | None = None, device: str | None = None) -> Reconstructor:
    """Load a weight file.

    Args:
        path: A file or folder of any layout that ``checkpoints.layouts`` knows; None for the shipped ``small``.
        device: ``cpu``, ``cuda``, ...; None for the GPU where there is one.

    Raises:
        CheckpointError: The file or the device cannot be used.
    """
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise CheckpointError(
            f"Device {wanted!r} was asked for, and no usable GPU is here.",
            code="device",
            hint="Leave the device out to run on the CPU, or check the GPU's driver.",
            field="device",
        )
    return Reconstructor(store.read(Path(path) if path else store.shipped()), torch.device(wanted))
