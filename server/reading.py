"""What else can be read: what the encoder makes of a picture, how a labelled one was made, what a weight file is."""

from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, Query, Request, Response

from model import Options, Reconstructor, provenance
from model.result import check_panels
from server import openapi
from server.answers import JSON, dump
from server.inputs import Shape, kind_of, read
from server.limits import unless_gone
from server.problems import BadRequestError
from server.responses import Long
from server.schemas import EmbedFields, NoFields
from server.service import Features, Service
from server.settings import Settings

OCTETS = "application/octet-stream"
REFUSALS = (400, 408, 413, 415, 422, 500)
DIGITS = 7  # of a float32 that mean something


def add_reading(router: APIRouter, service: Service, settings: Settings) -> None:
    """The routes.

    Args:
        router: Takes them.
        service: Does the work.
        settings: For the limit of uploads.
    """
    _add_embed(router, service, settings.max_bytes)
    _add_settings(router, service, settings.max_bytes)
    _add_inspect(router, service)


def _add_embed(router: APIRouter, service: Service, max_bytes: int) -> None:
    shape = Shape(EmbedFields, picture="image", max_bytes=max_bytes)

    @router.post(
        "/v1/embed",
        operation_id="embed",
        response_class=Response,
        responses=openapi.problem_responses(*REFUSALS, 503, 504) | {200: openapi.answer("EmbedAnswer")},
        openapi_extra=openapi.EMBED,
    )
    async def embed(request: Request) -> Response:
        """The encoder's features of the centre square of a picture, nothing hidden.

        `cls` is one vector, `mean` the mean over the patches, `patch` one vector per patch, row by row.
        """
        fields, files = await read(request, shape)

        async def work() -> bytes:
            model = await service.model(fields.model)
            return await service.embed(
                model,
                files["image"][0],
                fields.kind,
                lambda array: _render(array, model, fields.kind, identity),
            )

        identity = correlation_id.get()
        return _json(await unless_gone(request, work()))


def _render(array: Features, model: Reconstructor, kind: str, identity: str | None) -> bytes:
    facts = {"model": model.name, "model_digest": model.digest, "kind": kind, "shape": list(array.shape)}
    return dump(facts | {"embedding": _numbers(array.tolist()), "request_id": identity})


def _numbers(values: Iterable[Any]) -> list[Any]:
    """No more digits than a number has."""
    return [_numbers(value) if isinstance(value, list) else float(f"{value:.{DIGITS}g}") for value in values]


def _add_settings(router: APIRouter, service: Service, max_bytes: int) -> None:
    shape = Shape(NoFields, picture="image", max_bytes=max_bytes)

    @router.post(
        "/v1/settings",
        operation_id="settings",
        response_class=Response,
        responses=openapi.problem_responses(*REFUSALS, 503, 504, _no_settings())
        | {200: openapi.answer("SettingsAnswer")},
        openapi_extra=openapi.SETTINGS,
    )
    async def settings(request: Request) -> Response:
        """How a picture of this service was made: the settings in its label, and fields that make it again."""
        _, files = await read(request, shape)
        read_label = partial(_replay, files["image"][0])
        return _json(await unless_gone(request, service.look(read_label)))


def _replay(image: bytes) -> bytes:
    found = provenance.read(image)
    if found is None:
        raise _no_settings()
    options = Options.from_settings(found)
    options.check()
    check_panels(tuple(found.get("panels", ())), options.cover)
    fields = {
        name: value for name, value in asdict(options).items() if value is not None and value is not False
    }
    if isinstance(options.grid, tuple):
        fields["grid"] = "x".join(map(str, options.grid))
    if found.get("panels"):
        fields["panels"] = ",".join(found["panels"])
    # Also one that is not served: it is refused then, where another would paint otherwise.
    if found.get("model"):
        fields["model"] = found["model"]
    return dump({"settings": found, "fields": fields})


def _no_settings() -> BadRequestError:
    return BadRequestError(
        "'image' carries no settings of this program.",
        status=404,
        code="no-settings",
        hint="Send a picture as it came from here; editors and messengers remove what is written into files.",
        field="image",
    )


def _add_inspect(router: APIRouter, service: Service) -> None:
    @router.post(
        "/v1/inspect",
        operation_id="inspect",
        response_class=Response,
        responses=openapi.problem_responses(408, 413, 415, 422, 500, 501, 503)
        | {200: openapi.answer("WeightReport")},
        openapi_extra=openapi.INSPECT,
    )
    async def inspect(
        request: Request,
        name: Annotated[
            str, Query(max_length=200, description="The file's name, for messages.")
        ] = "the file",
        size: Annotated[
            Long | None,
            Query(ge=0, le=2**53, description="The file's size in bytes; with it a cut file is noticed."),
        ] = None,
    ) -> Response:
        """What a weight file is, by its head: layout, shape, target, what it is good for, what is missing.

        The body is the beginning of a safetensors file: eight bytes that tell the length of its head, and the
        head. The weights stay where they are. Other files are looked at with `python -m model inspect FILE`.
        """
        if (kind := kind_of(request)) != OCTETS:
            raise BadRequestError(
                f"The body is '{kind[:60]}'; only {OCTETS} is accepted.",
                status=415,
                code="content-type",
                hint="Send the first 8 + n bytes of the file, n being the number in the first 8, little-endian.",
                field="Content-Type",
            )
        service.check_room()
        head = await request.body()
        return _json(dump(await unless_gone(request, service.models.reports.of_head(head, name, size))))


def _json(content: bytes) -> Response:
    return Response(content, media_type=JSON, headers={"Cache-Control": "no-store"})
