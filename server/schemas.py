"""The shape of requests and answers. Limits that the model owns are checked by the model and not repeated here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.json_schema import models_json_schema

from model import EVERY_PANEL, STRATEGIES

if TYPE_CHECKING:
    from model import Options

DEFAULT_PANELS = ("masked", "reconstruction", "original")
PICTURES = ("sheet", *EVERY_PANEL)

# Whole numbers are bounded before they are parsed: nobody needs a seed of a thousand digits.
MAX_DIGITS = 12


def _text_to_int(value: object) -> object:
    text = str(value).strip()
    if not text.lstrip("-").isascii() or not text.lstrip("-").isdigit() or len(text) > MAX_DIGITS:
        raise ValueError("must be a whole number")
    return int(text)


def _text_to_list(value: object) -> object:
    try:
        numbers = value if isinstance(value, list) else json.loads(str(value))
    except (ValueError, RecursionError):
        numbers = None
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise ValueError("must be a JSON list of whole numbers, for example [0, 1, 14]")
    return numbers


def _text_to_panels(value: object) -> object:
    listed = value if isinstance(value, list) else str(value).split(",")
    names = tuple(name.strip() for name in map(str, listed) if name.strip())
    unknown = [name for name in names if name not in EVERY_PANEL]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(f"must be a comma separated list, without repetition, of {', '.join(EVERY_PANEL)}")
    return names


def _number_to_text(value: object) -> object:
    """JSON may say 1 where a form says "1"; decimals arrive as text from both."""
    return str(value) if type(value) is int and abs(value) < 10**MAX_DIGITS else value


def _known_picture(value: object) -> object:
    if value not in PICTURES:
        raise ValueError(f"must be one of {', '.join(PICTURES)}")
    return value


# Text whose meaning the model owns; only its length is bounded here.
Word = Annotated[str, Field(max_length=64)]
WholeNumber = Annotated[int, BeforeValidator(_text_to_int)]
Ratio = Annotated[
    str,
    BeforeValidator(_number_to_text),
    # Also what computed ratios look like: 0.30000000000000004, 5e-1.
    Field(pattern=r"^[+-]?([0-9]{1,4}(\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,2})?$"),
]
Panels = Annotated[
    tuple[str, ...],
    BeforeValidator(_text_to_panels),
    WithJsonSchema({"type": "string", "examples": [",".join(DEFAULT_PANELS)]}),
]


class CommonFields(BaseModel):
    """What can be chosen for one reconstruction and for many alike. Values are the model's to judge."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Word | None = Field(
        default=None,
        description="Which model, of /v1/models; the first of them when omitted.",
        examples=["mini"],
    )
    view: Word | None = Field(
        default=None,
        description="How normalised pixels become a picture: predicted, estimated, normalised or oracle; the first the "
        "model has when omitted.",
        examples=["pixels"],
    )
    fit: Word | None = Field(
        default=None,
        description="'square': the centre square, or the crop; 'whole': the whole picture on a grid of its aspect. "
        "Square when omitted.",
        examples=["whole"],
    )
    crop: Word | None = Field(
        default=None,
        description="With fit 'square': left,top,side in pixels of the upright original.",
        examples=["0,0,8"],
    )
    grid: Word | None = Field(
        default=None,
        description="With fit 'whole': ROWSxCOLUMNS, each 4 to 40; about as many patches as usual when omitted.",
        examples=["12x18"],
    )
    cover: Word | None = Field(
        default=None,
        description="'single': one mask; 'complete': complementary masks, every patch is predicted from others; "
        "'ensemble': several seeds, mean and spread. Single when omitted.",
        examples=["complete"],
    )
    samples: WholeNumber | None = Field(
        default=None, description="With cover 'ensemble': how many seeds, 2 to 32; 8 when omitted."
    )
    positions: Word | None = Field(
        default=None,
        description="'both' as trained, or 'hidden_only': without decoder positions on visible patches.",
        examples=["both"],
    )
    interpolation: bool = Field(
        default=False, description="Also score linear interpolation of the visible pixels."
    )
    ssim: bool = Field(
        default=True, description="Also score structural similarity; false answers a live page 10 ms sooner."
    )

    def _checked(self, panels: tuple[str, ...], **further: Any) -> "Options":
        """Options with these and further values, refused before a model is loaded or a picture decoded for them."""
        from model.options import Options  # pulls torch, which must not delay the start
        from model.result import check_panels

        names = set(CommonFields.model_fields) - {"model"}
        options = Options(**self.model_dump(include=names, exclude_none=True), **further)
        options.check()
        check_panels(panels, options.cover)
        return options


class ReconstructFields(CommonFields):
    """The text fields of a reconstruct request."""

    strategy: Annotated[str, WithJsonSchema({"type": "string", "enum": list(STRATEGIES)})] = Field(
        default="random",
        description="How the hidden patches are chosen. 'indices' and 'drawing' need the field of that name.",
    )
    ratio: Ratio | None = Field(
        default=None,
        description="Share of patches to hide, above 0 and below 1, as a decimal number; 0.75 when omitted.",
        examples=["0.75"],
    )
    hidden_count: WholeNumber | None = Field(
        default=None, description="Number of patches to hide, instead of a ratio."
    )
    seed: WholeNumber | None = Field(
        default=None,
        description="0 to 4294967295; the same seed hides the same patches. Omitted: drawn and returned.",
    )
    indices: (
        Annotated[
            tuple[int, ...],
            BeforeValidator(_text_to_list),
            WithJsonSchema(
                {"type": "string", "contentMediaType": "application/json", "examples": ["[0, 1, 14]"]}
            ),
        ]
        | None
    ) = Field(default=None, description="JSON list of the hidden patches, row by row from 0.")
    panels: Panels = Field(
        default=DEFAULT_PANELS, description=f"Pictures wanted, comma separated, of {', '.join(EVERY_PANEL)}."
    )
    panel: (
        Annotated[
            str, BeforeValidator(_known_picture), WithJsonSchema({"type": "string", "enum": list(PICTURES)})
        ]
        | None
    ) = Field(
        default=None,
        description="With an image answer: the one picture wanted; 'sheet' puts the panels side by side.",
    )

    picture_format: Literal["png", "webp"] | None = Field(
        default=None,
        description="How pictures in JSON are written. Both keep every pixel, webp in fewer bytes. PNG when omitted.",
    )

    def options(self, drawing: bytes | None) -> "Options":
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

    kind: Word = Field(default="cls", description="'cls', 'mean' or 'patch'.", examples=["mean"])
    model: Word | None = Field(
        default=None,
        description="Which model, of /v1/models; the first of them when omitted.",
        examples=["mini"],
    )


# Strategies that need nothing but numbers, and so can be listed.
LISTED_STRATEGIES = tuple(name for name in STRATEGIES if name not in ("indices", "drawing"))
MAX_LISTED = 1024


def _split(value: object) -> object:
    """A comma separated list, or the list itself in JSON."""
    parts = value if isinstance(value, list) else [part.strip() for part in str(value).split(",")]
    if not 0 < len(parts) <= MAX_LISTED:
        raise ValueError("must have at least one entry, and at most " + str(MAX_LISTED))
    return tuple(parts)


def _listed_strategy(value: object) -> object:
    if value not in LISTED_STRATEGIES:
        raise ValueError(f"must be a comma separated list of {', '.join(LISTED_STRATEGIES)}")
    return value


def _comma_list(*examples: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "examples": list(examples)})


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
        _comma_list("random,block"),
    ] = Field(default=("random",), description=f"Comma separated, of {', '.join(LISTED_STRATEGIES)}.")
    ratios: Annotated[tuple[Ratio, ...], BeforeValidator(_split), _comma_list("0.5,0.75,0.9")] = Field(
        default=("0.75",),
        description="Shares of patches to hide, comma separated decimal numbers; 0.75 when omitted.",
    )
    seeds: Annotated[tuple[WholeNumber, ...], BeforeValidator(_split), _comma_list("1,2,3")] | None = Field(
        default=None,
        description="Comma separated, 0 to 4294967295. Omitted: one is drawn for each and returned.",
    )
    panels: Panels = Field(
        default=DEFAULT_PANELS, description=f"Pictures wanted, comma separated, of {', '.join(EVERY_PANEL)}."
    )

    @property
    def count(self) -> int:
        """Variants of each picture."""
        return len(self.strategies) * len(self.ratios) * len(self.seeds or (None,))

    def variants(self) -> list[Variant]:
        """All combinations; seeds change fastest."""
        return [Variant(*each) for each in product(self.strategies, self.ratios, self.seeds or (None,))]

    def options(self, variant: Variant) -> "Options":
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


JSON_TYPES: dict[str, dict[str, Any]] = {
    "ratio": {"type": "number"},
    "indices": {"type": "array", "items": {"type": "integer"}},
    "panels": {"type": "array", "items": {"enum": list(EVERY_PANEL)}},
    "strategies": {"type": "array", "items": {"enum": list(LISTED_STRATEGIES)}},
    "ratios": {"type": "array", "items": {"type": "number"}},
    "seeds": {"type": "array", "items": {"type": "integer"}},
}
PHOTO = "The photo: JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF."
DRAWING = "With strategy 'drawing': a black and white picture, white is hidden."


def form_schema(model: type[BaseModel], files: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The description of a form.

    Args:
        model: The text fields.
        files: Schema of each file field; the first is required.
    """
    schema = model.model_json_schema()
    schema["properties"] = {**files, **schema["properties"]}
    return schema | {"required": [next(iter(files))]}


def json_schema(model: type[BaseModel], files: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The description of the same fields as JSON: numbers and lists are what they are, files are base64."""
    schema = form_schema(model, files)
    for name, wanted in JSON_TYPES.items():
        if name in schema["properties"]:
            kept = {"description": schema["properties"][name]["description"]}
            schema["properties"][name] = kept | wanted
    return schema


def query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    """The description of the same text fields in the query."""
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in model.model_json_schema()["properties"].items()
    ]


def components() -> dict[str, Any]:
    """Answers that several routes share, by name."""
    modes = [(model, "serialization") for model in ANSWERS]
    _, top = models_json_schema(modes, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    definitions: dict[str, Any] = top["$defs"]
    return definitions


class ReconstructAnswer(BaseModel):
    """What was hidden, what the model painted, and how well. Everything needed to repeat it is here."""

    model: str
    model_digest: str = Field(description="SHA-256 of the weight file.")
    engine: str = Field(description="What computed it: openvino or torch.")
    precision: str = Field(description="In which numbers: float32 or bfloat16.")
    strategy: str
    ratio: float = Field(description="True share hidden.")
    seed: int | None = Field(description="Send it again to hide the same patches.")
    grid: list[int] = Field(description="Rows, columns.", min_length=2, max_length=2)
    hidden: list[int] = Field(
        description="Hidden patches, row by row from 0; of several masks those of the first."
    )
    placement: dict[str, Any] = Field(
        description="Which part of the upright original was looked at: fit, left, top, width, height, "
        "original_width, original_height; pixels."
    )
    cover: str = Field(description="How many masks: single, complete or ensemble.")
    samples: int = Field(description="Masks that were used.")
    positions: str = Field(description="What the decoder was told of visible patches.")
    view: str = Field(description="How the prediction became a picture.")
    view_note: str = Field(description="What that means, one sentence.")
    mask_hash: str = Field(
        description="First 16 hex digits of SHA-256 over the mask's bits: row by row, first patch highest, 1 hidden."
    )
    metrics: dict[str, Any] = Field(
        description="Errors over hidden pixels, beside the same for a plain fill."
    )
    patches: dict[str, list[float | None] | None] | None = Field(
        description="With several masks: error_percent and spread_percent of each patch, row by row."
    )
    error_scale: Any = Field(default=None, description="What the colours of the 'error' panel mean.")
    uncertainty_scale: Any = Field(default=None, description="The same of the panel 'uncertainty'.")
    images: dict[str, str] = Field(
        description="Panel name to data:image/png;base64,... or data:image/webp;base64,..."
    )
    timings_ms: dict[str, float]
    request_id: str | None = None


class BatchItem(BaseModel):
    """One reconstruction of a batch: the result, or the problem that stood in its way."""

    index: int = Field(description="Place in the batch, from 0: by picture, strategy, ratio, seed.")
    image: int = Field(description="Which picture of the request, from 0.")
    asked: dict[str, Any] = Field(description="strategy, ratio and seed as asked.")
    result: "ReconstructAnswer | None" = None
    problem: "Problem | None" = None


class BatchAnswer(BaseModel):
    """All reconstructions of a batch, in order."""

    model: str
    model_digest: str
    request_id: str | None
    items: list[BatchItem]


class EmbedAnswer(BaseModel):
    """Features of a picture."""

    model: str
    model_digest: str
    kind: str
    shape: list[int] = Field(description="Of the embedding: [width], or [patches, width].")
    embedding: list[float] | list[list[float]]
    request_id: str | None = None


class SettingsAnswer(BaseModel):
    """How a picture was made."""

    settings: dict[str, Any] = Field(description="The label in the file, as it stands there.")
    fields: dict[str, Any] = Field(description="Fields of /v1/reconstruct that make it again from the photo.")


class Models(BaseModel):
    """The models that are served."""

    models: list[dict[str, Any]]


class Queue(BaseModel):
    """The line of requests for the network."""

    admitted: int = Field(description="Requests in work or waiting.")
    before: int | None = Field(
        description="How many of them came before the one that was asked for; null where it has no place, or not yet."
    )
    estimate_ms: int = Field(
        description="How long those before it and its own are expected to compute; of all where none was asked for."
    )


class WeightReport(BaseModel):
    """What a weight file is, by its head."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="As it was sent.")
    size_bytes: int = Field(description="Of the whole file, as its head has it.")
    layout: str = Field(description="Whose format it is.")
    proved_against: str | None = Field(description="What our reading of this format was proved against.")
    content: Literal["full", "encoder", "classifier"]
    size: str | None = Field(description="The named size of this shape.")
    config: dict[str, Any] | None = Field(description="The shape of the network.")
    target: str | None = Field(description="What the decoder predicts; null where nobody says.")
    target_source: str | None = Field(description="Who says so.")
    parameters: int
    usable_for: list[str]
    missing: list[str] = Field(description="Names that the network needs and the file lacks.")
    left_over: list[str] = Field(description="Names that the network does not have.")
    notes: list[str]
    advice: str = Field(description="One sentence.")


class Point(BaseModel):
    """One report of a training."""

    step: int
    samples: int = Field(description="Photos seen.")
    loss: float = Field(description="Mean since the report before.")
    lr: float = Field(description="Learning rate; in older records its share of the highest.")


class Sheet(BaseModel):
    """A picture of the same photos at one step: rows are photos; masked, repainted and original beside each other."""

    step: int
    samples: int
    url: str


class Training(BaseModel):
    """The record of a training."""

    points: list[Point]
    photos: list[str] = Field(description="Names of the photos, from the top row.")
    pictures: list[Sheet]


class Info(BaseModel):
    """What the service is and takes."""

    name: str
    version: str
    models: list[str]
    trainings: list[str] = Field(description="Names with a record at /v1/models/{name}/training.")
    strategies: list[str]
    panels: list[str]
    views: list[str]
    accepts: list[str] = Field(description="Kinds of body.")
    answers: list[str] = Field(description="Forms of an answer.")
    limits: dict[str, float]


class FieldError(BaseModel):
    """One bad field."""

    field: str
    message: str
    hint: str


class Problem(BaseModel):
    """RFC 9457 problem."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None
    errors: list[FieldError]


class Health(BaseModel):
    """State of the service."""

    status: Literal["ok", "ready"]


# Answers that routes describe by hand.
ANSWERS = (Problem, ReconstructAnswer, BatchAnswer, EmbedAnswer, SettingsAnswer, WeightReport)
