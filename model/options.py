"""What a person may ask of a reconstruction: one value for REST, page, command line and Python."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, cast

from model import cover, images, placement, provenance
from model.errors import MaskError
from model.images import Photo
from model.masking import (
    DEFAULT_RATIO,
    MAX_SEED,
    Grid,
    Mask,
    check_sampling,
    hidden_count,
    mask_from_drawing,
    mask_from_indices,
    sample_mask,
)
from model.placement import Placement

#: Which tokens get decoder positions, see ``network.MAE.decode``.
POSITIONS = ("both", "hidden_only")
#: Strategies that are told what to hide instead of drawing it.
_GIVEN = ("indices", "drawing")
#: Options that settings hold under their own names.
REPLAYED = (
    "strategy", "ratio", "hidden_count", "seed", "view", "fit", "crop", "grid", "cover", "samples", "positions",
)  # fmt: skip
#: Options that are whole numbers, or a row of them, and the codes of what is wrong with them.
_WHOLE = {"hidden_count": "mask-count", "seed": "mask-seed", "samples": "samples"}
_ROWS = {"indices": "mask-indices", "crop": "crop", "grid": "grid"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to hide, where to look and what to measure; the same for REST, page and command line.

    Attributes:
        strategy: ``random``, ``block``, ``grid``, ``indices`` or ``drawing``.
        ratio: Share to hide, above 0 and below 1; by default 0.75. Read by its decimal text.
        hidden_count: Patches to hide, instead of ``ratio``.
        seed: Decides a sampled mask; drawn where it is left out, and told in the result.
        indices: Hidden patches, row-major from 0, for strategy ``indices``; a list or an array of whole numbers.
        drawing: A picture, white = hide, for strategy ``drawing``; it is laid over what the model sees. Bytes of a
            file, a path, a Pillow picture, or ``[H, W]`` of ``uint8`` or booleans.
        interpolation: Also score linear interpolation, which takes a tenth of a second a mask.
        ssim: Also score structural similarity; without it a live page gets its answer 10 ms sooner.
        view: How the prediction becomes a picture, one of the model's ``views``; None for its first.
        fit: ``square`` (the centre square, or ``crop``) or ``whole`` (the whole picture at its aspect).
        crop: ``left,top,side`` in pixels of the upright original, with fit ``square``.
        grid: ``ROWSxCOLUMNS``, each 4 to 40, with fit ``whole``; None for about as many patches as the model's own.
        cover: ``single`` (one mask), ``complete`` (complementary masks: every patch is predicted from others) or
            ``ensemble`` (several seeds: mean and spread). ``complete`` hides a quarter at a time where neither
            ratio nor count is given, so that every patch is predicted exactly once; with a share r it takes the
            fewest masks that cover, and averages what is predicted twice. A mask of indices or of a drawing is
            completed by its opposite.
        samples: Seeds of an ``ensemble``, 2 to 32; by default 8. They are seed, seed + 1, ...
        positions: ``both`` as trained, or ``hidden_only``: without decoder positions on visible patches.
    """

    strategy: str = "random"
    ratio: Decimal | float | str | None = None
    hidden_count: int | None = None
    seed: int | None = None
    indices: Iterable[int] | None = None
    drawing: Photo | None = field(default=None, repr=False)
    interpolation: bool = False
    ssim: bool = True
    view: str | None = None
    fit: str = "square"
    crop: str | tuple[int, int, int] | None = None
    grid: str | tuple[int, int] | None = None
    cover: str = "single"
    samples: int | None = None
    positions: str = "both"

    def __post_init__(self) -> None:
        """Make numpy's numbers, arrays and lists plain numbers and tuples, and a drawing a file: settings hold these.

        Raises:
            MaskError: A number is not whole.
            ImageError: The drawing is no picture.
        """
        if self.drawing is not None:
            object.__setattr__(self, "drawing", images.file_of(self.drawing, field="drawing"))
        for name, code in (_WHOLE | _ROWS).items():
            given = getattr(self, name)
            written = name in ("crop", "grid") and isinstance(given, str)  # as text they are read later
            if given is not None and not written:
                object.__setattr__(self, name, _whole(name, given, code))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Options:
        """The options that a labelled picture was made with (``provenance.read``, ``Reconstruction.settings``).

        On the same photo with the same model they make the same picture. A drawn mask comes back as its indices.

        Raises:
            MaskError: The settings do not hold together.
        """
        values = {name: settings[name] for name in REPLAYED if settings.get(name) is not None}
        if settings.get("strategy") in _GIVEN:
            grid = placement.read_grid(str(settings.get("mask_grid")), any_size=True)
            indices = provenance.unpack(str(settings.get("mask")), grid)
            if indices is None:
                raise MaskError(
                    f"The settings hold no mask of {grid[0]} x {grid[1]} patches.",
                    code="settings",
                    hint="Give a picture as it came from here, not edited.",
                    field="settings",
                )
            values |= {"strategy": "indices", "indices": indices}
            if settings.get("fit") == "whole":
                values["grid"] = grid
        return cls(**values)

    def check(self) -> None:
        """Refuse what can be refused before the picture is opened.

        Raises:
            MaskError: Options are out of range or contradict each other.
        """
        for name, known in (("fit", placement.FITS), ("cover", cover.COVERS), ("positions", POSITIONS)):
            if getattr(self, name) not in known:
                raise unknown_choice(name, getattr(self, name), known)
        self._check_company()
        self._check_samples()
        self._check_mask()
        self._check_draw()

    def place(self, size: tuple[int, int], own: Grid) -> tuple[Placement, Grid]:
        """Where in a picture of this width and height a model with this grid looks, and on what grid.

        Raises:
            MaskError: The crop or the grid cannot be read, or the crop leaves the picture.
        """
        crop = None if self.crop is None else placement.read_crop(self.crop)
        grid = None if self.grid is None else placement.read_grid(self.grid)
        return placement.place(size, own, fit=self.fit, crop=crop, grid=grid)

    def masks(self, grid: Grid) -> tuple[tuple[Mask, ...], int | None]:
        """The masks these options ask for, and the seed they came from (None: none was needed).

        Raises:
            MaskError: Options are out of range or contradict each other.
            ImageError: The drawing is not a readable picture.
        """
        self.check()
        if self.strategy in _GIVEN:
            given = self._given_mask(grid)
            return (cover.complement(given) if self.cover == "complete" else (given,)), self.seed
        count = self._count(grid[0] * grid[1])
        seed = secrets.randbelow(MAX_SEED + 1) if self.seed is None else self.seed
        if self.cover == "complete":
            return cover.complementary(self.strategy, grid, count, seed), seed
        assert count is not None  # only ``complete`` can do without
        if self.cover == "ensemble":
            samples = cover.DEFAULT_SAMPLES if self.samples is None else self.samples
            return cover.ensemble(self.strategy, grid, count, seed, samples), seed
        return (sample_mask(self.strategy, grid, count, seed),), seed

    def _given_mask(self, grid: Grid) -> Mask:
        if self.strategy == "indices":
            return mask_from_indices(tuple(self.indices or ()), grid)
        drawing = cast(bytes, self.drawing or b"")  # a file since ``__post_init__``
        return mask_from_drawing(images.load_grey(drawing), grid)

    def _count(self, patches: int) -> int | None:
        """Patches to hide at a time; None where ``complete`` may choose."""
        if self.hidden_count is not None:
            return self.hidden_count
        if self.ratio is None and self.cover == "complete":
            return None
        return hidden_count(str(DEFAULT_RATIO if self.ratio is None else self.ratio), patches)

    def _check_company(self) -> None:
        """Refuse options that another one makes meaningless: nothing is ignored silently."""
        for name, other, needed in (
            ("crop", "fit", "square"),
            ("grid", "fit", "whole"),
            ("samples", "cover", "ensemble"),
        ):
            if getattr(self, name) is not None and getattr(self, other) != needed:
                raise MaskError(
                    f"{name} is only read with {other} {needed!r}, but {other} is {getattr(self, other)!r}.",
                    code=name,
                    hint=f"Give {name} together with {other}={needed}, or leave it out.",
                    field=name,
                )
        if self.crop is not None:
            placement.read_crop(self.crop)
        if self.grid is not None:
            placement.read_grid(self.grid)

    def _check_samples(self) -> None:
        if self.samples is not None and not cover.MIN_SAMPLES <= self.samples <= cover.MAX_SAMPLES:
            raise MaskError(
                f"samples is {self.samples}; it must lie between {cover.MIN_SAMPLES} and {cover.MAX_SAMPLES}.",
                code="samples",
                hint=f"Leave it out for {cover.DEFAULT_SAMPLES}.",
                field="samples",
            )
        if self.cover == "ensemble" and self.strategy in _GIVEN:
            raise MaskError(
                f"cover 'ensemble' draws masks with several seeds, and strategy {self.strategy!r} has only one mask.",
                code="cover",
                hint="Use a sampled strategy, or cover=complete, which adds the opposite mask.",
                field="cover",
            )

    def _check_mask(self) -> None:
        for name in _GIVEN:
            given = getattr(self, name) is not None
            if self.strategy == name and not given:
                raise MaskError(
                    f"strategy {name!r} needs {name}, which is missing.",
                    code=f"mask-{name}",
                    hint=f"Give {name}, or use a strategy that chooses by itself.",
                    field=name,
                )
            if given and self.strategy != name:
                raise MaskError(
                    f"{name} is only read with strategy {name!r}, but strategy is {self.strategy!r:.60}.",
                    code=f"mask-{name}",
                    hint=f"Give strategy={name} too, or leave out {name}.",
                    field=name,
                )
        listed = self.strategy in _GIVEN
        for name in ("ratio", "hidden_count"):
            if getattr(self, name) is None:
                continue
            why = ""
            if listed:
                why = f"strategy {self.strategy!r} says itself what is hidden"
            elif name == "ratio" and self.hidden_count is not None:
                why = "hidden_count is given too"
            if why:
                raise MaskError(
                    f"{name} cannot be used here: {why}.",
                    code="mask-ratio" if name == "ratio" else "mask-count",
                    hint=f"Leave out {name}.",
                    field=name,
                )

    def _check_draw(self) -> None:
        """Refuse what no mask of any grid is drawn with; whether a count fits, the grid will tell."""
        if self.ratio is not None:
            hidden_count(str(self.ratio), 2)
        strategy = "random" if self.strategy in _GIVEN else self.strategy
        check_sampling(strategy, (1, 2), 1, self.seed or 0)


def _whole(name: str, given: Any, code: str) -> int | tuple[int, ...]:
    try:
        return tuple(map(operator.index, given)) if name in _ROWS else operator.index(given)
    except TypeError as error:
        raise MaskError(
            f"{name} is {str(given)[:60]!r}; it must be {'whole numbers' if name in _ROWS else 'a whole number'}.",
            code=code,
            hint="Give it without a fraction, as a number and not as text.",
            field=name,
        ) from error


def unknown_choice(name: str, value: object, known: tuple[str, ...]) -> MaskError:
    """The error for an option that is none of the known values."""
    return MaskError(
        f"{name} is {str(value)[:60]!r}; it must be one of {', '.join(known)}.",
        code=name,
        hint="Choose one of the listed values, or leave it out.",
        field=name,
    )
