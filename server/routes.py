"""The API: validate, call `Service`, encode. Thin on purpose."""

import json
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from server import problems, schemas
from server.limits import unless_gone
from server.problems import BadRequestError, InvalidFieldsError, TooLargeError
from server.samples import Picture, Sample
from server.service import Service
from server.settings import Settings

if TYPE_CHECKING:
    from model import Reconstruction

# Bounds of the form around the pictures: more than any honest request has, small enough to name what is
# unknown.
MAX_FIELDS = 32
MAX_TEXT_BYTES = 64 * 1024

SAMPLE_CACHE = "public, max-age=86400"


def build_router(service: Service, settings: Settings, samples: Mapping[str, Sample]) -> APIRouter:
    """All routes of the API.

    Args:
        service: Does the work.
        settings: For the limit of uploads.
        samples: Photos to offer, by name.
    """
    router = APIRouter()
    _add_reconstruct(router, service, settings.max_bytes)
    _add_facts(router, service)
    _add_samples(router, samples)
    return router


def _add_reconstruct(router: APIRouter, service: Service, max_bytes: int) -> None:
    async def reconstruct(request: Request) -> Response:
        """Hide patches of a photo and let the model paint them.

        Answers JSON with the pictures inside, or with `Accept: image/png` one PNG: masked, reconstruction and
        original side by side. The seed in the answer repeats it.
        """
        as_png = _prefers_png(request.headers.get("accept", "*/*"))
        service.check_room()  # before the body, so that a refusal costs the client nothing
        fields, image, drawing = await _read_form(request, max_bytes)
        render = partial(
            _to_png if as_png else _to_json, panels=fields.panels, request_id=correlation_id.get()
        )
        return await unless_gone(request, service.reconstruct(image, fields.options(drawing), render))

    for path in ("/reconstruct", "/v1/reconstruct"):
        router.add_api_route(
            path,
            reconstruct,
            methods=["POST"],
            operation_id="reconstruct" if path.startswith("/v1") else "reconstruct_short",
            response_class=Response,
            responses=_responses(406, 413, 415, 422, 503, 504)
            | {
                200: {
                    "description": "The reconstruction.",
                    "content": {
                        "application/json": {"schema": schemas.ReconstructAnswer.model_json_schema()},
                        "image/png": {"schema": {"type": "string", "format": "binary"}},
                    },
                }
            },
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {
                        "multipart/form-data": {"schema": schemas.ReconstructForm.model_json_schema()}
                    },
                }
            },
        )


def _add_facts(router: APIRouter, service: Service) -> None:
    @router.get("/v1/model", operation_id="model")
    async def model() -> dict[str, Any]:
        """What the loaded model is, and where it comes from."""
        return service.describe()

    async def healthz() -> schemas.Health:
        """Whether the process answers."""
        return schemas.Health(status="ok")

    async def readyz() -> schemas.Health:
        """Whether new work is taken."""
        if not service.ready:
            raise problems.ShuttingDownError
        return schemas.Health(status="ready")

    for path, check, further in (("/healthz", healthz, ()), ("/readyz", readyz, (503,))):
        router.add_api_route(
            path, check, methods=["GET"], operation_id=path[1:], responses=_responses(*further)
        )
        router.add_api_route(path, check, methods=["HEAD"], include_in_schema=False)


def _add_samples(router: APIRouter, samples: Mapping[str, Sample]) -> None:
    listing = {
        "samples": [
            {**sample.facts, "url": f"/v1/samples/{name}", "thumb": f"/v1/samples/{name}/thumb"}
            for name, sample in samples.items()
        ]
    }

    @router.get("/v1/samples", operation_id="samples")
    async def list_samples() -> dict[str, list[dict[str, str]]]:
        """Photos of known free licence to try the model on."""
        return listing

    def find(name: str) -> Sample:
        if name not in samples:
            raise BadRequestError(
                f"There is no sample '{name[:60]}'.",
                status=404,
                code="sample-unknown",
                hint=f"Take one of {', '.join(samples)}.",
                field="name",
            )
        return samples[name]

    file = {200: {"content": {"image/*": {}}, "description": "The picture."}}
    common: dict[str, Any] = {"response_class": Response, "responses": _responses(404, 422) | file}

    @router.get("/v1/samples/{name}", operation_id="sample", **common)
    async def sample(name: str, request: Request) -> Response:
        """One photo."""
        return _cached(find(name).photo, request)

    @router.get("/v1/samples/{name}/thumb", operation_id="sample_thumb", **common)
    async def thumb(name: str, request: Request) -> Response:
        """One photo, small."""
        return _cached(find(name).thumb, request)


def _cached(picture: Picture, request: Request) -> Response:
    headers = {"ETag": picture.etag, "Cache-Control": SAMPLE_CACHE}
    if request.headers.get("if-none-match") == picture.etag:
        return Response(status_code=304, headers=headers)
    return Response(picture.content, media_type=picture.media_type, headers=headers)


def _responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    content = {problems.MEDIA_TYPE: {"schema": schemas.Problem.model_json_schema()}}
    return {status: {"description": "Problem", "content": content} for status in statuses}


def _to_json(result: "Reconstruction", *, panels: tuple[str, ...], request_id: str | None) -> Response:
    answer = {**result.to_dict(panels), "request_id": request_id}
    return Response(
        json.dumps(answer, allow_nan=False),
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def _to_png(result: "Reconstruction", *, panels: tuple[str, ...], request_id: str | None) -> Response:
    del request_id  # a header already
    facts = result.to_dict(())
    headers = {
        "Cache-Control": "no-store",
        "X-Unmask-Seed": str(facts["seed"]),
        "X-Unmask-Hidden-Count": str(len(facts["hidden"])),
    }
    return Response(result.sheet(panels), media_type="image/png", headers=headers)


def _prefers_png(accept: str) -> bool:
    """Read an Accept header; JSON wins a tie.

    Raises:
        BadRequestError: When neither form is acceptable.
    """
    json_q, png_q = _quality(accept, "application/json"), _quality(accept, "image/png")
    if not json_q and not png_q:
        raise BadRequestError(
            "The answer comes as application/json or image/png, and 'Accept' excludes both.",
            status=406,
            code="not-acceptable",
            hint="Send 'Accept: application/json' or 'Accept: image/png'.",
            field="Accept",
        )
    return png_q > json_q


def _quality(accept: str, media_type: str) -> float:
    """How much a client wants a media type, 0..1: the weight of the most specific range that matches."""
    ranges = {media_type: 2, media_type.split("/")[0] + "/*": 1, "*/*": 0}
    best, quality = -1, 0.0
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if ranges.get(name, -1) > best:
            best, quality = ranges[name], _weight(parameters)
    return quality


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                return 0.0
    return 1.0


async def _read_form(
    request: Request, max_bytes: int
) -> tuple[schemas.ReconstructFields, bytes, bytes | None]:
    """Read and check the whole form: text fields, picture, drawing."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise BadRequestError(
            f"The body is '{kind[:60]}'; it must be multipart/form-data.",
            status=415,
            code="content-type",
            hint="Send a form with the photo as file 'image', for example curl -F image=@photo.jpg.",
            field="Content-Type",
        )
    async with request.form(
        max_files=MAX_FIELDS, max_fields=MAX_FIELDS, max_part_size=MAX_TEXT_BYTES
    ) as form:
        _check_names(form)
        fields = _check_texts({name: str(form[name]) for name in schemas.TEXT_FIELDS if name in form})
        image, drawing = [await _read_file(form, name, max_bytes) for name in schemas.FILE_FIELDS]
    if image is None:
        hint = "Send the photo as a file, for example curl -F image=@photo.jpg."
        raise InvalidFieldsError([{"field": "image", "message": "'image' is missing.", "hint": hint}])
    return fields, image, drawing


def _check_names(form: FormData) -> None:
    """Refuse what is unknown, repeated, or text where a file belongs."""
    allowed = f"Allowed are {', '.join((*schemas.FILE_FIELDS, *schemas.TEXT_FIELDS))}."
    errors: dict[str, tuple[str, str]] = {}
    seen: set[str] = set()
    for name, value in form.multi_items():
        is_file = isinstance(value, UploadFile)
        if name not in schemas.FILE_FIELDS and name not in schemas.TEXT_FIELDS:
            errors[name] = (f"'{name[:60]}' is not a field of this form.", allowed)
        elif name in seen:
            errors[name] = (f"'{name}' is there more than once.", "Send it once.")
        elif is_file and name in schemas.TEXT_FIELDS:
            errors[name] = (f"'{name}' is a file; it must be text.", "Send it without a file name.")
        elif not is_file and name in schemas.FILE_FIELDS:
            errors[name] = (f"'{name}' is text; it must be a file.", f"With curl: -F {name}=@FILE.")
        seen.add(name)
    if errors:
        raise InvalidFieldsError(
            [{"field": name[:60], "message": text, "hint": hint} for name, (text, hint) in errors.items()]
        )


def _check_texts(texts: Mapping[str, str]) -> schemas.ReconstructFields:
    try:
        return schemas.ReconstructFields.model_validate(texts)
    except ValidationError as error:
        described = schemas.ReconstructFields.model_fields
        raise InvalidFieldsError(
            [
                {
                    "field": (name := str(entry["loc"][0])),
                    "message": f"'{name}' is wrong: {entry['msg'].removeprefix('Value error, ')}.",
                    "hint": described[name].description or "",
                }
                for entry in error.errors(include_url=False, include_input=False)
            ]
        ) from None


async def _read_file(form: FormData, name: str, max_bytes: int) -> bytes | None:
    """The bytes of a file field; None when it is missing or a browser sent its empty input."""
    file = form.get(name)
    if not isinstance(file, UploadFile) or (not file.filename and not file.size):
        return None
    if (file.size or 0) > max_bytes:
        raise TooLargeError(name, max_bytes)
    return await file.read()
