"""One worker thread that owns the network, behind a bounded queue.

There is no waiting window: the moment the worker is free it takes what waits, up to `max_batch`. A window
would add delay when idle and win nothing under load. Work that was cancelled (deadline passed, client gone)
is dropped when a batch is formed and costs no compute.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from server.metrics import Metrics, surface
from server.problems import OverloadedError, ShuttingDownError

J = TypeVar("J")  # job
P = TypeVar("P")  # prediction

# Weight of the newest batch in the running mean of seconds per job: follows a change within some ten batches.
NEWEST = 0.2


@dataclass
class _Entry(Generic[J, P]):
    job: J
    future: "Future[P]" = field(default_factory=Future)
    surface: str = field(default_factory=surface.get)
    queued: float = field(default_factory=time.monotonic)


class Batcher(Generic[J, P]):
    """Runs jobs in one thread, several at a time, oldest first.

    Args:
        run: Gives one prediction per job, in order. Only ever called by the worker thread.
        max_batch: Most jobs of one call.
        max_waiting: Most requests admitted at a time.
        max_queue_s: Seconds of predicted wait from which no more requests are admitted.
        metrics: Where waits, batches and times are counted.
    """

    def __init__(
        self,
        run: Callable[[list[J]], Sequence[P]],
        *,
        max_batch: int,
        max_waiting: int,
        max_queue_s: float,
        metrics: Metrics,
    ) -> None:
        self._metrics = metrics
        self._run_jobs = run
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._max_queue_s = max_queue_s
        self._admitted = 0  # touched by the event loop only
        self._job_s = 0.0
        self._queue: deque[_Entry[J, P]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="unmask-model", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    def stop(self) -> None:
        """Let the worker finish what it runs, drop what waits, and end."""
        with self._wake:
            self._stopping = True
            while self._queue:
                entry = self._queue.popleft()
                if entry.future.set_running_or_notify_cancel():
                    entry.future.set_exception(ShuttingDownError())
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the worker takes work."""
        return self._thread.is_alive() and not self._stopping

    def check_room(self) -> None:
        """Refuse early, before a body is read.

        Raises:
            OverloadedError: When the queue is full by count or by predicted time; an idle worker never
                refuses.
        """
        wait_s = self._admitted * self._job_s
        if self._admitted and (self._admitted >= self._max_waiting or wait_s > self._max_queue_s):
            raise OverloadedError(retry_after_s=max(1, math.ceil(wait_s)))

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place in the queue for as long as the request is in work.

        Raises:
            OverloadedError: As `check_room`.
        """
        self.check_room()
        self._admitted += 1
        self._metrics.admitted.set(self._admitted)
        try:
            yield
        finally:
            self._admitted -= 1
            self._metrics.admitted.set(self._admitted)

    async def submit(self, job: J) -> P:
        """Queue a job and wait for its prediction; cancelling the wait drops the job if it has not started."""
        entry: _Entry[J, P] = _Entry(job)
        with self._wake:
            if self._stopping:
                raise ShuttingDownError
            self._queue.append(entry)
            self._wake.notify()
        return await asyncio.wrap_future(entry.future)

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            started = time.monotonic()
            for entry in batch:
                self._metrics.queue_wait.labels(entry.surface).observe(started - entry.queued)
            self._settle(batch)
            if batch:
                batch_s = time.monotonic() - started
                self._metrics.batch_size.observe(len(batch))
                self._metrics.infer.observe(batch_s)
                job_s = batch_s / len(batch)
                self._job_s = job_s if not self._job_s else (1 - NEWEST) * self._job_s + NEWEST * job_s

    def _take(self) -> list[_Entry[J, P]] | None:
        """Wait for work; the oldest entries somebody still waits for, or None at the end."""
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._stopping)
            if self._stopping:
                return None
            batch: list[_Entry[J, P]] = []
            while self._queue and len(batch) < self._max_batch:
                entry = self._queue.popleft()
                if entry.future.set_running_or_notify_cancel():
                    batch.append(entry)
            return batch

    def _settle(self, batch: list[_Entry[J, P]]) -> None:
        """Run a batch; when it fails, each job once alone, so that only the bad one fails."""
        if not batch:
            return
        try:
            predictions = self._run_jobs([entry.job for entry in batch])
            if len(predictions) != len(batch):
                raise RuntimeError(f"{len(predictions)} predictions for {len(batch)} jobs")
        except Exception as error:  # noqa: BLE001 - handed on to whoever waits
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for entry in batch:
                self._settle([entry])
        else:
            for entry, prediction in zip(batch, predictions, strict=True):
                entry.future.set_result(prediction)
