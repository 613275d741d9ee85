"""What the API and the page call: a picture and options in, a reconstruction out.

Decoding and encoding run in a small thread pool, the network in the batcher's one worker; nothing here
blocks the event loop and nothing here sees a tensor.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from server.batcher import Batcher
from server.metrics import Metrics, surface
from server.problems import DeadlineExceededError, OverloadedError, ShuttingDownError

if TYPE_CHECKING:
    from prometheus_client import Histogram

    from model import Job, Options, Prediction, Reconstruction, Reconstructor
    from server.settings import Settings

T = TypeVar("T")

CPU_BATCH = 4  # more gains little throughput on a CPU and makes everybody wait for the whole batch
GPU_BATCH = 32

# Requests for many reconstructions at once: each holds a body of many pictures in memory for its whole time.
BATCHES = 4
BATCH_RETRY_S = 10
# How often work of such a request looks for room in a queue that is full of others'.
PATIENCE_S = 0.05


class Service:
    """One loaded model and everything that is shared by the requests on it.

    Args:
        reconstructor: The loaded model.
        settings: Limits and thread counts.
    """

    def __init__(self, reconstructor: Reconstructor, settings: Settings) -> None:
        self._reconstructor = reconstructor
        self._deadline_s = settings.deadline_s
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="unmask-picture")
        self.metrics = Metrics()
        self.max_batch = settings.max_batch or (CPU_BATCH if reconstructor.device == "cpu" else GPU_BATCH)
        self._batcher: Batcher[Job, Prediction] = Batcher(
            reconstructor.run,
            max_batch=self.max_batch,
            max_waiting=settings.max_waiting,
            max_queue_s=settings.max_queue_s,
            metrics=self.metrics,
        )
        self._batches = 0  # touched by the event loop only
        # One network call's worth for all of them together: single requests never wait behind more than that.
        self._batch_places = asyncio.Semaphore(self.max_batch)
        self._draining = False

    def start(self) -> None:
        """Start the worker; the service is ready afterwards."""
        self._batcher.start()

    def drain(self) -> None:
        """Take no new work; what was admitted is finished."""
        self._draining = True

    def stop(self) -> None:
        """Drain and end the threads."""
        self.drain()
        self._batcher.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """Whether new work is taken."""
        return self._batcher.alive and not self._draining

    @property
    def image_size(self) -> int:
        """Side of the model's picture in pixels."""
        return self._reconstructor.image_size

    @property
    def name(self) -> str:
        """The model's name."""
        return self._reconstructor.name

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, in hex."""
        return self._reconstructor.digest

    def describe(self) -> dict[str, Any]:
        """Facts about the loaded model, ready for JSON."""
        return self._reconstructor.describe()

    def check_room(self) -> None:
        """Refuse before the body is read.

        Raises:
            OverloadedError: When the queue is full.
            ShuttingDownError: After `drain`.
        """
        if self._draining:
            raise ShuttingDownError
        self._batcher.check_room()

    async def reconstruct(self, image: bytes, options: Options, render: Callable[[Reconstruction], T]) -> T:
        """Hide patches of a picture, predict them, and give the result a form.

        Args:
            image: A picture file.
            options: What to hide.
            render: Turns the reconstruction into what the caller sends; runs in the pool, for encoding
                costs time.

        Raises:
            UnmaskError: The picture or the options are refused, the queue is full, or the deadline has
                passed.
        """
        # Not asked whether we drain: whoever was let in by `check_room` before is still answered.
        with self._batcher.admit():
            try:
                # Leaving this block early cancels what has not started, in the pool and in the queue.
                async with asyncio.timeout(self._deadline_s):
                    decode, encode = self.metrics.decode, self.metrics.encode
                    job = await self._in_pool(decode, lambda: self._reconstructor.prepare(image, options))
                    prediction = await self._batcher.submit(job)
                    finish = self._reconstructor.finish
                    return await self._in_pool(encode, lambda: render(finish(job, prediction)))
            except TimeoutError:
                raise DeadlineExceededError(self._deadline_s) from None

    @contextmanager
    def admit_batch(self) -> Iterator[None]:
        """Hold a place for a request for many reconstructions, before its body is read.

        Raises:
            OverloadedError: When too many such requests are in work.
            ShuttingDownError: After `drain`.
        """
        if self._draining:
            raise ShuttingDownError
        if self._batches >= BATCHES:
            raise OverloadedError(BATCH_RETRY_S)
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1

    async def reconstruct_patiently(
        self, image: bytes, options: Options, render: Callable[[Reconstruction], T]
    ) -> T:
        """As `reconstruct`, for one of many: waits for its turn and for room instead of being refused at once.

        Raises:
            UnmaskError: As `reconstruct`; the queue stayed full for as long as a request may take; the service
                stops.
        """
        async with self._batch_places:
            clock = asyncio.get_running_loop().time
            until = clock() + self._deadline_s
            while True:
                try:
                    self.check_room()  # after `drain` what has not begun is given up
                    return await self.reconstruct(image, options, render)
                except OverloadedError:
                    if clock() > until:
                        raise
                await asyncio.sleep(PATIENCE_S)

    async def _in_pool(self, histogram: Histogram, work: Callable[[], T]) -> T:
        seconds = histogram.labels(surface.get())  # here, for threads do not see the request's context

        def timed() -> T:
            with seconds.time():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._pool, timed)


def warm_up(reconstructor: Reconstructor) -> None:
    """Run the whole path once, so that the first visitor does not pay for what is set up on first use."""
    from model import Options  # pulls torch, which must not delay the start

    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(picture, "PNG")
    reconstructor(picture.getvalue(), Options(seed=0)).sheet()
