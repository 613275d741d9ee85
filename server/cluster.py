"""The same service on Ray Serve: one front with page and API, and replicas that hold the models.

The front decodes, draws masks, scores and encodes, as ever; only what the network does happens elsewhere: a job
goes to a replica and its prediction comes back. A replica runs what waits with the same batcher as a service of
one process, so an answer is the same, bit for bit, wherever it was computed. Computing leaves nothing behind:
what a replica took to its death is asked of another.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model import Reconstructor
from model.loading import Loaded
from server import logs
from server.batcher import Batcher, Run
from server.line import Line
from server.main import build, load_model
from server.metrics import Metrics
from server.models import Models, find_sources
from server.problems import OverloadedError
from server.service import Done, Work, most_passes
from server.settings import Settings, prepare_environment

NAME = "unmask"
TRIES = 3  # a job that kills whoever runs it must not kill them all
# A replica that has not answered for so long is not counted on when waits are predicted.
HEARD_S = 10.0
# The front's own line refuses long before; this bounds health checks, page files and refusals in progress.
FRONT_REQUESTS = 1000
REQUEST_ID = b"x-request-id"


class Elsewhere:
    """Stands for an engine of another process: only its name is here."""

    def __init__(self, name: str, precision: str) -> None:
        self.name = name
        self.precision = precision

    def handles(self, grid: tuple[int, int]) -> bool:
        """The replica decides."""
        return True

    def run(self, *_: Any) -> Any:
        """Never called: jobs are sent whole."""
        raise NotImplementedError

    encode = run


class Replica:
    """Holds the models and runs the network, several jobs at a time.

    Args:
        settings: Of the service.
    """

    def __init__(self, settings: Settings) -> None:
        prepare_environment(settings, Path(tempfile.gettempdir()))
        logs.configure(settings.log_level)
        load = partial(load_model, settings)
        self._models = Models(find_sources(settings.models), load, max_bytes=settings.model_bytes)
        self._models.load_default()
        metrics = Metrics()
        self._line = Line(max_waiting=settings.max_waiting, max_queue_s=settings.max_queue_s, metrics=metrics)
        most = most_passes(settings, self._models.default.device)
        self._batcher: Batcher[Work, Done] = Batcher(self._line, max_batch=most, metrics=metrics)
        self._batcher.start()
        self._name = uuid.uuid4().hex

    def check_health(self) -> None:
        """Called by Serve, which replaces who fails it."""
        if not self._batcher.alive:
            raise RuntimeError("the model's thread has ended")

    async def look(self, name: str) -> Loaded:
        """A model without its engine."""
        loaded = (await self._models.get(name)).loaded
        engine = Elsewhere(loaded.engine.name, loaded.engine.precision)
        return Loaded(loaded.facts, engine, device=loaded.device, error=loaded.error, note=loaded.note)

    async def run(self, name: str, job: Work, weight: int) -> tuple[Done, str, float]:
        """The prediction, who made it, and seconds that a pass takes here."""
        model = await self._models.get(name)
        done = await self._batcher.submit(job, model.work, model.identity, weight)
        return done, self._name, self._line.expected_s(model.identity, 1)


class Replicas:
    """What the front takes for its worker: sends jobs away and awaits them.

    Args:
        handle: Of the replicas.
        settings: Of the service.
    """

    alive = True

    def __init__(self, handle: DeploymentHandle[Any], settings: Settings) -> None:
        self._handle = handle
        self._names = {source.path: source.name for source in find_sources(settings.models)}
        self._known: dict[str, str] = {}  # name by what is computed
        self._heard: dict[str, float] = {}  # when, by replica
        self._line: Line | None = None

    def connect(self, line: Line) -> Replicas:
        """Bound what is sent by a line."""
        self._line = line
        return self

    def start(self) -> None:
        """Nothing: Serve starts the replicas."""

    def stop(self) -> None:
        """Nothing: Serve stops them."""

    def load(self, path: Path) -> Reconstructor:
        """What prepares and finishes for a model; runs in a thread of its own."""
        name = self._names[path]
        try:
            loaded: Loaded = self._handle.look.remote(name).result()
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError as error:
            raise ConnectionError(f"the replica that was to load {name} has died") from error
        self._known[loaded.facts.identity] = name
        return Reconstructor(loaded)

    async def submit(self, job: Work, run: Run[Work, Done], network: str, weight: int = 1) -> Done:
        """Let a replica run a job; `run` is its own."""
        for left in reversed(range(TRIES)):
            response = self._handle.run.remote(self._known[network], job, weight)
            try:
                answer: tuple[Done, str, float] = await response
            except asyncio.CancelledError:
                response.cancel()  # nobody waits any more: it is dropped there, unless it runs already
                raise
            except BackPressureError:
                raise OverloadedError(retry_after_s=1) from None
            except RayTaskError as error:
                raise error.cause from None
            except RayActorError:
                if not left:
                    raise
            else:
                done, replica, pass_s = answer
                self._learn(network, replica, pass_s)
                return done
        raise AssertionError("the last try returns or raises")

    def _learn(self, network: str, replica: str, pass_s: float) -> None:
        """All replicas together are as much faster as there are of them, for all jobs but not for one."""
        now = time.monotonic()
        self._heard = {name: when for name, when in self._heard.items() if when > now - HEARD_S}
        self._heard[replica] = now
        assert self._line is not None  # connected before anything is sent
        self._line.learn(network, pass_s)
        self._line.workers = len(self._heard)


class Front:
    """Page and API; one of them, so that a visitor's page stays where it was.

    Args:
        settings: Of the service.
        handle: Of the replicas.
    """

    def __init__(self, settings: Settings, handle: DeploymentHandle[Any]) -> None:
        self._settings = settings
        self._replicas = Replicas(handle, settings)
        self._folder = tempfile.TemporaryDirectory(prefix="unmask-", ignore_cleanup_errors=True)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        logs.configure(self._settings.log_level)
        folder = Path(self._folder.name)
        (uploads := folder / "uploads").mkdir()
        (empty := folder / "empty").mkdir()
        app, _ = build(self._settings, uploads, self._replicas.load, self._replicas.connect)
        os.chdir(empty)  # as for a service of one process
        return _without_id(app)


def _without_id(app: ASGIApp) -> ASGIApp:
    """Leave the request's id to Serve's proxy, which adds it to every answer."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        async def cut(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0].lower() != REQUEST_ID]
            await send(message)

        await app(scope, receive, cut)

    return served


def application(settings: Settings) -> serve.Application:
    """Front and replicas, ready for `serve.run`.

    Args:
        settings: Of the service; weight files must lie at the same place on every machine.
    """
    on_gpu = (settings.device or "cpu") != "cpu"
    most = most_passes(settings, settings.device or "cpu")
    replicas = settings.max_replicas or settings.min_replicas
    sources = tuple(f"{source.name}={source.path}" for source in find_sources(settings.models))
    settings = settings.model_copy(update={"models": sources, "device": settings.device or "cpu"})
    deploy: Callable[..., Any] = partial(
        serve.deployment,
        graceful_shutdown_timeout_s=settings.graceful_s,
        logging_config={"enable_access_log": False},  # the front's own line tells of every request
    )
    models = deploy(
        Replica,
        name="models",
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": replicas,
            "target_ongoing_requests": most,
        },
        max_ongoing_requests=2 * most,  # the next batch waits where it will run
        max_queued_requests=settings.max_waiting,
        ray_actor_options={"num_cpus": settings.threads, "num_gpus": int(on_gpu)},
    ).bind(settings)
    # The front holds no weights; files never go from it for want of room.
    front = settings.model_copy(update={"model_bytes": sys.maxsize})
    return deploy(
        serve.ingress()(Front),
        name="front",
        max_ongoing_requests=FRONT_REQUESTS,
        ray_actor_options={"num_cpus": 0},
    ).bind(front, models)


def start(settings: Settings) -> None:
    """Serve on this machine, or on the cluster that `RAY_ADDRESS` names; returns when all is ready.

    Args:
        settings: Of the service.
    """
    prepare_environment(settings, Path(tempfile.gettempdir()))
    if "threads" not in settings.model_fields_set:
        share = settings.threads // (settings.max_replicas or settings.min_replicas)
        settings = settings.model_copy(update={"threads": max(1, share)})
    ray.init(include_dashboard=False)
    serve.start(
        http_options=HTTPOptions(host=settings.host, port=settings.port, root_path=settings.root_path)
    )
    serve.run(application(settings), name=NAME, route_prefix="/")


def stop() -> None:
    """End what `start` began."""
    serve.shutdown()
    ray.shutdown()
