import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from server.batcher import STAND_BACK, Batcher, stand_back
from server.line import Line
from server.metrics import Metrics
from server.problems import OverloadedError, ShuttingDownError


class Recorder:
    """A network that waits for its gate and remembers the batches it saw."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[str]] = []
        self.slow_s = 0.0

    def __call__(self, jobs: list[str]) -> Iterator[list[str] | None]:
        self.batches.append(jobs)
        self.entered.set()
        assert self.gate.wait(120)
        time.sleep(self.slow_s)
        if "bad" in jobs:
            raise ValueError("bad job")
        yield [job.upper() for job in jobs]


@contextmanager
def started(
    network: Recorder, line: Line | None = None, *, max_batch: int = 4
) -> Iterator[Batcher[str, str]]:
    batcher: Batcher[str, str] = Batcher(line or a_line(), max_batch=max_batch, metrics=Metrics())
    batcher.start()
    try:
        yield batcher
    finally:
        network.gate.set()
        batcher.stop()


def a_line(max_waiting: int = 8, max_queue_s: float = 2.0) -> Line:
    return Line(max_waiting=max_waiting, max_queue_s=max_queue_s, metrics=Metrics())


async def behind_a_busy_worker(batcher: Batcher[str, str], network: Recorder) -> asyncio.Task[str]:
    """Occupy the worker with one job until the gate opens."""
    network.gate.clear()
    network.entered.clear()
    first = asyncio.create_task(batcher.submit("first", network, "n"))
    await asyncio.to_thread(network.entered.wait, 10)
    return first


def test_what_waits_is_taken_at_once_and_in_order() -> None:
    network = Recorder()

    async def scene(batcher: Batcher[str, str]) -> list[str]:
        first = await behind_a_busy_worker(batcher, network)
        waiting = [asyncio.create_task(batcher.submit(job, network, "n")) for job in "abcdef"]
        await asyncio.sleep(0)
        network.gate.set()
        return await asyncio.gather(first, *waiting)

    with started(network) as batcher:
        assert asyncio.run(scene(batcher)) == ["FIRST", "A", "B", "C", "D", "E", "F"]
    assert network.batches == [["first"], ["a", "b", "c", "d"], ["e", "f"]]


def test_a_cancelled_job_costs_no_compute() -> None:
    network = Recorder()

    async def scene(batcher: Batcher[str, str]) -> None:
        first = await behind_a_busy_worker(batcher, network)
        gone = asyncio.create_task(batcher.submit("gone", network, "n"))
        stays = asyncio.create_task(batcher.submit("stays", network, "n"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        network.gate.set()
        assert [await first, await stays] == ["FIRST", "STAYS"]
        first = await behind_a_busy_worker(batcher, network)
        alone = asyncio.create_task(batcher.submit("gone", network, "n"))
        await asyncio.sleep(0)
        alone.cancel()
        await asyncio.sleep(0)
        network.gate.set()
        await first
        while batcher._queue:
            await asyncio.sleep(0.001)
        assert await asyncio.wait_for(batcher.submit("last", network, "n"), 10) == "LAST"

    with started(network) as batcher:
        asyncio.run(scene(batcher))
    assert network.batches == [["first"], ["stays"], ["first"], ["last"]]


def test_a_worker_without_work_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    takes, take = [], Batcher._take

    def counted(batcher: Batcher[str, str]) -> Any:
        takes.append(batcher)
        return take(batcher)

    monkeypatch.setattr(Batcher, "_take", counted)
    with started(Recorder()):
        time.sleep(0.05)
        assert len(takes) <= 1


def test_a_bad_job_fails_alone() -> None:
    network = Recorder()

    async def scene(batcher: Batcher[str, str]) -> list[Any]:
        first = await behind_a_busy_worker(batcher, network)
        rest = [asyncio.create_task(batcher.submit(job, network, "n")) for job in ("a", "bad", "b")]
        await asyncio.sleep(0)
        network.gate.set()
        await first
        return await asyncio.gather(*rest, return_exceptions=True)

    with started(network) as batcher:
        a, bad, b = asyncio.run(scene(batcher))
        assert [a, b] == ["A", "B"]
        assert isinstance(bad, ValueError)
        assert batcher.alive


@pytest.mark.parametrize(
    ("made", "told"), [([], "0 predictions for 1 jobs"), (None, "no predictions for 1 jobs")]
)
def test_predictions_that_do_not_fit_the_jobs_are_an_error(made: list[str] | None, told: str) -> None:
    batcher: Batcher[str, str] = Batcher(a_line(), max_batch=1, metrics=Metrics())
    batcher.start()
    with pytest.raises(RuntimeError, match=told):
        asyncio.run(batcher.submit("a", lambda _: iter([made]), "n"))
    batcher.stop()


def test_a_full_line_refuses_and_an_empty_one_never_does() -> None:
    line = a_line(max_waiting=2)
    with line.admit("n"), line.admit("n"):
        with pytest.raises(OverloadedError) as refused:
            line.check_room()
        with pytest.raises(OverloadedError), line.admit("n"):
            pass
    assert int(refused.value.headers["Retry-After"]) >= 1
    line.check_room()


def test_the_line_is_bounded_by_predicted_time() -> None:
    network, line = Recorder(), a_line(max_waiting=100, max_queue_s=0.5)
    network.slow_s = 0.2
    with started(network, line) as batcher:
        asyncio.run(batcher.submit("a", network, "n"))  # now the pace is known: 0.2 s a job
    with line.admit("n"), line.admit("n"), line.admit("n"), pytest.raises(OverloadedError):
        line.check_room()


def test_the_predicted_time_counts_each_network_at_its_own_pace_and_every_pass() -> None:
    quick, slow, line = Recorder(), Recorder(), a_line(max_waiting=100, max_queue_s=10.0)
    slow.slow_s = 1.0
    with started(quick, line) as batcher:
        asyncio.run(batcher.submit("a", quick, "quick"))
        asyncio.run(batcher.submit("a", slow, "slow", 4))  # a quarter of a second a pass
    with line.admit("quick") as one, line.admit("slow") as other:
        one.passes = other.passes = 4
        line.check_room()
        other.passes = 1000
        with pytest.raises(OverloadedError):
            line.check_room()


def test_the_predicted_time_counts_pictures_that_wait_to_be_decoded() -> None:
    line = a_line(max_waiting=100)
    line.learn_decoding(0.5)
    line.learn_decoding(0.0)  # it was seen before
    with ExitStack() as held:
        places = [held.enter_context(line.admit("n")) for _ in range(4)]
        line.check_room()
        held.enter_context(line.admit("n"))
        with pytest.raises(OverloadedError) as refused:
            line.check_room()
        assert refused.value.headers["Retry-After"] == "3"
        places[0].decoding = False
        line.check_room()


def test_nobody_is_refused_for_the_time_that_batches_take() -> None:
    line = a_line(max_waiting=2)
    line.learn("n", 1.0)
    with line.admit("n", "many", patient=True) as place:
        place.passes = 9
        line.check_room()
        with line.admit("n", "one"), pytest.raises(OverloadedError):
            line.check_room()  # full by count
        assert line.turn("many").wait_s == 9.0


def test_several_workers_shorten_the_wait_but_not_a_single_job() -> None:
    line = a_line(max_waiting=100, max_queue_s=2.0)
    line.learn("base", 0.5)
    line.workers = 4
    with line.admit("base") as place:
        place.decoding, place.passes = False, 8
        assert line.turn(None).wait_s == 1.0
        assert line.expected_s("base", 8) == 4.0


def test_large_jobs_leave_half_of_the_line_to_others() -> None:
    line = a_line(max_waiting=4)
    with ExitStack() as held:
        places = [held.enter_context(line.admit("base")) for _ in range(3)]
        line.be_patient(places[0])
        line.be_patient(places[1])
        line.learn("base", 0.5)
        with pytest.raises(OverloadedError) as refused:
            line.be_patient(places[2])
        assert refused.value.headers["Retry-After"] == "2"
        assert [place.patient for place in places] == [True, True, False]
    alone = a_line(max_waiting=1)
    with alone.admit("base") as place:
        alone.be_patient(place)  # a line of one place has one for it


def test_a_batch_is_of_one_network_and_counts_passes() -> None:
    one, other = Recorder(), Recorder()

    async def scene(batcher: Batcher[str, str]) -> list[str]:
        first = await behind_a_busy_worker(batcher, one)
        asked = [("a", one, 1), ("b", other, 1), ("c", one, 8), ("d", one, 1), ("e", other, 1)]
        rest = [
            asyncio.create_task(batcher.submit(job, network, "one" if network is one else "other", weight))
            for job, network, weight in asked
        ]
        await asyncio.sleep(0)
        one.gate.set()
        return await asyncio.gather(first, *rest)

    with started(one) as batcher:
        assert asyncio.run(scene(batcher)) == ["FIRST", "A", "B", "C", "D", "E"]
    assert one.batches == [["first"], ["a", "d"], ["c"]], (
        "c needs more than one call may hold, so it goes alone"
    )
    assert other.batches == [["b", "e"]]


class Patient(Recorder):
    """One that needs as many calls for a job as its name has letters; notes each."""

    def __call__(self, jobs: list[str]) -> Iterator[list[str] | None]:
        for name in jobs[0] if len(jobs) == 1 else ():
            self.batches.append([name])
            self.entered.set()
            assert self.gate.wait(120)
            yield None
        yield from super().__call__(jobs)


def test_a_long_job_lets_others_in_between_its_calls_and_is_given_up_when_nobody_waits() -> None:
    network = Patient()

    async def scene(batcher: Batcher[str, str]) -> list[str]:
        network.gate.clear()
        long = asyncio.create_task(batcher.submit("abc", network, "n", 9))
        left = asyncio.create_task(batcher.submit("xyz", network, "n", 9))
        await asyncio.to_thread(network.entered.wait, 10)
        short = asyncio.create_task(batcher.submit("s", network, "n"))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        network.gate.set()
        return list(await asyncio.gather(short, long))

    with started(network) as batcher:
        assert asyncio.run(scene(batcher)) == ["S", "ABC"]
    assert network.batches == [["a"], ["s"], ["s"], ["b"], ["c"], ["abc"]]


def test_a_long_job_that_fails_or_is_stopped_is_told() -> None:
    network = Patient()

    async def scene(batcher: Batcher[str, str]) -> None:
        with pytest.raises(ValueError, match="bad job"):
            await batcher.submit("bad", network, "n", 9)
        network.gate.clear()
        network.entered.clear()
        stopped = asyncio.create_task(batcher.submit("abc", network, "n", 9))
        await asyncio.to_thread(network.entered.wait, 10)
        stopping = asyncio.create_task(asyncio.to_thread(batcher.stop))
        while batcher.alive:
            await asyncio.sleep(0.001)
        network.gate.set()
        with pytest.raises(ShuttingDownError):
            await stopped
        await stopping

    with started(network) as batcher:
        asyncio.run(scene(batcher))


def test_stopping_refuses_what_waits_and_what_comes() -> None:
    network = Recorder()

    async def scene(batcher: Batcher[str, str]) -> None:
        first = await behind_a_busy_worker(batcher, network)
        waits, gone = (asyncio.create_task(batcher.submit(job, network, "n")) for job in ("waits", "gone"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        stopping = asyncio.create_task(asyncio.to_thread(batcher.stop))
        with pytest.raises(ShuttingDownError):
            await waits
        network.gate.set()
        await stopping
        assert first.done(), "the end waits for what runs"
        assert await first == "FIRST"
        with pytest.raises(ShuttingDownError):
            await batcher.submit("late", network, "n")

    with started(network) as batcher:
        asyncio.run(scene(batcher))


def test_the_end_does_not_wait_for_a_call_that_nobody_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.batcher.STOP_S", 0.01)
    network = Recorder()

    async def scene(batcher: Batcher[str, str]) -> None:
        first = await behind_a_busy_worker(batcher, network)
        await asyncio.wait_for(asyncio.to_thread(batcher.stop), 10)
        network.gate.set()
        assert await first == "FIRST"

    with started(network) as batcher:
        asyncio.run(scene(batcher))


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_who_computes_stands_back_behind_who_answers() -> None:
    def priority(_: list[str]) -> Iterator[list[str]]:
        yield [str(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))]

    with started(Recorder()) as batcher:
        computing = int(asyncio.run(batcher.submit("job", priority, "n")))
    assert computing == STAND_BACK
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) < STAND_BACK


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_a_service_started_further_back_does_not_come_forward() -> None:
    def priority() -> int:
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, STAND_BACK + 5)
        stand_back()
        return os.getpriority(os.PRIO_PROCESS, thread)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(priority).result() == STAND_BACK + 5
