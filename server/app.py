"""The application without the page: middleware, routes, problems, lifespan."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI, Response
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from model import __version__
from server import openapi, problems
from server.compress import Compress
from server.limits import BodyLimit, ClientLimit
from server.logs import log_request
from server.routes import build_routers
from server.samples import Sample
from server.security import Admission, Gate, Keys, SecurityHeaders, body_limit
from server.service import Service
from server.settings import Settings
from server.watch import Watch

REQUEST_ID = "X-Request-ID"
ALLOWED = ["Authorization", "Content-Type", "X-API-Key", REQUEST_ID]
EXPOSED = [
    REQUEST_ID, "X-Unmask-Seed", "X-Unmask-Hidden-Count", "X-Unmask-Mask", "X-Unmask-Model", "X-Unmask-Items", "ETag",
    "Retry-After",
]  # fmt: skip


def create_app(service: Service, settings: Settings, samples: Mapping[str, Sample] | None = None) -> FastAPI:
    """Build the API around a service, which is started and stopped with the application.

    Args:
        service: Does the work.
        settings: Limits and addresses.
        samples: Photos to offer, by name.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.stop)  # meanwhile those whom it gives up are answered

    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs-assets",
        title="Unmask",
        version=__version__,
        summary="Hide patches of a photo and see the model paint them.",
        openapi_tags=[{"name": name, "description": text} for name, text in openapi.GROUPS.items()],
        lifespan=lifespan,
        redirect_slashes=False,  # to the host that the client names, whoever that is
        middleware=_middleware(service, settings),
    )
    for router in build_routers(service, settings, samples or {}):
        app.include_router(router)
    problems.install(app)
    openapi.install(app, keyed=bool(settings.api_keys), limited=bool(settings.client_rate))
    return app


class Cors(CORSMiddleware):
    """Starlette's rules of other pages, refusing as everything here does."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks whether a page may send a request."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        hint = "Origins that may are named in UNMASK_CORS_ORIGINS."
        return problems.problem(
            400,
            "cors",
            detail=f"A page elsewhere may not send this: {bytes(answer.body).decode()}. {hint}",
            headers={"Vary": answer.headers["vary"]},
        )


class Head:
    """Answers HEAD wherever GET is answered, as RFC 9110 wants it; the body is left out by who sends the answer.

    Args:
        app: The next application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        got = {**scope, "method": "GET"}
        try:
            await self.app(got, receive, send)
        finally:
            scope.update(got, method="HEAD")  # the route and the problem, for log and counters


def _middleware(service: Service, settings: Settings) -> list[Middleware]:
    """From the outermost inwards; every answer, refusals included, passes the first four."""

    def dress(app: ASGIApp) -> ASGIApp:
        """The headers that every answer has."""
        # Always there, even without origins: where it is, gradio's own generous rules stay silent.
        cors = Cors(
            app,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=ALLOWED,
            expose_headers=EXPOSED,
        )
        return SecurityHeaders(cors, frame_ancestors=settings.frame_ancestors)

    return [
        Middleware(CorrelationIdMiddleware, header_name=REQUEST_ID, validator=_is_request_id),
        Middleware(
            Watch,
            observers=(log_request, service.metrics.count),
            dress=dress,
            stopping=lambda: not service.ready,
        ),
        Middleware(Compress),  # outside of the next, which reads the page it sends
        Middleware(dress),
        *([Middleware(Keys, digests=settings.api_keys)] if settings.api_keys else []),
        *([Middleware(ClientLimit, rate=settings.client_rate)] if settings.client_rate else []),
        Middleware(
            BodyLimit,
            limit_of=body_limit(settings.max_body_bytes, settings.batch_bytes),
            held_bytes=settings.held_bytes,
            seconds=settings.body_s,
        ),
        Middleware(Gate),
        Middleware(Admission, check=service.check_room),
        Middleware(Head),
    ]


def _is_request_id(text: str) -> bool:
    """A client's own id is taken over when it is short and harmless in logs and headers."""
    return 0 < len(text) <= 64 and text.isascii() and text.replace("-", "").replace("_", "").isalnum()
