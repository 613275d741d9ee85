"""One worker thread that owns the network, and a queue in front of it, which the line bounds.

There is no waiting window: the moment the worker is free it takes what waits, up to `max_batch`. A window
would add delay when idle and win nothing under load. Work that was cancelled (deadline passed, client gone)
is dropped when a batch is formed and costs no compute. Several networks share the one thread; a batch holds
jobs of one of them. A job of more passes than a batch runs one call at a time, and others in between.
"""

import asyncio
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from server.line import Line
from server.metrics import Metrics, surface
from server.problems import ShuttingDownError

# How far threads that compute stand back behind the one that answers: as `nice` counts.
STAND_BACK = 10

STOP_S = 2.0  # in which what runs may end when the service stops; nobody waits for it any more

J = TypeVar("J")  # job
P = TypeVar("P")  # prediction

# Gives None after each call of the network, then one prediction per job, in order. Only ever called by the worker
# thread.
Run = Callable[[list[J]], Iterator[Sequence[P] | None]]


def stand_back() -> None:
    """Let the event loop go first where both want the processor: refusals and health checks answer at once.

    For the calling thread and those that it starts, such as an engine's. Costs no throughput: what the loop leaves
    is the network's. A service that was started further back stays there, for only root may come forward. Only
    Linux knows a priority of threads.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(STAND_BACK, os.getpriority(os.PRIO_PROCESS, thread)))


@dataclass
class _Entry(Generic[J, P]):
    job: J
    run: "Run[J, P]"
    network: str
    weight: int
    future: "Future[P]" = field(default_factory=Future)
    surface: str = field(default_factory=surface.get)
    queued: float = field(default_factory=time.monotonic)
    begun: "Iterator[Sequence[P] | None] | None" = None  # of a long job, between its calls
    ran_s: float = 0.0  # in those before

    def is_wanted(self) -> bool:
        """Whether somebody still waits; from then on nobody can leave."""
        return self.future.running() or self.future.set_running_or_notify_cancel()


class Batcher(Generic[J, P]):
    """Runs jobs in one thread, several at a time, oldest first.

    Args:
        line: Is told how long a forward pass takes.
        max_batch: Most forward passes at a time; a job of more runs alone, and others between its calls.
        metrics: Where waits, batches and times are counted.
    """

    def __init__(self, line: Line, *, max_batch: int, metrics: Metrics) -> None:
        self._line = line
        self._metrics = metrics
        self._max_batch = max_batch
        self._queue: deque[_Entry[J, P]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="unmask-model", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    def stop(self) -> None:
        """Drop what waits, and let the worker end; what it runs may take longer than we wait."""
        with self._wake:
            self._stopping = True
            while self._queue:
                self._drop(self._queue.popleft())
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    @property
    def alive(self) -> bool:
        """Whether the worker takes work."""
        return self._thread.is_alive() and not self._stopping

    async def submit(self, job: J, run: Run[J, P], network: str, weight: int = 1) -> P:
        """Queue a job and wait for its prediction; cancelling the wait drops the job if it has not started.

        Args:
            job: What to do.
            run: Does it, for several jobs of this network at a time.
            network: Names it.
            weight: Forward passes the job takes.
        """
        entry: _Entry[J, P] = _Entry(job, run, network, weight)
        with self._wake:
            if self._stopping:
                raise ShuttingDownError
            self._queue.append(entry)
            self._wake.notify()
        return await asyncio.wrap_future(entry.future)

    def _work(self) -> None:
        stand_back()
        while (batch := self._take()) is not None:
            started = time.monotonic()
            for entry in batch:
                if entry.begun is None:
                    self._metrics.queue_wait.labels(entry.surface).observe(started - entry.queued)
            if batch:
                self._settle(batch)

    def _learn(self, batch: list[_Entry[J, P]], batch_s: float) -> None:
        self._metrics.batch_size.observe(len(batch))
        self._metrics.infer.observe(batch_s)
        self._line.learn(batch[0].network, batch_s / sum(entry.weight for entry in batch))

    def _take(self) -> list[_Entry[J, P]] | None:
        """Wait for work; the oldest entries somebody still waits for, or None at the end."""
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._stopping)
            if self._stopping:
                return None
            batch: list[_Entry[J, P]] = []
            left: deque[_Entry[J, P]] = deque()
            room = self._max_batch
            while self._queue and room > 0:
                entry = self._queue.popleft()
                if batch and (entry.network != batch[0].network or entry.weight > room):
                    left.append(entry)
                    continue
                wanted = not entry.future.cancelled() if self._is_long(entry) else entry.is_wanted()
                if wanted:
                    batch.append(entry)
                    room -= entry.weight
            self._queue.extendleft(reversed(left))
            return batch

    def _is_long(self, entry: _Entry[J, P]) -> bool:
        """Whether it takes turns with others; whoever waits for such a job may leave while it runs."""
        return entry.weight > self._max_batch

    def _settle(self, batch: list[_Entry[J, P]]) -> None:
        """Run a batch; when it fails, each job once alone, so that only the bad one fails."""
        first = batch[0]
        began = time.monotonic()
        try:
            predictions = self._advance(batch)
            first.ran_s += time.monotonic() - began
            if predictions is None:
                self._requeue(first)
                return
            if len(predictions) != len(batch):
                raise RuntimeError(f"{len(predictions)} predictions for {len(batch)} jobs")
            self._learn(batch, first.ran_s)  # before anybody hears of it and sends more
        except Exception as error:  # noqa: BLE001 - handed on to whoever waits
            if len(batch) == 1:
                if first.is_wanted():
                    first.future.set_exception(error)
                return
            first.begun, first.ran_s = None, 0.0
            for entry in batch:
                self._settle([entry])
        else:
            for entry, prediction in zip(batch, predictions, strict=True):
                if entry.is_wanted():
                    entry.future.set_result(prediction)

    def _advance(self, batch: list[_Entry[J, P]]) -> Sequence[P] | None:
        """The predictions; of a long job None until its last call."""
        first = batch[0]
        first.begun = first.begun or first.run([entry.job for entry in batch])
        for predictions in first.begun:
            if predictions is not None or self._is_long(first):
                return predictions
        raise RuntimeError(f"no predictions for {len(batch)} jobs")

    def _requeue(self, entry: _Entry[J, P]) -> None:
        """Whoever came meanwhile goes first."""
        with self._wake:
            if self._stopping:
                self._drop(entry)
            else:
                self._queue.append(entry)

    @staticmethod
    def _drop(entry: _Entry[J, P]) -> None:
        if entry.is_wanted():
            entry.future.set_exception(ShuttingDownError())
