"""Weights shared out among processes: the same training as with copies, and states that any number can read."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch

from model.errors import RecipeError
from model.pretrain.launch import pretrain
from tests.training import log, toy, weights

#: Imports once, then forks the processes of each run: [name of the folder, changes of the recipe, resumed], ...
PROGRAM = """
import json, os, sys
from pathlib import Path
from model.pretrain.launch import pretrain
from tests.training import toy

photos, out, runs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
for port, name, changes, resumed in runs:
    children = []
    for rank in range(2):
        if not (child := os.fork()):
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }
            pretrain(toy(**changes), [photos], out / name, device="cpu", resumed=resumed)
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit(f"run {name} failed")
    if not resumed:  # as if it had been killed just after step 4
        (out / name / "LATEST").write_text("state-0000004.pt")
"""


def _free_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _run(root: Path, folder: Path, out: Path, *runs: tuple[str, dict[str, object], bool]) -> None:
    told = json.dumps([(_free_port(), *run) for run in runs])
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder), str(out), told]
    done = subprocess.run(command, cwd=root, capture_output=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_shared_out_weights_train_as_copies_do_and_resume(root: Path, folder: Path, tmp_path: Path) -> None:
    recipe: dict[str, object] = {"optimiser": "adamw", "accumulate": 2, "clip_norm": 1.0, "keep": 5}
    parted = recipe | {"sharding": "fsdp2"}
    _run(root, folder, tmp_path, ("copies", recipe, False), ("parts", parted, False), ("parts", parted, True))
    assert (tmp_path / "parts/state-0000006.parts").is_dir()
    ours, theirs = log(tmp_path / "parts"), log(tmp_path / "copies")
    assert [line["step"] for line in ours] == [1, 2, 3, 4, 5, 6]
    for one, two in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    first, second = (weights(tmp_path / name / "toy.safetensors") for name in ("copies", "parts"))
    for key in first:
        assert torch.allclose(first[key], second[key], atol=1e-4), key
    # One process alone goes on from the state of two.
    (tmp_path / "parts/LATEST").write_text("state-0000004.pt")
    (tmp_path / "parts/toy.safetensors").rename(tmp_path / "by-two.safetensors")
    alone = pretrain(toy(**parted), [folder], tmp_path / "parts", resumed=True, device="cpu")
    by_two = weights(tmp_path / "by-two.safetensors")
    assert all(torch.allclose(value, by_two[key], atol=1e-4) for key, value in weights(alone).items())


@pytest.mark.parametrize(
    "change", [{"optimiser": "muon"}, {"ema": 0.9}, {"target": "pca"}, {"compile": True}]
)
def test_what_cannot_be_shared_out_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="fsdp2") as caught:
        toy(**{"optimiser": "adamw", "sharding": "fsdp2", **change})
    assert caught.value.field == "sharding"
