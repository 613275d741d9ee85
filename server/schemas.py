"""The shape of requests and answers. Limits that the model owns are checked by the model and not repeated here."""

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from model import PANELS, STRATEGIES

if TYPE_CHECKING:
    from model import Options

DEFAULT_PANELS = ("masked", "reconstruction", "original")

# Whole numbers are bounded before they are parsed: nobody needs a seed of a thousand digits.
MAX_DIGITS = 12


def _text_to_int(value: object) -> object:
    text = str(value).strip()
    if not text.lstrip("-").isascii() or not text.lstrip("-").isdigit() or len(text) > MAX_DIGITS:
        raise ValueError("must be a whole number")
    return int(text)


def _text_to_list(value: object) -> object:
    try:
        numbers = json.loads(str(value))
    except (ValueError, RecursionError):
        numbers = None
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise ValueError("must be a JSON list of whole numbers, for example [0, 1, 14]")
    return numbers


def _text_to_panels(value: object) -> object:
    names = tuple(name.strip() for name in str(value).split(",") if name.strip())
    unknown = [name for name in names if name not in PANELS]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(f"must be a comma separated list, without repetition, of {', '.join(PANELS)}")
    return names


WholeNumber = Annotated[int, BeforeValidator(_text_to_int)]


class ReconstructFields(BaseModel):
    """The text fields of a reconstruct request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Annotated[str, WithJsonSchema({"type": "string", "enum": list(STRATEGIES)})] = Field(
        default="random",
        description="How the hidden patches are chosen. 'indices' and 'drawing' need the field of that name.",
    )
    ratio: str | None = Field(
        default=None,
        pattern=r"^[+-]?([0-9]{1,4}(\.[0-9]{0,16})?|\.[0-9]{1,16})$",
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
    panels: Annotated[
        tuple[str, ...],
        BeforeValidator(_text_to_panels),
        WithJsonSchema({"type": "string", "examples": [",".join(DEFAULT_PANELS)]}),
    ] = Field(
        default=DEFAULT_PANELS, description=f"Pictures wanted, comma separated, of {', '.join(PANELS)}."
    )
    interpolation: bool = Field(
        default=False, description="Also score linear interpolation of the visible pixels."
    )

    def options(self, drawing: bytes | None) -> "Options":
        """The model's options for these fields and the drawing that came with them."""
        from model import Options  # pulls torch, which must not delay the start

        return Options(
            strategy=self.strategy,
            ratio=self.ratio,
            hidden_count=self.hidden_count,
            seed=self.seed,
            indices=self.indices,
            drawing=drawing,
            interpolation=self.interpolation,
        )


class ReconstructForm(ReconstructFields):
    """The whole form, for the API's description: the files and the text fields."""

    image: Annotated[str, WithJsonSchema({"type": "string", "format": "binary"})] = Field(
        description="The photo: JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF."
    )
    drawing: Annotated[str, WithJsonSchema({"type": "string", "format": "binary"})] | None = Field(
        default=None, description="With strategy 'drawing': a black and white picture, white is hidden."
    )


FILE_FIELDS = ("image", "drawing")
TEXT_FIELDS = tuple(ReconstructFields.model_fields)


class ReconstructAnswer(BaseModel):
    """What was hidden, what the model painted, and how well. Everything needed to repeat it is here."""

    model: str
    strategy: str
    ratio: float = Field(description="True share hidden.")
    seed: int | None = Field(description="Send it again to hide the same patches.")
    grid: tuple[int, int] = Field(description="Rows, columns.")
    hidden: list[int] = Field(description="Hidden patches, row by row from 0.")
    metrics: dict[str, Any] = Field(
        description="Errors over hidden pixels, beside the same for a plain fill."
    )
    error_scale: Any = Field(default=None, description="What the colours of the 'error' panel mean.")
    images: dict[str, str] = Field(description="Panel name to data:image/png;base64,...")
    timings_ms: dict[str, float]
    request_id: str | None


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
