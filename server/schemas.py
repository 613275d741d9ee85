"""The shape of requests. Limits that the model owns are checked by the model and not repeated here."""

import json
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from model import EVERY_PANEL, STRATEGIES, Options
from model.cover import DEFAULT_SAMPLES, MAX_SAMPLES, MIN_SAMPLES
from model.masking import DEFAULT_RATIO, MAX_SEED, SAMPLERS
from model.placement import MAX_CELLS, MIN_CELLS
from model.result import TRIPTYCH, check_panels

PICTURES = ("sheet", *EVERY_PANEL)

# Whole numbers are bounded before they are parsed: nobody needs a seed of a thousand digits.
MAX_DIGITS = 12
_FLAG = TypeAdapter(bool)
DECIMAL = "must be a decimal number such as 0.75"


def _text_to_int(value: object) -> object:
    text = str(value).strip() if isinstance(value, str | int) else ""
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(text) > MAX_DIGITS:
        raise ValueError(f"must be a whole number of at most {MAX_DIGITS} digits")
    return int(text)


def _text_to_flag(value: object) -> object:
    try:
        return _FLAG.validate_python(value)
    except ValidationError:
        raise ValueError("must be true or false") from None


def _text_to_list(value: object) -> object:
    try:
        numbers = value if isinstance(value, list) else json.loads(str(value))
    except (ValueError, RecursionError):
        numbers = None
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise ValueError("must be a JSON list of whole numbers, for example [0, 1, 14]")
    return numbers


def _text_to_panels(value: object) -> object:
    listed = value.split(",") if isinstance(value, str) else value
    texts = listed if isinstance(listed, list) and all(isinstance(text, str) for text in listed) else []
    names = tuple(name.strip() for name in texts if name.strip())
    unknown = [name for name in names if name not in EVERY_PANEL]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(f"must be a comma-separated list, without repetition, of {', '.join(EVERY_PANEL)}")
    return names


def _number_to_text(value: object) -> object:
    """JSON may say 1 where a form says "1"; decimals arrive as text from both."""
    if isinstance(value, str):
        return value
    if type(value) is not int or abs(value) >= 10**MAX_DIGITS:
        raise ValueError(DECIMAL)
    return str(value)


def _known_picture(value: object) -> object:
    if value not in PICTURES:
        raise ValueError(f"must be one of {', '.join(PICTURES)}")
    return value


# Text whose meaning the model owns; only its length is bounded here.
Word = Annotated[str, Field(max_length=64)]
# A seed has 32 bits without a sign: clients that are generated would take an "integer" for one of 31.
WholeNumber = Annotated[
    int, BeforeValidator(_text_to_int), WithJsonSchema({"type": "integer", "format": "int64"})
]
Flag = Annotated[bool, BeforeValidator(_text_to_flag)]
Ratio = Annotated[
    str,
    BeforeValidator(_number_to_text),
    # Also what computed ratios look like: 0.30000000000000004, 5e-1.
    Field(pattern=r"^[+-]?([0-9]{1,4}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,2})?$"),
]
Panels = Annotated[
    tuple[str, ...],
    BeforeValidator(_text_to_panels),
    WithJsonSchema({"type": "string"}),
]
PANELS_WANTED = (
    f"Pictures wanted, comma separated, of {', '.join(EVERY_PANEL)}; {','.join(TRIPTYCH)} when omitted."
)


class CommonFields(BaseModel):
    """What can be chosen for one reconstruction and for many alike. Values are the model's to judge."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Word | None = Field(
        default=None,
        description="Which model, of /v1/models; the first of them when omitted.",
    )
    view: Word | None = Field(
        default=None,
        description="How normalised pixels become a picture: predicted, estimated, normalised or oracle; the first the "
        "model has when omitted.",
    )
    fit: Word | None = Field(
        default=None,
        description="'square': the centre square, or the crop; 'whole': the whole picture on a grid of its aspect. "
        "Square when omitted.",
    )
    crop: Word | None = Field(
        default=None,
        description="With fit 'square': left,top,side in pixels of the upright original, such as 0,0,224.",
    )
    grid: Word | None = Field(
        default=None,
        description=f"With fit 'whole': ROWSxCOLUMNS, each {MIN_CELLS} to {MAX_CELLS}, such as 12x18; about as many "
        "patches as usual when omitted.",
    )
    cover: Word | None = Field(
        default=None,
        description="'single': one mask; 'complete': complementary masks, every patch is predicted from others; "
        "'ensemble': several seeds, mean and spread. Single when omitted.",
    )
    samples: WholeNumber | None = Field(
        default=None,
        description=f"With cover 'ensemble': how many seeds, {MIN_SAMPLES} to {MAX_SAMPLES}; {DEFAULT_SAMPLES} when "
        "omitted.",
    )
    positions: Word | None = Field(
        default=None,
        description="'both' as trained, or 'hidden_only': without decoder positions on visible patches. Both when "
        "omitted.",
    )
    interpolation: Flag = Field(
        default=False,
        description="Also score linear interpolation of the visible pixels; false when omitted.",
    )
    ssim: Flag = Field(
        default=True,
        description="Also score structural similarity; false answers a live page 10 ms sooner. True when omitted.",
    )

    def _checked(self, panels: tuple[str, ...], **further: Any) -> Options:
        """Options with these and further values, refused before a model is loaded or a picture decoded for them."""
        names = set(CommonFields.model_fields) - {"model"}
        options = Options(**self.model_dump(include=names, exclude_none=True), **further)
        options.check()
        check_panels(panels, options.cover)
        return options


class ReconstructFields(CommonFields):
    """The text fields of a reconstruct request."""

    strategy: Annotated[str, WithJsonSchema({"type": "string", "enum": list(STRATEGIES)})] = Field(
        default="random",
        description="How the hidden patches are chosen. 'indices' and 'drawing' need the field of that name. Random "
        "when omitted.",
    )
    ratio: Ratio | None = Field(
        default=None,
        description=f"Share of patches to hide, above 0 and below 1, as a decimal number; {DEFAULT_RATIO} when "
        "omitted.",
    )
    hidden_count: WholeNumber | None = Field(
        default=None, description="Number of patches to hide, instead of a ratio."
    )
    seed: WholeNumber | None = Field(
        default=None,
        description=f"0 to {MAX_SEED}; the same seed hides the same patches. Omitted: drawn and returned.",
    )
    indices: (
        Annotated[
            tuple[int, ...],
            BeforeValidator(_text_to_list),
            WithJsonSchema({"type": "string"}),
        ]
        | None
    ) = Field(
        default=None, description="JSON list of the hidden patches, row by row from 0, such as [0, 1, 14]."
    )
    panels: Panels = Field(default=TRIPTYCH, description=PANELS_WANTED)
    panel: (
        Annotated[
            str, BeforeValidator(_known_picture), WithJsonSchema({"type": "string", "enum": list(PICTURES)})
        ]
        | None
    ) = Field(
        default=None,
        description="With an image answer: the one picture wanted; 'sheet' puts the panels side by side.",
    )
    full_size: Flag = Field(
        default=False,
        description="With an image answer: lay the panel over the photo at its own size, instead of what the model "
        "sees of it; 'pasted' where no panel is named. False when omitted.",
    )
    picture_format: Literal["png", "webp"] | None = Field(
        default=None,
        description="How pictures in JSON are written. Both keep every pixel, webp in fewer bytes. PNG when omitted.",
    )

    def options(self, drawing: bytes | None) -> Options:
        """The model's options for these fields and the drawing that came with them.

        Raises:
            MaskError: They contradict each other, or the panels do not go with them.
        """
        return self._checked(
            (self.panel,) if self.panel not in (None, "sheet") else self.panels,
            strategy=self.strategy,
            ratio=self.ratio,
            hidden_count=self.hidden_count,
            seed=self.seed,
            indices=self.indices,
            drawing=drawing,
        )


class NoFields(BaseModel):
    """A request with a picture and nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EmbedFields(BaseModel):
    """The text fields of an embed request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Word = Field(default="cls", description="'cls', 'mean' or 'patch'; cls when omitted.")
    model: Word | None = Field(
        default=None,
        description="Which model, of /v1/models; the first of them when omitted.",
    )


# Strategies that need nothing but numbers, and so can be listed.
SAMPLED = tuple(SAMPLERS)
MAX_LISTED = 1024


def _split(value: object) -> object:
    """A comma-separated list, or the list itself in JSON."""
    parts = value if isinstance(value, list) else [part.strip() for part in str(value).split(",")]
    if not 0 < len(parts) <= MAX_LISTED:
        raise ValueError(f"must have at least one entry, and at most {MAX_LISTED}")
    return tuple(parts)


def _listed_strategy(value: object) -> object:
    if value not in SAMPLED:
        raise ValueError(f"must be a comma-separated list of {', '.join(SAMPLED)}")
    return value


@dataclass(frozen=True)
class Variant:
    """One way to hide patches, of those a batch asks for."""

    strategy: str
    ratio: str | None
    seed: int | None


class BatchFields(CommonFields):
    """The text fields of a batch request: every combination of the listed values is reconstructed."""

    strategies: Annotated[
        tuple[Annotated[str, BeforeValidator(_listed_strategy)], ...],
        BeforeValidator(_split),
        WithJsonSchema({"type": "string"}),
    ] = Field(
        default=("random",),
        description=f"Comma separated, of {', '.join(SAMPLED)}; random when omitted.",
    )
    ratios: (
        Annotated[tuple[Ratio, ...], BeforeValidator(_split), WithJsonSchema({"type": "string"})] | None
    ) = Field(
        default=None,
        description="Shares of patches to hide, comma-separated decimal numbers; omitted as in a single request: "
        f"{DEFAULT_RATIO}, and with cover 'complete' a quarter in each of four masks.",
    )
    seeds: (
        Annotated[tuple[WholeNumber, ...], BeforeValidator(_split), WithJsonSchema({"type": "string"})] | None
    ) = Field(
        default=None,
        description=f"Comma separated, 0 to {MAX_SEED}. Omitted: one is drawn for each and returned.",
    )
    panels: Panels = Field(default=TRIPTYCH, description=PANELS_WANTED)

    @property
    def count(self) -> int:
        """Variants of each picture."""
        return len(self.strategies) * len(self.ratios or (None,)) * len(self.seeds or (None,))

    def variants(self) -> list[Variant]:
        """All combinations; seeds change fastest."""
        return [
            Variant(*each) for each in product(self.strategies, self.ratios or (None,), self.seeds or (None,))
        ]

    def options(self, variant: Variant) -> Options:
        """The model's options for one combination.

        Raises:
            MaskError: They contradict each other, or the panels do not go with them.
        """
        return self._checked(
            self.panels,
            strategy=variant.strategy,
            ratio=variant.ratio,
            seed=variant.seed,
        )
