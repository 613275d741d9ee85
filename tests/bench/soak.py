"""Ten thousand requests of every kind against one service: does its memory grow, does its folder, does it fail?

    .venv/bin/python -m tests.bench.soak --out soak.json            # 10,000, some ten minutes on a quiet machine
    .venv/bin/python -m tests.bench.soak --requests 500 --no-page

Memory is the process's resident size; its slope is fitted over the second half, when caches are full. The exit
code is 1 where a bound is broken: 1 MB per 1,000 requests, 64 MB in the private folder, any 5xx but 503.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = 4
EVERY = 100  # requests between two looks at memory
MOST_SLOPE_MB = 1.0  # per 1,000 requests
MOST_FOLDER_BYTES = 64 * 1024 * 1024


def picture(chance: random.Random) -> bytes:
    """A photo-like file of a random size and format."""
    random_ = np.random.default_rng(chance.getrandbits(32))
    small = random_.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    size = (chance.randrange(64, 1600), chance.randrange(64, 1600))
    size = (max(size[0], size[1] // 10), max(size[1], size[0] // 10))
    file = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(
        file, chance.choice(["PNG", "JPEG", "WEBP"])
    )
    return file.getvalue()


def request(chance: random.Random, pictures: list[bytes]) -> dict[str, Any]:
    """One of the requests that people, programs and strangers send."""
    image = chance.choice(pictures)
    kind = chance.randrange(20)
    fields: dict[str, str] = {
        "ratio": chance.choice(["0.5", "0.75", "0.9"]),
        "seed": str(chance.getrandbits(32)),
    }
    if kind == 0:
        return {
            "url": "/v1/embed",
            "files": {"image": image},
            "data": {"kind": chance.choice(["cls", "patch"])},
        }
    if kind == 1:
        many = [("images", ("a", chance.choice(pictures))) for _ in range(2)]
        return {"url": "/v1/reconstruct/batch", "files": many, "data": {"ratios": "0.5,0.75"}}
    if kind == 2:
        return {"url": "/reconstruct", "files": {"image": image[: len(image) // 2]}}
    if kind == 3:
        return {"url": "/reconstruct", "files": {"image": image}, "data": {"ratio": "much"}}
    if kind == 4:
        fields |= {"fit": "whole", "cover": "ensemble", "samples": "2", "panels": "uncertainty"}
    if kind == 5:
        return {"url": "/v1/settings", "files": {"image": image}}
    accept = chance.choice(["application/json", "image/png", "image/webp", "image/jpeg"])
    return {"url": "/reconstruct", "files": {"image": image}, "data": fields, "headers": {"accept": accept}}


def resident_mb(pid: int) -> float:
    """Memory of the process now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def folder_bytes(folder: Path) -> int:
    """What lies below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


async def soak(address: str, pid: int, requests: int, folder: Path) -> dict[str, Any]:
    """Send them all; what was seen on the way."""
    chance = random.Random(0)
    pictures = [picture(chance) for _ in range(64)]
    statuses: collections.Counter[int] = collections.Counter()
    samples: list[tuple[int, float]] = []
    largest = 0
    todo = iter(range(1, requests + 1))

    async def client() -> None:
        nonlocal largest
        async with httpx.AsyncClient(base_url=address, timeout=120) as http:
            for number in todo:
                asked = request(chance, pictures)
                answer = await http.post(asked.pop("url"), **asked)
                statuses[answer.status_code] += 1
                if number % EVERY == 0:
                    samples.append((number, resident_mb(pid)))
                    largest = max(largest, folder_bytes(folder))
                    print(f"{number:6d}  {samples[-1][1]:8.1f} MB  {dict(statuses)}", flush=True)
                if number % (10 * EVERY) == 0:
                    await http.get("/")

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    late = [(number, memory) for number, memory in samples if number > requests / 2]
    table = np.array(late)
    slope = float(np.polyfit(table[:, 0], table[:, 1], 1)[0]) * 1000 if len(late) > 1 else 0.0
    return {
        "requests": requests,
        "seconds": round(time.monotonic() - began, 1),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "memory_mb": samples,
        "slope_mb_per_1000": round(slope, 3),
        "largest_folder_bytes": largest,
    }


def broken_bounds(result: dict[str, Any]) -> list[str]:
    """What must not be so."""
    broken = []
    if result["slope_mb_per_1000"] >= MOST_SLOPE_MB:
        broken.append(f"memory grows by {result['slope_mb_per_1000']} MB per 1,000 requests")
    if result["largest_folder_bytes"] > MOST_FOLDER_BYTES:
        broken.append(f"the private folder held {result['largest_folder_bytes']} bytes")
    if failed := [status for status in result["statuses"] if status >= "500" and status != "503"]:
        broken.append(f"answers {', '.join(failed)}")
    return broken


def main() -> None:
    """Start a service, soak it, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--no-page", action="store_true", help="the API alone")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "UNMASK_PORT": "0", "TMPDIR": folder, "UNMASK_LOG_LEVEL": "warning"}
        environment["UNMASK_PAGE"] = str(not asked.no_page)
        command = [sys.executable, "-m", "server"]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                address = process.stdout.readline().strip().rpartition(" ")[2]
                result = asyncio.run(soak(address, process.pid, asked.requests, Path(folder)))
            finally:
                process.terminate()
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    broken = broken_bounds(result)
    print(json.dumps({key: value for key, value in result.items() if key != "memory_mb"}, indent=1))
    print("\n".join(broken) or "All bounds are kept.")
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
