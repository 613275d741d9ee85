"""Is every answer the one to its own request? Many at a time of all kinds, each held against the same asked alone.

    .venv/bin/python -m tests.bench.mixups                    # 20,000, some twelve minutes on a quiet machine
    .venv/bin/python -m tests.bench.mixups --requests 500

First each of the different requests is sent alone, twice; then they are drawn at random and sent by many clients.
Answers are compared by SHA-256 of picture or facts (all but request id and times). The exit code is 1 where one
differs, or was refused for another reason than a full queue.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.pictures import encoded, photo

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = 32
DIFFERENT = 400
ANSWERS = ("application/json", "image/png", "image/webp")
PICTURES = [
    encoded(photo(width, height, seed), kind)
    for seed, (width, height, kind) in enumerate(
        [(96, 80, "PNG"), (300, 200, "JPEG"), (200, 301, "PNG"), (640, 480, "JPEG"), (96, 80, "WEBP")]
    )
]


@dataclass
class Tally:
    """What came back.

    Attributes:
        wrong: Numbers of requests whose answer was another one's, or none.
        statuses: How often each was seen, refusals of a full queue included.
    """

    wrong: list[int] = field(default_factory=list)
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)


def asked(number: int, models: Sequence[str]) -> dict[str, Any]:
    """One of the requests, made out of its number."""
    chance = random.Random(number)
    image, model = chance.choice(PICTURES), chance.choice(models)
    if chance.random() < 0.1:
        kind = chance.choice(["cls", "patch"])
        return {"url": "/v1/embed", "files": {"image": image}, "data": {"kind": kind, "model": model}}
    fields = {
        "model": model,
        "seed": str(chance.getrandbits(32)),
        "ratio": chance.choice(["0.5", "0.75", "0.9"]),
        "strategy": chance.choice(["random", "block", "grid"]),
        **chance.choice([{}, {}, {"fit": "whole"}, {"cover": "complete"}, {"ssim": "false"}]),
    }
    headers = {"accept": chance.choice(ANSWERS)}
    if chance.random() < 0.3:
        body = json.dumps(fields | {"image": base64.b64encode(image).decode()})
        headers["content-type"] = "application/json"
        return {"url": "/v1/reconstruct", "content": body, "headers": headers}
    if chance.random() < 0.5:
        headers["content-type"] = "image/x"
        return {"url": "/v1/reconstruct", "content": image, "params": fields, "headers": headers}
    return {"url": "/v1/reconstruct", "files": {"image": image}, "data": fields, "headers": headers}


async def ask(http: httpx.AsyncClient, request: dict[str, Any], tally: Tally) -> str:
    """The essence of the answer: all that is not about when it was given; empty where it is not this one's."""
    identity = uuid.uuid4().hex
    request = request | {"headers": request.get("headers", {}) | {"x-request-id": identity}}
    while (answer := await http.post(**request)).status_code == 503:
        tally.statuses[503] += 1
        await asyncio.sleep(1)
    tally.statuses[answer.status_code] += 1
    if answer.status_code != 200 or answer.headers["x-request-id"] != identity:
        return ""
    content = answer.content
    if answer.headers["content-type"] == "application/json":
        facts = json.loads(content)
        if facts.pop("request_id") != identity:
            return ""
        facts.pop("timings_ms", None)
        content = json.dumps(facts).encode()
    return hashlib.sha256(content).hexdigest()


async def ask_alone(address: str, numbers: Sequence[int], models: Sequence[str]) -> dict[int, str]:
    """What each request gets while nobody else asks."""
    async with httpx.AsyncClient(base_url=address, timeout=300) as http:
        found = {number: await ask(http, asked(number, models), Tally()) for number in numbers}
    assert all(found.values()), f"not even alone: {[number for number, one in found.items() if not one][:9]}"
    return found


async def ask_together(
    address: str,
    wanted: dict[int, str],
    models: Sequence[str],
    requests: int,
    tally: Tally,
    clients: int = CLIENTS,
) -> None:
    """Send so many of the requests, drawn at random, and hold each answer against what it got alone."""
    chance = random.Random(0)
    todo = iter([chance.choice(list(wanted)) for _ in range(requests)])

    async def client() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=300) as http:
            for number in todo:
                if await ask(http, asked(number, models), tally) != wanted[number]:
                    tally.wrong.append(number)

    await asyncio.gather(*(client() for _ in range(clients)))


def write_second_model(path: Path) -> None:
    """An untrained network of the smallest size."""
    import torch

    from model.checkpoints import store
    from model.config import SIZES
    from model.loading import prove
    from model.network import MAE

    torch.manual_seed(1)
    store.write(path, MAE(SIZES["debug"]), name=path.stem, card={"licence": "none"})
    prove(path)


async def compare(address: str, requests: int) -> Tally:
    """Both rounds against the service of two models."""
    models = ("mini-random", "second")
    wanted = await ask_alone(address, range(DIFFERENT), models)
    again = await ask_alone(address, range(DIFFERENT), models)
    assert wanted == again, "not even alone the same twice"
    began, tally = time.monotonic(), Tally()
    await ask_together(address, wanted, models, requests, tally)
    print(
        f"{requests} requests of {DIFFERENT} kinds by {CLIENTS} clients in {time.monotonic() - began:.0f} s"
    )
    return tally


def main() -> None:
    """Start a service of two models, ask, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=20_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_second_model(second := Path(folder, "second.safetensors"))
        chosen = {"UNMASK_PORT": "0", "UNMASK_PAGE": "false", "UNMASK_LOG_LEVEL": "error"}
        chosen |= {"UNMASK_MODELS": f"mini-random,{second}", "UNMASK_DEADLINE_S": "60"}
        with subprocess.Popen(
            [sys.executable, "-m", "server"],
            cwd=ROOT,
            env={**os.environ, **chosen},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                address = process.stdout.readline().split()[-1]
                tally = asyncio.run(compare(address, given.requests))
            finally:
                process.terminate()
    print(f"statuses {dict(tally.statuses)}; wrong {len(tally.wrong)}: {sorted(set(tally.wrong))[:20]}")
    raise SystemExit(bool(tally.wrong))


if __name__ == "__main__":
    main()
