"""What the API and the page call: a picture and options in, a reconstruction out.

Decoding runs in a small thread pool, encoding in another, so that what was computed never waits behind what begins;
the network in the batcher's one worker. Nothing here blocks the event loop and nothing here sees a tensor.
"""

import asyncio
import io
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import numpy as np
from asgi_correlation_id import correlation_id
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import Histogram

from model import Job, Options, Prediction, Reconstruction, Reconstructor
from model.reconstruct import Look
from server.batcher import Batcher, Run, stand_back
from server.line import Line, Place, Turn
from server.metrics import Metrics, surface
from server.models import Models
from server.problems import (
    BadRequestError,
    DeadlineExceededError,
    ModelLoadingError,
    OverloadedError,
    ReportPendingError,
    ServiceError,
    ShuttingDownError,
    TooMuchWorkError,
)
from server.settings import Settings

T = TypeVar("T")
W = TypeVar("W", Job, Look)
Features: TypeAlias = NDArray[np.float32]
Work: TypeAlias = Job | Look
Done: TypeAlias = Prediction | Features


class Worker(Protocol):
    """Runs the network: a thread of this process, or other processes."""

    def start(self) -> None:
        """Begin to take work."""

    def stop(self) -> None:
        """Finish what runs, drop what waits."""

    @property
    def alive(self) -> bool:
        """Whether work is taken."""

    async def submit(self, job: Work, run: Run[Work, Done], network: str, weight: int = 1) -> Done:
        """The prediction for a job; see `Batcher.submit`."""


Connect = Callable[[Line], Worker]

HEADER = ""  # the network of those who need none
EMBED_PASSES = 2  # the encoder sees four times as many patches as usual, and no decoder follows

CPU_BATCH = 4  # more gains little throughput on a CPU and makes everybody wait for the whole batch
GPU_BATCH = 32

# Most that are also interpolated: a tenth of a second each. Four masks of the largest grid, or 32 of the usual one.
INTERPOLATED_PASSES = 36

# Requests for many reconstructions, or for one as large as its photo: each holds megabytes for its whole time.
LARGE = 4
LARGE_RETRY_S = 10
LOADING_RETRY_S = 5
# Seconds between two looks for room in a full queue.
PATIENCE_S = 0.05


class Service:
    """The models and everything that is shared by the requests on them.

    Args:
        models: The first is loaded.
        settings: Limits and thread counts.
        connect: Makes what runs the network where that is not a thread of this process.
    """

    def __init__(self, models: Models, settings: Settings, connect: Connect | None = None) -> None:
        self.models = models
        self._max_loading = settings.max_waiting
        self._awaiting_model = 0  # touched by the event loop only
        self._deadline_s = settings.deadline_s
        self._decode_threads = settings.decode_threads
        self._decoders, self._encoders = (
            ThreadPoolExecutor(
                settings.decode_threads, thread_name_prefix=f"unmask-{name}", initializer=stand_back
            )
            for name in ("decode", "encode")
        )
        # What is as large as its photo takes seconds and half a gigabyte: one at a time, and nobody waits behind it.
        self._large_encoder = ThreadPoolExecutor(1, thread_name_prefix="unmask-large", initializer=stand_back)
        self.metrics = Metrics()
        self.max_batch = most_passes(settings, models.default.device)
        self._line = Line(
            max_waiting=settings.max_waiting, max_queue_s=settings.max_queue_s, metrics=self.metrics
        )
        self._worker: Worker = (
            connect(self._line)
            if connect
            else Batcher(self._line, max_batch=self.max_batch, metrics=self.metrics)
        )
        self._large = 0  # in progress; touched by the event loop only
        # One network call's worth for all of them together: single requests never wait behind more than that.
        self._batch_places = asyncio.Semaphore(self.max_batch)
        self._batch_turn = asyncio.Lock()
        self._draining = False

    def start(self) -> None:
        """Start the worker; the service is ready afterwards."""
        self._worker.start()

    def drain(self) -> None:
        """Take no new work; what was admitted is finished."""
        self._draining = True

    def stop(self) -> None:
        """Drain and end the threads."""
        self.drain()
        self._worker.stop()
        self.models.close()
        for pool in (self._decoders, self._encoders, self._large_encoder):
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """Whether new work is taken."""
        return self._worker.alive and not self._draining

    def describe(self) -> dict[str, Any]:
        """Facts about the default model, ready for JSON."""
        return self.models.default.describe()

    async def describe_model(self, name: str) -> dict[str, Any]:
        """Facts about one model, with the report on its file; it is loaded for that.

        Raises:
            UnmaskError: As `model`; the report is not there yet.
        """
        self.models.source(name, status=404)
        model = await self.model(name)
        async with self._deadline(ReportPendingError(name)):
            return model.describe() | {"report": await self.models.report(name)}

    async def model(self, name: str | None = None) -> Reconstructor:
        """The model a request names, loaded if need be; without a name the default.

        Raises:
            BadRequestError: There is no such model.
            ModelUnavailableError: It cannot be loaded.
            ModelLoadingError: It takes longer to load than a request may take.
            OverloadedError: Too many requests wait for models.
        """
        if name is None or self.models.is_loaded(name):
            return await self.models.get(name)
        self.models.source(name)  # refused before it counts as waiting
        if self._awaiting_model >= self._max_loading:
            raise OverloadedError(LOADING_RETRY_S)
        self._awaiting_model += 1
        try:
            async with self._deadline(ModelLoadingError(name)):
                return await self.models.get(name)
        finally:
            self._awaiting_model -= 1

    def turn(self, request: str) -> Turn:
        """How it stands with the line for the request of this id."""
        return self._line.turn(request)

    def check_room(self) -> None:
        """Refuse before the body is read.

        Raises:
            OverloadedError: When the queue is full.
            ShuttingDownError: After `drain`.
        """
        if self._draining:
            raise ShuttingDownError
        self._line.check_room()

    async def reconstruct(
        self,
        model: Reconstructor,
        image: bytes,
        options: Options,
        render: Callable[[Reconstruction], T],
        *,
        large: bool = False,
    ) -> T:
        """Hide patches of a picture, predict them, and give the result a form.

        Args:
            model: Does it.
            image: A picture file.
            options: What to hide.
            render: Turns the reconstruction into what the caller sends; runs in the pool, for encoding
                costs time.
            large: What it makes is as large as the picture: one is made at a time.

        Raises:
            UnmaskError: The picture or the options are refused, the queue is full, or the deadline has
                passed.
        """
        return await self._serve(
            model,
            lambda: _prepare(model, image, options),
            _ending(model, render),
            passes=lambda job: count_passes(job, model),
            encoder=self._large_encoder if large else self._encoders,
        )

    async def embed(
        self, model: Reconstructor, image: bytes, kind: str, render: Callable[[Features], T]
    ) -> T:
        """What the encoder makes of a whole picture.

        Args:
            model: Does it.
            image: A picture file.
            kind: What of it is wanted.
            render: Turns the features into what the caller sends; runs in the pool.

        Raises:
            UnmaskError: As `reconstruct`.
        """
        return await self._serve(
            model,
            lambda: model.prepare_embedding(image, kind),
            lambda _, done: render(cast(Features, done)),
            passes=lambda _: EMBED_PASSES,
            encoder=self._encoders,
            least=EMBED_PASSES,
        )

    async def _serve(
        self,
        model: Reconstructor,
        prepare: Callable[[], W],
        finish: Callable[[W, Done], T],
        *,
        passes: Callable[[W], int],
        encoder: ThreadPoolExecutor,
        least: int = 1,
    ) -> T:
        """Decode, wait for the network, encode.

        Args:
            model: Does it.
            prepare: Makes the work out of the request; runs in the pool.
            finish: Makes the answer out of work and result; runs in `encoder`.
            passes: Forward passes of the work.
            encoder: The pool for that.
            least: Forward passes of the smallest such request. It is tried however slow the model has been: nobody
                could ask for less, and only what runs tells that it is quick again.
        """
        # Not asked whether we drain: whoever was let in by `check_room` before is still answered.
        with self._line.admit(model.identity, correlation_id.get()) as place:
            async with self._deadline():
                work = await self._decode(prepare)
                place.decoding, place.passes = False, passes(work)
                self._check_work(model, place.passes, least)
                if place.passes > max(least, self.max_batch):
                    self._line.be_patient(place)  # takes turns with batches: one client's lock nobody out
                async with self._hold_places(place.passes) if place.patient else nullcontext():
                    return await self._compute(model, work, place, finish, encoder)

    def _check_work(self, model: Reconstructor, passes: int, least: int = 1) -> None:
        """Refuse what could not end in time, before it waits for its turn."""
        expected_s = self._line.expected_s(model.identity, passes)
        if passes > least and expected_s > self._deadline_s:
            raise TooMuchWorkError(expected_s, self._deadline_s)

    async def _compute(
        self,
        model: Reconstructor,
        work: W,
        place: Place,
        finish: Callable[[W, Done], T],
        encoder: ThreadPoolExecutor,
    ) -> T:
        done = await self._worker.submit(work, model.work, model.identity, place.passes)
        return await self._in_pool(encoder, self.metrics.encode, lambda: finish(work, done))

    @asynccontextmanager
    async def _deadline(self, refusal: ServiceError | None = None) -> AsyncIterator[None]:
        """Leaving the block early cancels what has not started, in the pools and in the queue."""
        try:
            async with asyncio.timeout(self._deadline_s):
                yield
        except TimeoutError:
            raise refusal or DeadlineExceededError(self._deadline_s) from None

    async def look(self, read: Callable[[], T]) -> T:
        """What a picture's header says; no network is needed for it.

        Args:
            read: Opens the picture; runs in the pool.

        Raises:
            UnmaskError: As `read`; the queue is full, or the deadline has passed.
        """
        with self._line.admit(HEADER, correlation_id.get()) as place:
            place.decoding, place.passes = False, 0
            async with self._deadline():
                return await self._in_pool(self._decoders, self.metrics.decode, read)

    def check_large(self) -> None:
        """Refuse a request for many reconstructions, or for a picture at full size; early, where it can be told.

        Raises:
            OverloadedError: When too many such requests are in progress.
            ShuttingDownError: After `drain`.
        """
        if self._draining:
            raise ShuttingDownError
        if self._large >= LARGE:
            raise OverloadedError(LARGE_RETRY_S)

    @contextmanager
    def admit_large(self) -> Iterator[None]:
        """Hold a place for such a request until its answer was sent.

        Raises:
            UnmaskError: As `check_large`.
        """
        self.check_large()
        self._large += 1
        try:
            yield
        finally:
            self._large -= 1

    async def reconstruct_patiently(
        self, model: Reconstructor, image: bytes, options: Options, render: Callable[[Reconstruction], T]
    ) -> T:
        """As `reconstruct`, for one of many: waits for its turn and for room instead of being refused at once.

        Raises:
            UnmaskError: As `reconstruct`; the queue stayed full for as long as a request may take; the service
                stops.
        """
        async with self._hold_places(1):
            job = await self._decode(lambda: _prepare(model, image, options))
        passes = count_passes(job, model)
        async with self._hold_places(passes):
            clock = asyncio.get_running_loop().time
            until = clock() + self._deadline_s
            while True:
                try:
                    self.check_room()  # after `drain` what has not begun is given up
                    with self._line.admit(model.identity, correlation_id.get(), patient=True) as place:
                        place.decoding, place.passes = False, passes
                        self._check_work(model, passes)  # by the pace of those before it
                        async with self._deadline():
                            return await self._compute(
                                model, job, place, _ending(model, render), self._encoders
                            )
                except OverloadedError:
                    if clock() > until:
                        raise
                await asyncio.sleep(PATIENCE_S)

    @asynccontextmanager
    async def _hold_places(self, passes: int) -> AsyncIterator[None]:
        """As many places of batches as there are passes, but no more than all."""
        async with AsyncExitStack() as held:
            async with self._batch_turn:  # one gathers at a time: two would wait for each other's
                for _ in range(min(passes, self.max_batch)):
                    await held.enter_async_context(self._batch_places)
            yield

    async def _decode(self, prepare: Callable[[], T]) -> T:
        def timed() -> T:
            began = time.monotonic()
            try:
                return prepare()
            finally:
                self._line.learn_decoding((time.monotonic() - began) / self._decode_threads)

        return await self._in_pool(self._decoders, self.metrics.decode, timed)

    async def _in_pool(self, pool: ThreadPoolExecutor, histogram: Histogram, work: Callable[[], T]) -> T:
        seconds = histogram.labels(surface.get())  # here, for threads do not see the request's context

        def timed() -> T:
            with seconds.time():
                return work()

        return await asyncio.get_running_loop().run_in_executor(pool, timed)


def most_passes(settings: Settings, device: str) -> int:
    """Pictures in one call of the network on a device."""
    return settings.max_batch or (CPU_BATCH if device == "cpu" else GPU_BATCH)


def _prepare(model: Reconstructor, image: bytes, options: Options) -> Job:
    """Refuses also what would keep a thread busy long after its deadline: threads cannot be ended."""
    job = model.prepare(image, options)
    if options.interpolation and (passes := count_passes(job, model)) > INTERPOLATED_PASSES:
        raise BadRequestError(
            f"'interpolation' of {passes} usual pictures is too much work; the limit is {INTERPOLATED_PASSES}.",
            status=422,
            code="too-much-work",
            hint="Leave it out, or ask for fewer samples or a smaller grid.",
            field="interpolation",
        )
    return job


def _ending(model: Reconstructor, render: Callable[[Reconstruction], T]) -> Callable[[Job, Done], T]:
    """What is left to do once the network has run."""
    return lambda job, done: render(model.finish(job, cast(Prediction, done)))


def count_passes(job: Job, model: Reconstructor) -> int:
    """How many of the model's usual pictures a job is worth: its masks, larger grids counting as more."""
    rows, columns = job.grid
    usual = model.grid[0] * model.grid[1]
    return len(job.masks) * math.ceil(rows * columns / usual)


def warm_up(reconstructor: Reconstructor) -> None:
    """Run the whole path once, so that the first visitor does not pay for what is set up on first use."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(picture, "PNG")
    reconstructor(picture.getvalue(), Options(seed=0)).sheet()
