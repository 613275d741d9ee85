"""A toy run for the tests of training: a recipe of milliseconds, processes of its own, and what a run left behind."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from model.__main__ import main
from model.checkpoints import store
from model.network import MAE
from model.pretrain.data import Photos
from model.pretrain.loop import run
from model.pretrain.recipe import Recipe
from model.pretrain.watch import Progress
from tests.conftest import free_port
from tests.pictures import encoded, photo

#: What the fixtures ``folder`` and ``shard`` hold.
PHOTOS = [encoded(photo(80 + n, 70, seed=n), "JPEG") for n in range(12)]
#: What stands in place of photos of the fixture ``damaged_folder``, by their numbers.
BROKEN = {3: b"no picture at all", 7: b""}

_TOY: dict[str, object] = {
    "name": "toy", "size": "debug", "steps": 6, "batch_size": 4, "lr": 1e-3, "optimiser": "muon",
    "log_every": 1, "picture_every": 1000, "checkpoint_every": 2,
    "precision": "fp32",  # sums that are compared to the last digits; "auto" differs between machines
}  # fmt: skip


def toy(**changes: object) -> Recipe:
    """Six steps of four photos on the smallest network, with these changes."""
    return Recipe(**{**_TOY, **changes})  # type: ignore[arg-type]


def write_recipe(path: Path, **changes: object) -> Path:
    """The same as a file."""
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in (_TOY | changes).items()))
    return path


#: A server that imports once, and forks the processes from there: importing torch takes seconds.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.training", "model.pretrain.launch"])


@contextmanager
def processes(count: int, command: list[str], said: Path) -> Iterator[list[ForkServerProcess]]:
    """The command line in real processes that train together; what still runs in the end is killed.

    Args:
        count: How many.
        command: Its arguments.
        said: Where what all of them print goes.
    """
    port = free_port()
    started = [_FORKS.Process(target=_rank, args=(rank, count, port, command, said)) for rank in range(count)]
    try:
        for process in started:
            process.start()
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


def _rank(rank: int, count: int, port: int, command: list[str], said: Path) -> None:
    if count > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        torch.set_num_threads(1)  # as torchrun does: with two, sums end otherwise in the last bit
    with said.open("a") as file, redirect_stdout(file):
        code = main(command)
    raise SystemExit(code)


def log(out: Path) -> list[dict[str, Any]]:
    """The run's log without what differs between runs: speed."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_second"} for line in lines]


def weights(path: Path | None) -> dict[str, torch.Tensor]:
    """Tensors of the weight file a run left."""
    assert path is not None  # the run wrote one
    return store.read(path).network.state_dict()


def equal(one: Path | None, two: Path | None) -> bool:
    """Whether two weight files are the same to the bit."""
    first, second = weights(one), weights(two)
    return all(torch.equal(first[key], second[key]) for key in first)


def run_until(recipe: Recipe, folder: Path, out: Path, crash_at: int, device: str = "cpu") -> None:
    """Train, and crash in the report of this step."""

    def crash(progress: Progress, network: MAE) -> None:
        if progress.step == crash_at:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(recipe, Photos.open([folder]), out, device=torch.device(device), report=crash)
