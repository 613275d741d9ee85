"""The shape of answers, as they are described."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# What may have more than 31 bits, which clients that are generated take an "integer" for.
Long = Annotated[int, Field(json_schema_extra={"format": "int64"})]


class ReconstructAnswer(BaseModel):
    """What was hidden, what the model painted, and how well. Everything needed to repeat it is here."""

    model: str
    model_digest: str = Field(description="SHA-256 of the weight file.")
    engine: str = Field(description="What computed it: openvino or torch.")
    precision: str = Field(description="In which numbers: float32 or bfloat16.")
    strategy: str
    ratio: float = Field(description="True share hidden.")
    seed: Long | None = Field(description="Send it again to hide the same patches.")
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
    uncertainty_scale: Any = Field(default=None, description="The same for the panel 'uncertainty'.")
    images: dict[str, str] = Field(
        description="Panel name to data:image/png;base64,... or data:image/webp;base64,..."
    )
    timings_ms: dict[str, float]
    request_id: str | None = None


class Asked(BaseModel):
    """One of the combinations that a batch asks for."""

    strategy: str
    ratio: float | None
    seed: Long | None


class BatchItem(BaseModel):
    """One reconstruction of a batch: the result, or the problem that stood in its way."""

    index: int = Field(description="Place in the batch, from 0: by picture, strategy, ratio, seed.")
    image: int = Field(description="Which picture of the request, from 0.")
    asked: Asked = Field(description="How its patches were to be hidden; null for what was not said.")
    result: ReconstructAnswer | None = None
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
    fields: dict[str, Any] = Field(
        description="Fields of /v1/reconstruct that make it again from the photo, at the size of what the model sees; "
        "for one at the photo's own size send its panel as 'panel', in place of 'panels', with 'full_size'."
    )


class Models(BaseModel):
    """The models that are served."""

    models: list[dict[str, Any]]


class Queue(BaseModel):
    """The line of requests for the network."""

    admitted: int = Field(description="Requests in progress or waiting.")
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
    size_bytes: Long = Field(description="Of the whole file, as its head has it.")
    layout: str = Field(description="Whose format it is.")
    proved_against: str | None = Field(description="What our reading of this format was proved against.")
    content: Literal["full", "encoder", "classifier"]
    size: str | None = Field(description="The named size of this shape.")
    config: dict[str, Any] | None = Field(description="The shape of the network.")
    target: str | None = Field(description="What the decoder predicts; null where nobody says.")
    target_source: str | None = Field(description="Who says so.")
    parameters: Long
    usable_for: list[str]
    missing: list[str] = Field(description="Names that the network needs and the file lacks.")
    left_over: list[str] = Field(description="Names that the network does not have.")
    notes: list[str]
    advice: str = Field(description="One sentence.")


class Point(BaseModel):
    """One report of a training."""

    step: int
    samples: Long = Field(description="Photos seen.")
    loss: float = Field(description="Mean since the report before.")
    lr: float = Field(description="Learning rate; in older records its share of the highest.")
    target: str | None = Field(
        None, description="What was predicted; said from where a record went on with another."
    )


class Validation(BaseModel):
    """A loss on photos that were held out of the training."""

    step: int
    samples: Long = Field(description="Photos seen.")
    val_loss: float
    target: str | None = Field(None, description="As of a point.")


class Sheet(BaseModel):
    """A picture of the same photos at one step: rows are photos; masked, repainted and original beside each other."""

    step: int
    samples: Long
    url: str


class Training(BaseModel):
    """The record of a training."""

    points: list[Point]
    validation: list[Validation] = Field(description="Empty where nothing was held out.")
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
    limits: dict[str, int | float]


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
