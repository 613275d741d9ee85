"""What there is to look at: models, how they were trained, and sample photos. Nothing here computes."""

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response

from server import responses
from server.openapi import BINARY, problem_responses
from server.problems import ReportPendingError, unknown
from server.samples import Picture, Sample
from server.service import Service
from server.training import Record

SAMPLE_CACHE = "public, max-age=86400"
SHEET_CACHE = "public, max-age=600"  # a run begun anew paints the same names again
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": {"schema": BINARY}}, "description": "The picture."}
}
TAG = {"ETag": {"description": "For If-None-Match.", "schema": {"type": "string"}}}
CACHED: dict[int | str, dict[str, Any]] = {
    200: PICTURE[200] | {"headers": TAG},
    304: {"description": "The copy with this ETag is still good.", "headers": TAG},
}


def add_models(router: APIRouter, service: Service, records: Mapping[str, Record]) -> None:
    """The routes on models.

    Args:
        router: Takes them.
        service: Holds the models.
        records: Of trainings, by name.
    """

    @router.get("/v1/model", operation_id="model")
    async def model() -> dict[str, Any]:
        """What the default model is, and where it comes from."""
        return service.describe()

    @router.get("/v1/models", operation_id="models")
    async def models() -> responses.Models:
        """All models that are served, the default first; those not loaded yet tell what their files say of them."""
        return responses.Models(models=service.models.listing())

    @router.get(
        "/v1/models/{name}",
        operation_id="model_by_name",
        responses=problem_responses(404, 422, 500, ReportPendingError("mini")),
    )
    async def model_by_name(name: str) -> dict[str, Any]:
        """One of them, with the report on its weight file: layout, shape, target, what it can be used for."""
        return await service.describe_model(name)

    def find(name: str) -> Record:
        if name in records and records[name].exists:
            return records[name]
        service.models.source(name, status=404)
        raise unknown("training", name, [known for known, record in records.items() if record.exists])

    @router.get(
        "/v1/models/{name}/training", operation_id="training", responses=problem_responses(404, 422, 500)
    )
    def training(name: str, request: Request) -> responses.Training:
        """How a model was trained: its curve, and the same photos repainted along the way.

        A run that goes on is found under the name of its folder, where the service was told of it.
        """
        return responses.Training(**find(name).read(f"{_root(request)}/v1/models/{quote(name)}/training/"))

    @router.get(
        "/v1/models/{name}/training/{file}",
        operation_id="training_picture",
        response_class=Response,
        responses=problem_responses(404, 422, 500) | PICTURE,
    )
    def training_picture(name: str, file: str) -> Response:
        """One sheet of a training: a row for each photo, with masked, repainted and original."""
        found = find(name).picture(file)
        if found is None:
            raise unknown("picture", file, [])
        return Response(found[0], media_type=found[1], headers={"Cache-Control": SHEET_CACHE})


def add_queue(router: APIRouter, service: Service) -> None:
    """The route on the line of waiting requests.

    Args:
        router: Takes it.
        service: Has the line.
    """

    @router.get("/v1/queue", operation_id="queue", responses=problem_responses(422))
    async def queue(
        request: Annotated[
            str, Query(max_length=64, description="The X-Request-ID that was sent with it.")
        ] = "",
    ) -> responses.Queue:
        """How many requests are in progress or waiting, how many before a given one, and about how long that takes."""
        turn = service.turn(request)
        estimate_ms = round(1000 * turn.wait_s)
        return responses.Queue(admitted=turn.admitted, before=turn.before, estimate_ms=estimate_ms)


def add_samples(router: APIRouter, samples: Mapping[str, Sample]) -> None:
    """The routes on sample photos.

    Args:
        router: Takes them.
        samples: Photos to offer, by name.
    """

    @router.get("/v1/samples", operation_id="samples")
    async def list_samples(request: Request) -> dict[str, list[dict[str, str]]]:
        """Photos of known free licence to try the model on."""
        folder = f"{_root(request)}/v1/samples"
        return {
            "samples": [
                {**sample.facts, "url": f"{folder}/{name}", "thumb": f"{folder}/{name}/thumb"}
                for name, sample in samples.items()
            ]
        }

    def find(name: str) -> Sample:
        if name not in samples:
            raise unknown("sample", name, samples)
        return samples[name]

    common: dict[str, Any] = {
        "response_class": Response,
        "responses": problem_responses(unknown("sample", "dog", ["cat", "coffee"]), 422) | CACHED,
    }

    @router.get("/v1/samples/{name}", operation_id="sample", **common)
    async def sample(name: str, request: Request) -> Response:
        """One photo."""
        return _cached(find(name).photo, request)

    @router.get("/v1/samples/{name}/thumb", operation_id="sample_thumb", **common)
    async def thumb(name: str, request: Request) -> Response:
        """One photo, small."""
        return _cached(find(name).thumb, request)


def _root(request: Request) -> str:
    """The prefix of a proxy, which a client needs in an address and the service never sees."""
    return str(request.scope.get("root_path", ""))


def _cached(picture: Picture, request: Request) -> Response:
    headers = {"ETag": picture.etag, "Cache-Control": SAMPLE_CACHE}
    # Proxies that compress weaken a tag; for a copy in a cache that makes no difference.
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if known & {picture.etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(picture.content, media_type=picture.media_type, headers=headers)
