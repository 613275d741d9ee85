"""What a client gets: JSON or one picture, chosen by `Accept`, with all that is needed to repeat it."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from model import Reconstruction, __version__, provenance
from model.views import side_by_side
from server.problems import BadRequestError

JSON, PNG, WEBP, JPEG, NDJSON = (
    "application/json", "image/png", "image/webp", "image/jpeg", "application/x-ndjson",
)  # fmt: skip
FORMS = (JSON, PNG, WEBP, JPEG)

# How a picture is written, by its type. WebP is exact in its fastest mode; JPEG keeps the colours' resolution.
ENCODINGS: dict[str, dict[str, Any]] = {
    PNG: {},
    WEBP: {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},
    JPEG: {"format": "JPEG", "quality": 95, "subsampling": 0},
}
SHEET = "sheet"


class Answer(Response):
    """An answer, and what is held for it until it was sent, or not taken in time."""

    held: AbstractContextManager[object] = nullcontext()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self.held:
            await super().__call__(scope, receive, send)


@dataclass(frozen=True)
class Form:
    """How an answer is to look.

    Attributes:
        media_type: One of `FORMS`.
        panels: Pictures in JSON, or side by side on the sheet.
        panel: The one picture of an image answer: a panel's name, or the sheet.
        pictures: How the pictures in JSON are written: PNG or WEBP.
        photo: The file that was sent, where the panel of an image answer is to be laid over it at its own size.
        max_bytes: Of such an answer.
        request_id: Of the request.
        etag: Makes the tag of an answer that can be had again, of the engine and the precision that computed it.
    """

    media_type: str
    panels: tuple[str, ...]
    panel: str
    pictures: str = PNG
    photo: bytes | None = None
    max_bytes: int = 0
    request_id: str | None = None
    etag: Callable[[str, str], str] | None = None

    def render(self, result: Reconstruction) -> Answer:
        """The answer for a result. Encodes pictures: not for the event loop."""
        as_json = self.media_type == JSON
        facts = describe(result, self.panels if as_json else (), self.pictures)
        headers = {
            "Cache-Control": "no-store",
            "Vary": "Accept",
            "X-Unmask-Hidden-Count": str(len(facts["hidden"])),
            "X-Unmask-Mask": facts["mask_hash"],
            "X-Unmask-Model": facts["model_digest"],
        }
        if facts["seed"] is not None:
            headers["X-Unmask-Seed"] = str(facts["seed"])
        if self.etag:
            headers["ETag"] = self.etag(facts["engine"], facts["precision"])
        content = dump(facts | {"request_id": self.request_id}) if as_json else self._picture(result)
        return Answer(content, media_type=self.media_type, headers=headers)

    def _picture(self, result: Reconstruction) -> bytes:
        if self.photo is not None:
            return self._full_size(result, self.photo)
        names = self.panels if self.panel == SHEET else (self.panel,)
        return _encode(result, names, self.media_type)

    def _full_size(self, result: Reconstruction, photo: bytes) -> bytes:
        pixels = result.full_size(photo, self.panel)
        content = provenance.write(pixels, result.settings((self.panel,)), **ENCODINGS[self.media_type])
        if len(content) > self.max_bytes:
            raise BadRequestError(
                f"At full size this picture takes {len(content)} bytes as {self.media_type}; an answer may have "
                f"{self.max_bytes}.",
                status=413,
                code="answer-too-large",
                hint=f"Send 'Accept: {JPEG}', which takes the fewest, or a smaller photo.",
                field="full_size",
            )
        return content


def _encode(result: Reconstruction, names: tuple[str, ...], media_type: str) -> bytes:
    """Panels side by side as a labelled file."""
    pixels = side_by_side([result.panel(name) for name in names])
    return provenance.write(pixels, result.settings(names), **ENCODINGS[media_type])


def describe(result: Reconstruction, panels: tuple[str, ...], pictures: str = PNG) -> dict[str, Any]:
    """A result ready for JSON."""
    facts = result.to_dict(panels if pictures == PNG else ())
    if pictures != PNG:
        files = {name: base64.b64encode(_encode(result, (name,), pictures)).decode() for name in panels}
        facts["images"] = {name: f"data:{pictures};base64,{content}" for name, content in files.items()}
    return facts


def dump(value: Any) -> bytes:
    """JSON as bytes."""
    return json.dumps(value, allow_nan=False).encode()


def etag(parts: Sequence[bytes], parameters: dict[str, Any]) -> str:
    """Names an answer by all it depends on. Weak, for times and request ids in it differ.

    Args:
        parts: The files of the request.
        parameters: Everything else: options, form, model.
    """
    digest = hashlib.sha256()
    for part in (*parts, dump(parameters | {"version": __version__})):
        digest.update(len(part).to_bytes(8, "big") + part)
    return f'W/"{digest.hexdigest()[:32]}"'


def negotiate(headers: Sequence[str], offers: Sequence[str]) -> str:
    """Read the Accept headers, which are one list; of equally wanted forms the first offered wins.

    Raises:
        BadRequestError: When no form is acceptable.
    """
    weights = read_weights(",".join(headers).strip(" ,") or "*/*")
    wanted = max(offers, key=lambda offer: _quality(weights, offer))  # the first of equals
    if _quality(weights, wanted):
        return wanted
    raise not_acceptable(offers)


def not_acceptable(offers: Sequence[str]) -> BadRequestError:
    """The refusal of a client that takes none of the forms."""
    known = ", ".join(offers)
    return BadRequestError(
        f"The answer comes as {known}, and 'Accept' excludes all of them.",
        status=406,
        code="not-acceptable",
        hint=f"Send 'Accept: {offers[0]}' or another of {known}.",
        field="Accept",
    )


def read_weights(accept: str) -> dict[str, float]:
    """What a client wants of each name in a list, such as ranges of media types; 0..1."""
    weights: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weights.setdefault(name, _weight(parameters))
    return weights


def _quality(weights: dict[str, float], media_type: str) -> float:
    """How much a client wants a media type: the weight of the most specific range that matches."""
    # A bare star is what some old clients send for any.
    ranges = (media_type, media_type.split("/")[0] + "/*", "*/*", "*")
    return next((weights[name] for name in ranges if name in weights), 0.0)


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                return 0.0
    return 1.0
