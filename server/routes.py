"""The API: validate, call `Service`, encode. Thin on purpose."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack

from asgi_correlation_id import correlation_id
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from model import EVERY_PANEL, STRATEGIES, __version__
from model.views import VIEWS
from server import openapi, problems, responses
from server.answers import FORMS, JSON, SHEET, Answer, Form, etag, negotiate
from server.batch import add_batch
from server.catalogue import add_models, add_queue, add_samples
from server.inputs import ACCEPTED, Files, Shape, read
from server.limits import unless_gone
from server.openapi import problem_responses
from server.problems import InvalidFieldsError
from server.reading import add_reading
from server.samples import Sample
from server.schemas import SAMPLED, ReconstructFields
from server.service import Service
from server.settings import Settings
from server.training import Record, find_records

FULL_SIZE = "pasted"  # the panel that is laid over the photo where none is named


def build_routers(service: Service, settings: Settings, samples: Mapping[str, Sample]) -> list[APIRouter]:
    """All routes of the API, grouped as `openapi.GROUPS` are.

    Args:
        service: Does the work.
        settings: For the limit of uploads.
        samples: Photos to offer, by name.
    """
    routers = [APIRouter(tags=[group]) for group in openapi.GROUPS]
    reconstructing, reading, models, photos, facts = routers
    _add_reconstruct(reconstructing, service, settings)
    add_batch(reconstructing, service, settings)
    add_reading(reading, service, settings)
    records = find_records(service.models.sources, settings.run)
    add_models(models, service, records)
    add_samples(photos, samples)
    add_queue(facts, service)
    _add_facts(facts, service, settings, records)
    return routers


def _add_reconstruct(router: APIRouter, service: Service, settings: Settings) -> None:
    shape = Shape(ReconstructFields, picture="image", files=("drawing",), max_bytes=settings.max_bytes)

    async def reconstruct(request: Request) -> Response:
        """Hide patches of a photo and let the model paint them.

        The photo comes as a form, as the body itself (`image/*`, options in the query) or as JSON in base64.
        `Accept` picks JSON with the pictures inside, or one picture as PNG, WebP or JPEG: the panels side by
        side, or the one that `panel` names, with `full_size` over the photo at its own size. The seed in the answer
        repeats it.
        """
        media_type = negotiate(request.headers.getlist("accept"), FORMS)
        fields, files = await read(request, shape)
        _check_forms(fields, media_type)
        drawing = files["drawing"][0] if "drawing" in files else None
        options = fields.options(drawing)

        async def work() -> Answer:
            model = await service.model(fields.model)
            form = Form(
                media_type,
                panels=fields.panels,
                panel=fields.panel or (FULL_SIZE if fields.full_size else SHEET),
                pictures=f"image/{fields.picture_format or 'png'}",
                photo=files["image"][0] if fields.full_size else None,
                max_bytes=settings.batch_bytes,
                request_id=correlation_id.get(),
                etag=_etag(fields, files, media_type, model.identity) if _repeats(fields) else None,
            )
            return await service.reconstruct(
                model, files["image"][0], options, form.render, large=fields.full_size
            )

        with ExitStack() as place:
            if fields.full_size:
                place.enter_context(service.admit_large())
            answer = await unless_gone(request, work())
            answer.held = place.pop_all()
        return answer

    for path in ("/reconstruct", "/v1/reconstruct"):
        router.add_api_route(
            path,
            reconstruct,
            methods=["POST"],
            operation_id="reconstruct" if path.startswith("/v1") else "reconstruct_short",
            response_class=Response,
            responses=problem_responses(400, 406, 408, 413, 415, 422, 500, 503, 504)
            | {200: openapi.RECONSTRUCTION},
            openapi_extra=openapi.RECONSTRUCT,
        )


def _repeats(fields: ReconstructFields) -> bool:
    """Whether the same request gives the same answer again."""
    return fields.seed is not None or fields.strategy not in SAMPLED


def _etag(fields: ReconstructFields, files: Files, media_type: str, digest: str) -> Callable[[str, str], str]:
    """Hashes megabytes: put off until a thread does it, which knows too what has computed the answer."""
    asked = fields.model_dump() | {"media_type": media_type, "model": digest}
    parts = [part for name in sorted(files) for part in files[name]]
    return lambda engine, precision: etag(parts, asked | {"engine": engine, "precision": precision})


def _check_forms(fields: ReconstructFields, media_type: str) -> None:
    """Refuse options that the answer would have to ignore."""
    as_json, listed = media_type == JSON, "panels" in fields.model_fields_set
    refuse = InvalidFieldsError.one
    if fields.panel and as_json:
        raise refuse(
            "panel", "'panel' picks a picture, but the answer is JSON.", "Send 'Accept: image/png' with it."
        )
    if fields.panel not in (None, SHEET) and listed:
        raise refuse("panel", "'panel' names one picture, but 'panels' several.", "Leave one of them out.")
    if fields.full_size and as_json:
        raise refuse(
            "full_size",
            "'full_size' is for one picture, but the answer is JSON.",
            "Send 'Accept: image/jpeg' with it, or image/png or image/webp.",
        )
    if fields.full_size and (fields.panel == SHEET or listed):
        raise refuse(
            "full_size",
            "'full_size' lays one panel over the photo, not several side by side.",
            f"Name one with 'panel', or none for '{FULL_SIZE}'.",
        )
    if fields.picture_format and not as_json:
        raise refuse(
            "picture_format",
            f"'picture_format' is for JSON, but the answer is {media_type}.",
            "Leave it out, or send 'Accept: application/json'.",
        )


def _add_facts(
    router: APIRouter, service: Service, settings: Settings, records: Mapping[str, Record]
) -> None:
    facts = responses.Info(
        name="unmask",
        version=__version__,
        models=service.models.names,
        trainings=[],
        strategies=list(STRATEGIES),
        panels=list(EVERY_PANEL),
        views=list(VIEWS),
        accepts=list(ACCEPTED),
        answers=list(FORMS),
        limits={
            "max_bytes": settings.max_bytes,
            "batch_items": settings.max_items,
            "batch_bytes": settings.batch_bytes,
            "deadline_s": settings.deadline_s,
        },
    )

    @router.get("/v1/info", operation_id="info")
    async def info() -> responses.Info:
        """What this service is and takes."""
        # Asked each time: a run may begin after the service.
        begun = [name for name, record in records.items() if record.exists]
        return facts.model_copy(update={"trainings": begun})

    if settings.metrics:

        @router.get("/metrics", operation_id="metrics", response_class=PlainTextResponse)
        def metrics() -> Response:
            """Counters in the text format of Prometheus."""
            return Response(service.metrics.expose(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @router.get("/healthz", operation_id="healthz")
    async def healthz() -> responses.Health:
        """Whether the process answers."""
        return responses.Health(status="ok")

    @router.get("/readyz", operation_id="readyz", responses=problem_responses(problems.ShuttingDownError()))
    async def readyz() -> responses.Health:
        """Whether new work is taken."""
        if not service.ready:
            raise problems.ShuttingDownError
        return responses.Health(status="ready")
