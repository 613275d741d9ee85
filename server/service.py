"""What the API and the page call: a picture and options in, a reconstruction out.

Decoding and encoding run in a small thread pool, the network in the batcher's one worker; nothing here
blocks the event loop and nothing here sees a tensor.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from server.batcher import Batcher
from server.problems import DeadlineExceededError, ShuttingDownError

if TYPE_CHECKING:
    from model import Job, Options, Prediction, Reconstruction, Reconstructor
    from server.settings import Settings

T = TypeVar("T")

CPU_BATCH = 4  # more gains little throughput on a CPU and makes everybody wait for the whole batch
GPU_BATCH = 32


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
        self._batcher: Batcher[Job, Prediction] = Batcher(
            reconstructor.run,
            max_batch=settings.max_batch or (CPU_BATCH if reconstructor.device == "cpu" else GPU_BATCH),
            max_waiting=settings.max_waiting,
            max_queue_s=settings.max_queue_s,
        )
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
                    job = await self._in_pool(lambda: self._reconstructor.prepare(image, options))
                    prediction = await self._batcher.submit(job)
                    return await self._in_pool(lambda: render(self._reconstructor.finish(job, prediction)))
            except TimeoutError:
                raise DeadlineExceededError(self._deadline_s) from None

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def warm_up(reconstructor: Reconstructor) -> None:
    """Run the whole path once, so that the first visitor does not pay for what is set up on first use."""
    from model import Options  # pulls torch, which must not delay the start

    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(picture, "PNG")
    reconstructor(picture.getvalue(), Options(seed=0)).sheet()
