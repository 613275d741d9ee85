"""Many reconstructions in one request: every picture in every listed way, answered in order.

They take the same line as single requests, a few at a time, so that a batch is only as fast as the queue allows
and never stands before anybody for longer than one call of the network.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing
from functools import partial
from itertools import cycle
from typing import Any

import structlog
from asgi_correlation_id import correlation_id
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from model import Reconstruction, Reconstructor, UnmaskError
from server import openapi, problems
from server.answers import JSON, NDJSON, Answer, describe, dump, negotiate, not_acceptable
from server.inputs import Shape, read
from server.limits import charge, unless_gone
from server.problems import BadRequestError, InvalidFieldsError
from server.schemas import BatchFields, Variant
from server.security import BATCH_PATH
from server.service import Service
from server.settings import Settings

logger = structlog.stdlib.get_logger("unmask.batch")

Head = dict[str, Any]  # what an entry begins with: its place, its picture, what was asked


def add_batch(router: APIRouter, service: Service, settings: Settings) -> None:
    """The route.

    Args:
        router: Takes it.
        service: Does the work.
        settings: For the limits.
    """
    limit = settings.max_items
    shape = Shape(BatchFields, picture="images", max_bytes=settings.max_bytes, max_pictures=limit)

    @router.post(
        BATCH_PATH,
        operation_id="reconstruct_batch",
        response_class=Response,
        responses=openapi.problem_responses(400, not_acceptable((JSON, NDJSON)), 408, 413, 415, 422, 500, 503)
        | {200: openapi.BATCH_ANSWER},
        openapi_extra=openapi.BATCH,
    )
    async def batch(request: Request) -> Response:
        """Reconstruct many at once: each photo in every combination of the listed strategies, ratios and seeds.

        The answer is one JSON object, or with `Accept: application/x-ndjson` one line for each as soon as it is
        done. Both are in order. An entry that fails holds its problem and leaves the others alone. One object has
        room for as many bytes as a request may have; entries beyond it are refused and not computed, lines are not.
        """
        media_type = negotiate(request.headers.getlist("accept"), (JSON, NDJSON))
        service.check_large()
        fields, files = await read(request, shape)
        images = files["images"]
        _check_count(fields, len(images), limit)
        for variant in fields.variants():
            fields.options(variant)  # what all entries would be refused for is refused at once
        charge(request, fields.count * len(images))
        with ExitStack() as place:  # taken late: whose body is slow takes it from nobody
            place.enter_context(service.admit_large())
            model = await unless_gone(request, service.model(fields.model))
            heads = _heads(fields, len(images))
            lines = _run(service, model, images, fields, heads)
            headers = {
                "Cache-Control": "no-store",
                "Vary": "Accept",
                "X-Unmask-Items": str(fields.count * len(images)),
                "X-Unmask-Model": model.digest,
            }
            if media_type == NDJSON:
                return _Stream(lines, place.pop_all(), headers)
            content = await unless_gone(request, _collect(lines, heads, model, settings.batch_bytes))
            answer = Answer(content, media_type=JSON, headers=headers)
            answer.held = place.pop_all()
            return answer


class _Stream(StreamingResponse):
    """Lines as they come; what they hold is given back however the answer ends."""

    def __init__(self, lines: AsyncIterator[bytes], place: ExitStack, headers: dict[str, str]) -> None:
        super().__init__((line + b"\n" async for line in lines), headers=headers, media_type=NDJSON)
        self._lines = lines
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        with self._place:
            async with aclosing(self._lines):  # type: ignore[type-var] # it is a generator
                await super().__call__(scope, receive, send)


async def _collect(
    lines: AsyncIterator[bytes], heads: list[Head], model: Reconstructor, max_bytes: int
) -> bytes:
    """One object of all entries; those for which it has no room are not computed."""
    items: list[bytes] = []
    size = 0
    async with aclosing(lines):  # type: ignore[type-var] # it is a generator
        async for line in lines:
            if (size := size + len(line)) > max_bytes:
                break
            items.append(line)
    refusal = BadRequestError(
        f"A JSON answer holds at most {max_bytes} bytes of entries, and earlier entries fill it.",
        status=413,
        code="answer-too-large",
        hint=f"Send 'Accept: {NDJSON}', which has no such bound, or ask for fewer entries or panels.",
    )
    items += [_refused(head, refusal) for head in heads[len(items) :]]
    facts = {"model": model.name, "model_digest": model.digest, "request_id": correlation_id.get()}
    return dump(facts)[:-1] + b', "items": [' + b", ".join(items) + b"]}"


def _heads(fields: BatchFields, images: int) -> list[Head]:
    asked = [
        {
            "strategy": variant.strategy,
            "ratio": None if variant.ratio is None else float(variant.ratio),
            "seed": variant.seed,
        }
        for variant in fields.variants()
    ]
    pairs = [(number, each) for number in range(images) for each in asked]
    return [{"index": index, "image": number, "asked": each} for index, (number, each) in enumerate(pairs)]


async def _run(
    service: Service, model: Reconstructor, images: list[bytes], fields: BatchFields, heads: list[Head]
) -> AsyncIterator[bytes]:
    """The entries in order. No more are in progress, or done and unsent, than one call of the network takes."""
    left = deque(zip(heads, cycle(fields.variants()), strict=False))
    begun: deque[asyncio.Task[bytes]] = deque()
    try:
        while left or begun:
            while left and len(begun) < service.max_batch:
                head, variant = left.popleft()
                entry = _entry(service, model, images[head["image"]], fields, variant, head)
                begun.append(asyncio.create_task(entry))
            yield await begun[0]
            begun.popleft()
    finally:
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)


async def _entry(
    service: Service,
    model: Reconstructor,
    image: bytes,
    fields: BatchFields,
    variant: Variant,
    head: Head,
) -> bytes:
    render: Callable[[Reconstruction], bytes] = partial(_render, head=head, panels=fields.panels)
    try:
        return await service.reconstruct_patiently(model, image, fields.options(variant), render)
    except Exception as error:
        if isinstance(error, UnmaskError) and not isinstance(error, problems.OUR_FAULT):
            service.metrics.count_entry(error.code, BATCH_PATH)
            return _refused(head, error)
        service.metrics.count_entry("internal", BATCH_PATH)
        logger.exception("batch entry failed")
        return _refused(head, None)


def _refused(head: Head, error: UnmaskError | None) -> bytes:
    """An entry with its problem; without an error the mistake is ours."""
    answer = problems.from_error(error) if error else problems.crashed()
    return dump(head)[:-1] + b', "problem": ' + bytes(answer.body) + b"}"


def _render(result: Reconstruction, *, head: Head, panels: tuple[str, ...]) -> bytes:
    return dump(head | {"result": describe(result, panels)})


def _check_count(fields: BatchFields, images: int, limit: int) -> None:
    if (asked := fields.count * images) > limit:
        message = (
            f"Pictures times ways to hide patches, {images} x {fields.count}, come to {asked} reconstructions; the "
            f"limit is {limit}."
        )
        hint = "Ask for fewer strategies, ratios, seeds or pictures, or send several requests."
        raise InvalidFieldsError.one("images", message, hint)
