"""Clients for a server on this machine: closed loop, open loop, and one that asks for its health.

Written on bare sockets, and run by uvloop: on two cores a full HTTP client would measure itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

TIMEOUT_S = 30.0
PATIENCE_S = 0.1


@dataclass
class Tally:
    """What came back: seconds and status of every request; status 0 is none at all."""

    answers: list[tuple[float, int]] = field(default_factory=list)
    seconds: float = 0.0
    without_retry: int = 0  # refusals that do not say when to come again

    def rate(self) -> float:
        """Good answers a second."""
        return len(self.times(200)) / self.seconds if self.seconds else 0.0

    def times(self, *statuses: int) -> list[float]:
        """Seconds of the answers with one of these statuses, ascending."""
        return sorted(took for took, status in self.answers if status in statuses)

    def count(self, wanted: Callable[[int], bool]) -> int:
        """How many answers had such a status."""
        return sum(wanted(status) for _, status in self.answers)


def quantile(times: list[float], share: float) -> float:
    """Of ascending times; 0 of none."""
    return times[min(int(len(times) * share), len(times) - 1)] if times else 0.0


@dataclass(frozen=True)
class Request:
    """One request, ready to be sent.

    Attributes:
        port: On 127.0.0.1.
        head: Request line and headers, with the empty line.
        body: The rest.
    """

    port: int
    head: bytes
    body: bytes = b""


def request(
    port: int, path: str, body: bytes = b"", kind: str = "", accept: str = "application/json"
) -> Request:
    """A GET, or with a body a POST."""
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Accept: {accept}"]
    lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"] if body else []
    return Request(port, "\r\n".join([*lines, "Connection: close", "", ""]).encode(), body)


async def send(wanted: Request, tally: Tally) -> int:
    """Send it, wait for the whole answer, note it; returns the status."""
    began = time.perf_counter()
    status = 0
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", wanted.port)
            try:
                writer.write(wanted.head + wanted.body)
                answer = await reader.read()
            finally:
                writer.close()
        status = int(answer[9:12]) if answer.startswith(b"HTTP/1.") else 0
        head = answer.partition(b"\r\n\r\n")[0].lower()
        tally.without_retry += status in (429, 503) and b"\r\nretry-after:" not in head
    except (OSError, TimeoutError, ValueError):
        pass  # none at all
    tally.answers.append((time.perf_counter() - began, status))
    return status


async def closed_loop(make: Callable[[int], Request], clients: int, seconds: float) -> Tally:
    """So many clients that each wait for an answer before they ask again."""
    tally, until = Tally(), time.perf_counter() + seconds
    number = iter(range(1_000_000))

    async def client() -> None:
        while time.perf_counter() < until:
            if await send(make(next(number)), tally) in (429, 503):
                await asyncio.sleep(PATIENCE_S)  # nobody asks again at once

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    tally.seconds = time.perf_counter() - began
    return tally


async def open_loop(make: Callable[[int], Request], rate: float, seconds: float) -> Tally:
    """So many requests a second, whatever becomes of them."""
    tally, began, tasks = Tally(), time.perf_counter(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(send(make(number), tally)))
    await asyncio.gather(*tasks)
    tally.seconds = time.perf_counter() - began
    return tally


async def beside(port: int, path: str, work: asyncio.Task[Tally], every_s: float = 0.1) -> Tally:
    """Ask for a path ten times a second for as long as something else goes on."""
    tally = Tally()
    while not work.done():
        await send(request(port, path), tally)
        await asyncio.sleep(every_s)
    return tally
