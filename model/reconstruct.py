"""A picture file and options in, a reconstruction out: the whole path in three steps.

    prepare (bytes, options -> Job)  ->  run (jobs -> predictions)  ->  finish (-> Reconstruction)

The server calls the outer two in threads and ``run`` in its one model worker; everyone else calls the
``Reconstructor`` itself, which does all three.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from model import images, scores, views
from model.checkpoints.registry import shipped
from model.config import PICTURE_TARGETS, MAEConfig
from model.cover import Merged
from model.errors import CheckpointError, MaskError
from model.images import Photo
from model.loading import Facts, Loaded, open_weights
from model.masking import Mask
from model.options import Options, unknown_choice
from model.placement import Placement
from model.recent import Recent
from model.result import Job, Prediction, Reconstruction

Floats = NDArray[np.float32]

#: What the encoder can say of a whole picture: its class token, the mean of its patch tokens, or all of these.
EMBEDDINGS = ("cls", "mean", "patch")
#: Views a model has, by what it predicts; the first is taken where none is asked for.
_VIEWS = {
    "pixel": ("pixels",),
    "norm_pixel": ("estimated", "normalised", "oracle"),
    "norm_pixel_stats": ("predicted", "estimated", "normalised", "oracle"),
}
#: What the logarithm of a patch's deviation can be: from a flat one to black and white in halves, with room.
_LOG_DEVIATION = (-7.0, 2.0)
#: Photos kept as they were cut out: 150 kB each on the usual grid, 1.2 MB on the largest.
_CUTS = 16
#: Patches in one call of the network on a GPU: 128 pictures of 14 x 14, 15 of 40 x 40.
_MOST_PATCHES = 128 * 14 * 14


@dataclass(frozen=True)
class Look:
    """A whole picture to embed.

    Attributes:
        pixels: ``[S, S, 3] uint8``.
        kind: One of ``EMBEDDINGS``.
    """

    pixels: NDArray[np.uint8]
    kind: str


class Reconstructor:
    """Weights that repaint hidden patches. Safe to share between threads.

    Args:
        loaded: A weight file with its engine.
    """

    def __init__(self, loaded: Loaded) -> None:
        #: The file with its engine: what another process may take its facts from.
        self.loaded = loaded
        self._config = config = loaded.facts.config
        self.name = loaded.facts.name
        self.digest = loaded.facts.digest
        self.identity = loaded.facts.identity
        self.device = loaded.device
        self.grid = config.grid
        self.image_size = config.image_size
        self.patch_size = config.patch_size
        self._channels = config.channels
        self._cuts: Recent[tuple[Placement, tuple[int, int], NDArray[np.uint8]]] = Recent(_CUTS)
        self._colours = views.Colours.of(config)
        #: Views this model has; the first is taken where none is asked for.
        self.views = _views_of(loaded.facts)
        self.parameters = loaded.facts.parameters

    def __repr__(self) -> str:
        rows, columns = self.grid
        engine = self.loaded.engine
        return (
            f"<Reconstructor {self.name}: {self.parameters / 1e6:.1f} M weights, {rows} x {columns} patches of "
            f"{self.patch_size} px, {engine.name} in {engine.precision} on {self.device}>"
        )

    def describe(self) -> dict[str, Any]:
        """What this model is, JSON-ready: name, shape, parameters, digest, and its card's facts."""
        return {
            **self.loaded.facts.card,  # first: it may say what it likes, and is not believed about the rest
            "name": self.name,
            "parameters": self.parameters,
            "grid": list(self.grid),
            **self._config.to_dict(),
            "views": list(self.views),
            "digest": self.digest,
            "device": self.device,
            **self.loaded.describe(),
        }

    def view_of(self, options: Options) -> str:
        """How a prediction becomes a picture under these options.

        Raises:
            MaskError: They ask for a view this model does not have.
        """
        view = self.views[0] if options.view is None else options.view
        if view not in self.views:
            raise MaskError(
                f"view is {view!r:.60}; {self.name} offers {', '.join(self.views)}.",
                code="view",
                hint="Leave out view, or give one of these.",
                field="view",
            )
        return view

    def prepare(self, image: Photo, options: Options) -> Job:
        """Decode and crop the picture, make the mask.

        Args:
            image: A picture file's bytes, its path, a Pillow picture, or ``[H, W, 3] uint8``.
            options: What to hide, where to look.

        Raises:
            ImageError: The picture cannot be used.
            MaskError: The options give no mask, or ask for a view this model does not have.
        """
        began = time.perf_counter()
        view = self.view_of(options)
        options.check()
        # By content: a live page sends the same photo again with every move of the mask.
        file = images.file_of(image)
        key = (hashlib.sha256(file).digest(), options.fit, options.crop, options.grid)
        placement, grid, pixels = self._cuts.get(key, lambda: self._cut(file, options))
        masks, seed = options.masks(grid)
        elapsed = 1000 * (time.perf_counter() - began)
        return Job(pixels, masks, options, seed, elapsed, view, placement)

    def _cut(self, image: bytes, options: Options) -> tuple[Placement, tuple[int, int], NDArray[np.uint8]]:
        with images.Picture(image) as picture:
            placement, grid = options.place(picture.size, self.grid)
            pixels = picture.cut(placement.box, (grid[1] * self.patch_size, grid[0] * self.patch_size))
        return placement, grid, images.grey(pixels) if self._channels == 1 else pixels

    def run(self, jobs: list[Job]) -> list[Prediction]:
        """Predict for several jobs, each under all of its masks.

        On the CPU one by one: a batch is hardly faster there, and matrix products of another height round
        otherwise, so the same request would not always give the same bytes. On a GPU in groups of equal grid and
        visible count (padding is slower).
        """
        *_, predictions = self.work(jobs)
        return cast(list[Prediction], predictions)

    def _calls(self, jobs: list[Job]) -> Generator[None, None, list[Prediction]]:
        """``run``, which pauses after each call of the network."""
        merged = [Merged() for _ in jobs]
        elapsed = [0.0] * len(jobs)
        for members in self._groups(jobs):
            began = time.perf_counter()
            pred = self._predict([(jobs[position], mask) for position, mask in members])
            took = 1000 * (time.perf_counter() - began)
            for position in {position for position, _ in members}:
                elapsed[position] += took
            for (position, mask), patches in zip(members, pred, strict=True):
                merged[position].add(self._shown(patches, jobs[position], mask), mask)
            yield
        return [
            self._prediction(job, one, took) for job, one, took in zip(jobs, merged, elapsed, strict=True)
        ]

    def _prediction(self, job: Job, merged: Merged, run_ms: float) -> Prediction:
        engine = self.loaded.engine_for(job.grid)
        spread = merged.spread() if len(job.masks) > 1 else None
        return Prediction(merged.pixels(), run_ms, spread, engine.name, engine.precision)

    def _groups(self, jobs: list[Job]) -> Iterator[list[tuple[int, Mask]]]:
        """Job number and mask of what can run in one call of the network, each once."""
        groups: dict[object, list[tuple[int, Mask]]] = {}
        for position, job in enumerate(jobs):
            for number, mask in enumerate(job.masks):
                alike = (mask.grid, mask.hidden_count, job.options.positions)
                key = (position, number) if self.device == "cpu" else alike
                groups.setdefault(key, []).append((position, mask))
        for members in groups.values():
            most = max(_MOST_PATCHES // members[0][1].hidden.size, 1)
            for start in range(0, len(members), most):
                yield members[start : start + most]

    def _predict(self, items: list[tuple[Job, Mask]]) -> Floats:
        """``[B, L, V]`` in target units for items of one group.

        Raises:
            CheckpointError: They are no numbers: the weights overflow.
        """
        pred = self.loaded.engine_for(items[0][1].grid).run(
            np.stack([job.pixels[..., : self._channels] for job, _ in items]),
            np.stack([mask.ids_keep for _, mask in items]),
            np.stack([mask.ids_restore for _, mask in items]),
            items[0][0].options.positions,
        )
        if not np.isfinite(pred).all():
            raise CheckpointError(
                f"{self.name} predicts numbers that are not finite.",
                code="finite",
                hint="Its weights are damaged or from a training that came apart: fetch them again, or take others.",
            )
        return pred

    def _shown(self, patches: Floats, job: Job, mask: Mask) -> Floats:
        """The output of the network ``[L, V]`` as a picture ``[H, W, 3]`` in 0..1."""
        values = self._config.patch_values
        picture = views.unpatchify(patches[None, :, :values], mask.grid, self.patch_size)[0]
        # Mean and logarithm of the deviation, where the model tells them.
        told = patches[:, values:].reshape(*mask.grid, -1)
        return self._as_viewed(picture, job, mask, told)

    def _as_viewed(self, picture: Floats, job: Job, mask: Mask, told: Floats | None = None) -> Floats:
        """Pixels or standardised patches ``[H, W, C]`` as a picture ``[H, W, 3]`` in 0..1."""
        if job.view == "pixels":
            return _in_colour(self._colours.shown(picture))
        if job.view == "normalised":
            return _in_colour(views.contrast(picture))
        true = self._colours.statistics(self._original(job), self.patch_size)
        hidden = mask.hidden.reshape(mask.grid)
        # What stands in the hidden places of ``true`` is overwritten unread.
        if job.view == "estimated":
            true = scores.interpolate(true, hidden)
        elif job.view == "predicted" and told is not None:
            deviation = np.exp(told[..., 1:].clip(*_LOG_DEVIATION))
            true = np.where(hidden[..., None], np.concatenate([told[..., :1], deviation], axis=-1), true)
        return _in_colour(self._colours.denormalise(picture, true))

    def finish(self, job: Job, prediction: Prediction) -> Reconstruction:
        """Score the prediction over the hidden pixels, beside the trivial fills."""
        began = time.perf_counter()
        original = self._original(job)
        if job.view == "normalised":
            original = self._colours.as_contrast(original, self.patch_size)
        original = _in_colour(original)
        hidden = views.pixel_mask(job.hidden, job.grid, self.patch_size)
        fills: dict[str, Callable[[Floats, NDArray[np.bool_]], Floats]] = {"plain_fill": scores.plain_fill}
        if job.options.interpolation:
            fills["interpolation"] = scores.interpolate
        candidates = [views.paste(original, prediction.pixels, hidden)]
        candidates += [self._filled(fill, original, job) for fill in fills.values()]
        own, *others = scores.score(original, candidates, hidden, ssim=job.options.ssim)
        metrics: dict[str, Any] = own.to_dict()
        metrics |= {name: other.to_dict() for name, other in zip(fills, others, strict=True)}
        elapsed = 1000 * (time.perf_counter() - began)
        return Reconstruction(
            job, prediction, self.name, self.digest, self._config.target, self.patch_size,
            metrics, original, elapsed,
        )  # fmt: skip

    def _filled(
        self, fill: Callable[[Floats, NDArray[np.bool_]], Floats], original: Floats, job: Job
    ) -> Floats:
        """What a trivial fill makes of the same holes, put together as the predictions are."""
        merged = Merged()
        for mask in job.masks:
            hidden = views.pixel_mask(mask.hidden, mask.grid, self.patch_size)
            merged.add(fill(original, hidden), mask)
        return merged.pixels()

    def _original(self, job: Job) -> Floats:
        """The photo, ``[H, W, C]`` in 0..1."""
        return views.to_floats(job.pixels[..., : self._channels])

    def prepare_embedding(self, image: Photo, kind: str = "cls") -> Look:
        """Decode and cut the centre square of a picture that is to be embedded.

        Args:
            image: As for ``prepare``.
            kind: One of ``EMBEDDINGS``.

        Raises:
            ImageError: The picture cannot be used.
            MaskError: There is no such kind.
        """
        if kind not in EMBEDDINGS:
            raise unknown_choice("kind", kind, EMBEDDINGS)
        pixels = images.load_square(images.file_of(image), self.image_size)
        return Look(images.grey(pixels) if self._channels == 1 else pixels, kind)

    def embed_all(self, looks: list[Look]) -> list[Floats]:
        """What the encoder makes of whole pictures, nothing hidden; on a GPU too in full precision.

        Returns:
            For each ``[D]``, or ``[L, D]`` for ``patch``, after the encoder's last norm.
        """
        engine = self.loaded.engine_for(self.grid)
        results: list[Floats] = []
        for look in looks:
            tokens = engine.encode(look.pixels[None, ..., : self._channels])[0]  # [1 + L, D]
            pooled = {"cls": tokens[0], "mean": tokens[1:].mean(axis=0), "patch": tokens[1:]}
            results.append(pooled[look.kind])
        return results

    def embed(self, image: Photo, kind: str = "cls") -> Floats:
        """``prepare_embedding`` and ``embed_all`` for one picture."""
        return self.embed_all([self.prepare_embedding(image, kind)])[0]

    def work(self, jobs: Sequence[Job | Look]) -> Iterator[list[Prediction | Floats] | None]:
        """``run`` and ``embed_all`` for a mixed queue: what a service's one worker calls.

        Yields:
            None after each call of the network, so that others may have theirs; in the end what was made of all jobs,
            in their order.
        """
        predictions = iter((yield from self._calls([job for job in jobs if isinstance(job, Job)])))
        embeddings = iter(self.embed_all([job for job in jobs if isinstance(job, Look)]))
        yield [next(predictions) if isinstance(job, Job) else next(embeddings) for job in jobs]

    def __call__(self, image: Photo, options: Options | None = None, **changes: Any) -> Reconstruction:
        """``prepare``, ``run`` and ``finish`` for one picture.

        Args:
            image: A picture file's bytes, its path, a Pillow picture, or ``[H, W, 3] uint8``.
            options: What to hide, where to look.
            **changes: Single fields of ``Options``, in place of those of ``options``: ``ratio=0.9``.
        """
        job = self.prepare(image, replace(options or Options(), **changes))
        return self.finish(job, self.run([job])[0])


def _views_of(facts: Facts) -> tuple[str, ...]:
    """Views of a model.

    Raises:
        CheckpointError: What it predicts, or what it looks at, is not a picture.
    """
    config = facts.config
    refuse_what_is_no_picture(facts.name, config)
    if config.channels not in (1, 3):
        raise CheckpointError(
            f"{facts.name} looks at {config.channels} channels, but picture files have 3 colours or 1 grey channel.",
            code="channels",
            hint="Give it an array: python -m model reconstruct ARRAY.npy --weights FILE, or model.arrays.repaint.",
        )
    return _VIEWS[config.target]


def refuse_what_is_no_picture(name: str, config: MAEConfig) -> None:
    """Refuse a model whose prediction is not pixels.

    Raises:
        CheckpointError: It is one.
    """
    if config.target not in PICTURE_TARGETS:
        raise CheckpointError(
            f"{name} predicts {config.target!r} of each patch, not pixels: it has no picture to show.",
            code="target",
            hint="Use a model of raw or normalised pixels; this one's encoder can be exported and evaluated.",
        )


def _in_colour(picture: Floats) -> Floats:
    """``[H, W, 1]`` or ``[H, W, 3]`` to ``[H, W, 3]``."""
    return picture if picture.shape[-1] == 3 else picture.repeat(3, axis=-1)


def load(
    path: Path | str | None = None,
    device: str | None = None,
    *,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Reconstructor:
    """Load a weight file.

    Args:
        path: A file or folder of any layout that ``checkpoints.layouts`` knows; None for the shipped ``mini``.
        device: ``cpu``, ``cuda``, ...; None for the GPU where there is one, or the CPU for OpenVINO.
        engine: ``auto`` (the fastest that proves itself against torch), ``openvino`` (on a CPU) or ``torch``.
        precision: ``float32``, or ``bfloat16`` where the device has it; ``auto``: that on a GPU, float32 on a CPU.
        threads: CPU threads of OpenVINO; None for those this process may use. Torch keeps its own number.

    Raises:
        CheckpointError: File, device, engine or precision cannot be used.
    """
    source = Path(path) if path else shipped()
    return Reconstructor(open_weights(source, device, engine=engine, precision=precision, threads=threads))
