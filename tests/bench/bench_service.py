"""Servers under load, one after the other in one run: part of ``make bench``.

Ideal is what one process computes back to back, pictures decoded and answers encoded, measured right before each
server, for the machine's pace changes. Overload offers sixteen times what the closed loop reached.

    .venv/bin/python -m tests.bench.bench_service [--write] [--peers] [--tiny] [--weights FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import uvloop

from model import Options, Reconstructor, load
from tests.bench.load import Request, Tally, beside, closed_loop, open_loop, quantile
from tests.bench.peers import Peer, others, ours, started
from tests.bench.report import publish, table
from tests.pictures import encoded, photo

CLIENTS = 16
OVERLOAD = 16
CLOSED = ("server", "ideal /s", "reached /s", "of ideal", "p50 / p99 s", "not 200")
FLOODED = (
    "server", "offered /s", "good /s (of unloaded)", "good p50 / p99 s", "refused 429, 503", "refusal p50 / p99 ms",
    "without Retry-After", "other 5xx", "unanswered", "health p99 ms",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument(
        "--peers", action="store_true", help="install LitServe, BentoML and Ray Serve and measure them too"
    )
    parser.add_argument("--tiny", action="store_true", help="does it run at all")
    parser.add_argument(
        "--weights", type=Path, help="weight file behind all servers (default: the shipped one)"
    )
    given = parser.parse_args()
    seconds = 1.0 if given.tiny else 15.0
    picture = encoded(photo(448, 448), "JPEG")
    model = load(given.weights, "cpu")
    closed, flooded = [], []
    with tempfile.TemporaryDirectory() as folder:
        servers = [ours(given.weights)]
        if given.peers:
            servers += others(Path(folder) / "peers", given.weights)
        for peer in servers:
            ideal = _ideal(model, picture, seconds / 2)
            with started(peer, Path(folder) / f"{peer.name}.log") as port:
                steady, flood, health = uvloop.run(_load(peer, port, picture, seconds))
            closed.append(_closed_row(peer.name, ideal, steady))
            flooded.append(_flooded_row(peer.name, steady, flood, health, seconds))
    text = (
        f"{model.name}, 448 px JPEG in, one panel as PNG in JSON out; {CLIENTS} clients in a closed loop.\n\n"
    )
    text += table(CLOSED, closed)
    text += f"\n\nOpen loop, {OVERLOAD} times what the closed loop reached; the same server, just after.\n\n"
    publish("service", text + table(FLOODED, flooded), write=given.write)


def _ideal(model: Reconstructor, picture: bytes, seconds: float) -> float:
    """Answers a second of one process without a server; every picture decoded anew, as if it were another one."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        options = Options(seed=count, ssim=False)
        model(picture + bytes([count % 256]) * (1 + count // 256), options).to_dict(("reconstruction",))
        count += 1
    return count / (time.perf_counter() - began)


async def _load(peer: Peer, port: int, picture: bytes, seconds: float) -> tuple[Tally, Tally, Tally]:
    def make(number: int) -> Request:
        # Bytes behind the end of a JPEG are ignored, and make it another file: nothing is answered from a cache.
        return peer.make(port, picture + number.to_bytes(4, "big"), number)

    await closed_loop(make, 2, min(seconds, 2.0))  # whoever sets up on first use has done so
    steady = await closed_loop(make, CLIENTS, seconds)
    flooding = asyncio.create_task(open_loop(make, OVERLOAD * max(steady.rate(), 1.0), seconds))
    health = await beside(port, peer.health, flooding)
    return steady, await flooding, health


def _closed_row(name: str, ideal: float, steady: Tally) -> list[str]:
    times = steady.times(200)
    return [
        name, f"{ideal:.1f}", f"{steady.rate():.1f}", f"{steady.rate() / ideal:.2f}",
        f"{quantile(times, 0.5):.2f} / {quantile(times, 0.99):.2f}", str(steady.count(lambda status: status != 200)),
    ]  # fmt: skip


def _flooded_row(name: str, steady: Tally, flood: Tally, health: Tally, seconds: float) -> list[str]:
    good, refused = flood.times(200), flood.times(429, 503)
    return [
        name, f"{len(flood.answers) / seconds:.0f}", f"{flood.rate():.1f} ({flood.rate() / (steady.rate() or 1):.2f})",
        f"{quantile(good, 0.5):.2f} / {quantile(good, 0.99):.2f}", str(len(refused)),
        f"{1000 * quantile(refused, 0.5):.0f} / {1000 * quantile(refused, 0.99):.0f}", str(flood.without_retry),
        str(flood.count(lambda status: status >= 500 and status != 503)), str(flood.count(lambda status: status == 0)),
        f"{1000 * quantile(health.times(200), 0.99):.0f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
