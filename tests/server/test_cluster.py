"""The service on Ray Serve, really started: answers are those of one process, and a dying replica loses none."""

import asyncio
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.loading import prove
from tests.server.conftest import photo

ROOT = Path(__file__).resolve().parents[2]
REQUESTS = 60
AT_A_TIME = 12

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: uv pip install '.[cluster]'"
    ),
]


def settings(weights: Path, **more: str) -> dict[str, str]:
    chosen = {
        "UNMASK_MODELS": str(weights),
        "UNMASK_PORT": "0",
        "UNMASK_PAGE": "false",
        "UNMASK_THREADS": "1",
    }
    # A busy machine is slow, and nobody is refused here: lost is what is not answered with a picture.
    chosen |= {"UNMASK_DEADLINE_S": "300", "UNMASK_MAX_QUEUE_S": "300"}
    return {**os.environ, **chosen, **more}


def started(command: list[str], environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """Address and process of a service that is ready; it is asked to stop in the end."""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        told: list[str] = []
        for line in process.stdout:
            told.append(line)
            if line.startswith("Unmask is ready at "):
                break
        else:
            pytest.fail("".join(told)[-5000:])
        yield told[-1].split()[-1], process.pid
        process.terminate()
        process.communicate(timeout=120)
        assert process.returncode == 0


@pytest.fixture(scope="module")
def weights(debug_weights: Path) -> Path:
    prove(debug_weights)  # so that no replica needs torch
    return debug_weights


@pytest.fixture(scope="module")
def alone(weights: Path) -> Iterator[str]:
    for address, _ in started([sys.executable, "-m", "server"], settings(weights)):
        yield address


@pytest.fixture(scope="module")
def cluster(weights: Path) -> Iterator[tuple[str, int]]:
    yield from started(
        [sys.executable, "-m", "server", "cluster"], settings(weights, UNMASK_MIN_REPLICAS="2")
    )


def asked(number: int) -> dict[str, Any]:
    """One of the requests, made out of its number."""
    image = photo(number % 5, (96 + 16 * (number % 3), 80))
    if number % 10 == 9:
        return {"url": "/v1/embed", "files": {"image": image}, "data": {"kind": "patch"}}
    data = {
        "seed": str(number),
        "ratio": ("0.5", "0.75", "0.9")[number % 3],
        "strategy": ("random", "block", "grid")[number % 4 % 3],
    }
    accept = "image/png" if number % 2 else "application/json"
    return {"url": "/v1/reconstruct", "files": {"image": image}, "data": data, "headers": {"accept": accept}}


def essence(answer: httpx.Response) -> str:
    """All of an answer that is not about when it was given."""
    assert answer.status_code == 200, answer.text[:500]
    content = answer.content
    if answer.headers["content-type"] == "application/json":
        facts = json.loads(content)
        del facts["request_id"]
        facts.pop("timings_ms", None)
        content = json.dumps(facts).encode()
    return hashlib.sha256(content).hexdigest()


async def ask_all(address: str, numbers: range, midway: Any = None) -> list[str]:
    places = asyncio.Semaphore(AT_A_TIME)
    done: list[str] = []

    async def ask(http: httpx.AsyncClient, number: int) -> str:
        async with places:
            answer = essence(await http.post(**asked(number)))
        done.append(answer)
        if midway and len(done) == len(numbers) // 4:
            midway()
        return answer

    async with httpx.AsyncClient(base_url=address, timeout=400) as http:
        return await asyncio.gather(*(ask(http, number) for number in numbers))


def replicas_of(pid: int) -> list[int]:
    """The replicas of the models among the descendants of a process."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, command = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended meanwhile
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
            names[int(entry.name)] = command

    def descends(child: int) -> bool:
        while child not in (0, pid):
            child = parents.get(child, 0)
        return child == pid

    return [
        child for child, name in names.items() if b"ServeReplica:unmask:models" in name and descends(child)
    ]


def test_no_request_is_lost_when_a_replica_dies_and_all_answers_are_those_of_one_process(
    alone: str, cluster: tuple[str, int]
) -> None:
    address, pid = cluster
    wanted = asyncio.run(ask_all(alone, range(REQUESTS)))
    killed: list[int] = []

    def kill() -> None:
        killed.append(replicas_of(pid)[0])
        os.kill(killed[0], signal.SIGKILL)

    assert len(replicas_of(pid)) == 2
    assert asyncio.run(ask_all(address, range(REQUESTS), kill)) == wanted
    assert killed


def test_the_cluster_answers_for_its_models_and_refuses_as_one_process_does(
    alone: str, cluster: tuple[str, int]
) -> None:
    address, _ = cluster
    for path in ("/v1/models", "/v1/info", "/readyz"):
        assert httpx.get(address + path, timeout=120).json() == httpx.get(alone + path, timeout=120).json()
    for path in ("/v1/models/none", "/nowhere", "/gradio_api/info"):
        mine, theirs = (httpx.get(base + path, headers={"x-request-id": "one"}) for base in (address, alone))
        assert (mine.status_code, mine.json()) == (theirs.status_code, theirs.json())
        assert mine.headers.get_list("x-request-id") == ["one"]
