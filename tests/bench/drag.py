"""What a step of a live drag costs: the same picture, one patch more or less, one panel, as the page asks for it.

    .venv/bin/python -m tests.bench.drag [--steps 150] [--weights FILE]

All figures but the answers' times are the service's own counters: the whole process's processor time, and the
seconds of each part of a request; the network's are of all its threads at once.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path

import httpx

from tests.bench.load import quantile
from tests.bench.peers import ours, started
from tests.pictures import encoded, photo

PARTS = ("decode", "queue_wait", "infer", "encode", "request")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--weights", type=Path, help="weight file (default: the shipped one)")
    given = parser.parse_args()
    picture = encoded(photo(448, 448), "JPEG")
    with (
        tempfile.TemporaryDirectory() as folder,
        started(ours(given.weights), Path(folder) / "log") as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        _drag(client, picture, 20)  # caches are full, threads are there
        before = _sums(client)
        times = _drag(client, picture, given.steps)
        after = _sums(client)
    step_ms = {part: 1000 * (after[part] - before[part]) / given.steps for part in after}
    print(f"{given.steps} steps, processor time {step_ms.pop('cpu'):.1f} ms a step")
    print(
        f"answered after {1000 * quantile(times, 0.5):.1f} ms (p50), {1000 * quantile(times, 0.95):.1f} ms (p95)"
    )
    print(", ".join(f"{part} {took:.1f} ms" for part, took in step_ms.items()))


def _drag(client: httpx.Client, picture: bytes, steps: int) -> list[float]:
    """Seconds of each step, ascending; three quarters hidden, the hidden ones move on by one patch a step."""
    times = []
    for step in range(steps):
        hidden = sorted((step + place) % 196 for place in range(147))
        fields = {
            "panels": "reconstruction", "ssim": "false", "strategy": "indices", "indices": json.dumps(hidden),
            "picture_format": "webp",
        }  # fmt: skip
        began = time.perf_counter()
        client.post("/v1/reconstruct", files={"image": ("picture", picture)}, data=fields).raise_for_status()
        times.append(time.perf_counter() - began)
    return sorted(times)


def _sums(client: httpx.Client) -> dict[str, float]:
    """Seconds so far: of the processor, and of each part over all surfaces."""
    text = client.get("/metrics").text
    sums = {"cpu": r"process_cpu_seconds_total"} | {part: rf"unmask_{part}_seconds_sum" for part in PARTS}
    return {
        part: sum(float(of) for of in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))
        for part, name in sums.items()
    }


if __name__ == "__main__":
    main()
