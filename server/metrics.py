"""What an operator watches: requests by route, refusals by reason, and where the time of a reconstruction goes.

Labels are taken from closed sets only (route templates, problem types, surfaces): a stranger cannot make new ones.
"""

import time
from contextvars import ContextVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.problems import SCOPE_KEY

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
JOBS = (1, 2, 4, 8, 16, 32, 64)
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})

# Who asked, for what runs on behalf of the request: "page" is the service's own page in a browser.
surface: ContextVar[str] = ContextVar("surface", default="api")


class Metrics:
    """The counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        asked, stage = ("route", "surface"), ("surface",)
        self.requests = Counter(
            "unmask_requests",
            "Requests answered.",
            ("method", "status", *asked),
            registry=self.registry,
        )
        self.request = self._seconds("unmask_request_seconds", "From the first byte to the last.", asked)
        self.rejects = Counter(
            "unmask_rejects", "Requests refused, by problem.", ("reason", *asked), registry=self.registry
        )
        self.decode = self._seconds("unmask_decode_seconds", "Decoding a picture and making the mask.", stage)
        self.queue_wait = self._seconds("unmask_queue_wait_seconds", "Waiting for the network.", stage)
        self.encode = self._seconds("unmask_encode_seconds", "Scoring and encoding the answer.", stage)
        # A batch may hold jobs of both surfaces.
        self.infer = self._seconds("unmask_infer_seconds", "One call of the network.", ())
        self.batch_size = Histogram(
            "unmask_batch_size", "Pictures in one call.", buckets=JOBS, registry=self.registry
        )
        self.admitted = Gauge("unmask_admitted", "Requests in work or waiting.", registry=self.registry)

    def expose(self) -> bytes:
        """All counters in the text format of Prometheus."""
        return generate_latest(self.registry)

    def _seconds(self, name: str, text: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(name, text, labels, buckets=SECONDS, registry=self.registry)


class Measure:
    """Counts and times requests.

    Args:
        app: The next application.
        metrics: Where to.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        # Browsers say so of every request a page makes to its own service, and scripts of others cannot.
        own_page = Headers(scope=scope).get("sec-fetch-site") == "same-origin"
        who = "page" if own_page else "api"
        token = surface.set(who)
        try:
            await self.app(scope, receive, watch)
        finally:
            surface.reset(token)
            route = _template(scope)
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.requests.labels(method, str(status), route, who).inc()
            self.metrics.request.labels(route, who).observe(time.monotonic() - began)
            if reason := scope.get(SCOPE_KEY):
                self.metrics.rejects.labels(reason, route, who).inc()


def _template(scope: Scope) -> str:
    """The route a path led to, as written in the code; never the path itself."""
    route = scope.get("route")
    if route is None:
        return "none"
    return str(getattr(route, "path", "")) or "page"
