"""The service on Ray Serve, really started: answers are those of one process, and a dying replica loses none."""

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.bench.mixups import Tally, ask_alone, ask_together

ROOT = Path(__file__).resolve().parents[2]
DIFFERENT, REQUESTS, CLIENTS = 30, 80, 12

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
def alone(proved_weights: Path) -> Iterator[str]:
    for address, _ in started([sys.executable, "-m", "server"], settings(proved_weights)):
        yield address


@pytest.fixture(scope="module")
def cluster(proved_weights: Path) -> Iterator[tuple[str, int]]:
    yield from started(
        [sys.executable, "-m", "server", "cluster"], settings(proved_weights, UNMASK_MIN_REPLICAS="2")
    )


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
    tally = Tally()

    async def kill() -> None:
        while tally.statuses[200] < REQUESTS // 4:
            await asyncio.sleep(0.02)
        os.kill(replicas_of(pid)[0], signal.SIGKILL)

    async def scene() -> None:
        wanted = await ask_alone(alone, range(DIFFERENT), ["debug"])
        assert len(replicas_of(pid)) == 2
        await asyncio.gather(ask_together(address, wanted, ["debug"], REQUESTS, tally, CLIENTS), kill())

    asyncio.run(scene())
    assert tally.wrong == []
    assert tally.statuses == {200: REQUESTS}


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
