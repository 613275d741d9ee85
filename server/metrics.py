"""What an operator watches: requests by route, refusals by reason, and where the time of a reconstruction goes.

Labels are taken from closed sets only (route templates, problem types, surfaces): a stranger cannot make new ones.
"""

from contextvars import ContextVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import Scope

from server.logs import Seen
from server.problems import SCOPE_KEY, ServiceError

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
        self.admitted = Gauge("unmask_admitted", "Requests in progress or waiting.", registry=self.registry)

    def expose(self) -> bytes:
        """All counters in the text format of Prometheus."""
        return generate_latest(self.registry)

    def count(self, seen: Seen) -> None:
        """Count and time a request that is over."""
        route = _template(seen.scope)
        method = seen.scope["method"] if seen.scope["method"] in METHODS else "other"
        self.requests.labels(method, str(seen.status), route, seen.surface).inc()
        self.request.labels(route, seen.surface).observe(seen.seconds)
        if reason := seen.scope.get(SCOPE_KEY):
            self.rejects.labels(reason, route, seen.surface).inc()

    def count_refused(self, refusal: ServiceError) -> None:
        """Count what was refused before it was a request: it has no method, no route and no time of its own."""
        self.requests.labels("none", str(refusal.status), "none", "api").inc()
        self.rejects.labels(refusal.code, "none", "api").inc()

    def count_entry(self, reason: str, route: str) -> None:
        """Count what was refused inside an answer that is a good one."""
        self.rejects.labels(reason, route, surface.get()).inc()

    def _seconds(self, name: str, text: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(name, text, labels, buckets=SECONDS, registry=self.registry)


def _template(scope: Scope) -> str:
    """The route a path led to, as written in the code; never the path itself."""
    route = scope.get("route")
    if route is None:
        return "none"
    return str(getattr(route, "path", "")) or "page"
