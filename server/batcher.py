"""One worker thread that owns the network, behind a bounded queue.

There is no waiting window: the moment the worker is free it takes what waits, up to `max_batch`. A window
would add delay when idle and win nothing under load. Work that was cancelled (deadline passed, client gone)
is dropped when a batch is formed and costs no compute. Several networks share the one thread; a batch holds
jobs of one of them.
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

# Gives one prediction per job, in order. Only ever called by the worker thread.
Run = Callable[[list[J]], Sequence[P]]

# Weight of the newest batch in the running mean of seconds per job: follows a change within some ten batches.
NEWEST = 0.2


@dataclass
class _Entry(Generic[J, P]):
    job: J
    run: "Run[J, P]"
    network: str
    weight: int
    future: "Future[P]" = field(default_factory=Future)
    surface: str = field(default_factory=surface.get)
    queued: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class Place:
    """A request's place in the queue.

    Attributes:
        passes: Forward passes it takes.
    """

    passes: int = 1


class Batcher(Generic[J, P]):
    """Runs jobs in one thread, several at a time, oldest first.

    Args:
        max_batch: Most forward passes of one call; a job that needs more runs alone.
        max_waiting: Most requests admitted at a time.
        max_queue_s: Seconds of predicted wait from which no more requests are admitted.
        metrics: Where waits, batches and times are counted.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        max_waiting: int,
        max_queue_s: float,
        metrics: Metrics,
    ) -> None:
        self._metrics = metrics
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._max_queue_s = max_queue_s
        self._places: dict[str, list[Place]] = {}  # by network; touched by the event loop only
        self._pass_s: dict[str, float] = {}  # running mean of one, by network; replaced by the worker
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
        wait_s = sum(
            self.expected_s(network, sum(place.passes for place in places))
            for network, places in self._places.items()
        )
        if self._admitted and (self._admitted >= self._max_waiting or wait_s > self._max_queue_s):
            raise OverloadedError(retry_after_s=max(1, math.ceil(wait_s)))

    @contextmanager
    def admit(self, network: str) -> Iterator["Place"]:
        """Hold a place in the queue for as long as the request is in work.

        Args:
            network: Which one it will need.

        Yields:
            The place, which counts as one forward pass until more is known.

        Raises:
            OverloadedError: As `check_room`.
        """
        self.check_room()
        place = Place()
        self._places.setdefault(network, []).append(place)
        self._tell()
        try:
            yield place
        finally:
            self._places[network].remove(place)
            self._tell()

    def expected_s(self, network: str, passes: int) -> float:
        """How long so many forward passes will run, 0 where it is not known yet."""
        return passes * self._pass_s.get(network, 0.0)

    @property
    def _admitted(self) -> int:
        return sum(map(len, self._places.values()))

    def _tell(self) -> None:
        self._metrics.admitted.set(self._admitted)

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
        while (batch := self._take()) is not None:
            started = time.monotonic()
            for entry in batch:
                self._metrics.queue_wait.labels(entry.surface).observe(started - entry.queued)
            self._settle(batch)

    def _learn(self, batch: list[_Entry[J, P]], batch_s: float) -> None:
        self._metrics.batch_size.observe(len(batch))
        self._metrics.infer.observe(batch_s)
        network = batch[0].network
        pass_s = batch_s / sum(entry.weight for entry in batch)
        before = self._pass_s.get(network, pass_s)
        # A new dict instead of a change: the event loop may be reading the old one.
        self._pass_s = {**self._pass_s, network: (1 - NEWEST) * before + NEWEST * pass_s}

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
                elif entry.future.set_running_or_notify_cancel():
                    batch.append(entry)
                    room -= entry.weight
            self._queue.extendleft(reversed(left))
            return batch

    def _settle(self, batch: list[_Entry[J, P]]) -> None:
        """Run a batch; when it fails, each job once alone, so that only the bad one fails."""
        if not batch:
            return
        began = time.monotonic()
        try:
            predictions = batch[0].run([entry.job for entry in batch])
            self._learn(batch, time.monotonic() - began)  # before anybody hears of it and sends more
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
