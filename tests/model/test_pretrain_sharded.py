"""Weights shared out among processes: the same training as with copies, and states that any number can read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.errors import RecipeError
from model.pretrain.launch import pretrain
from tests.training import log, processes, toy, weights, write_recipe


def _run(recipe: Path, folder: Path, out: Path, *more: str) -> None:
    """Train in two processes."""
    command = ["pretrain", str(recipe), "--data", str(folder), "--out", str(out), "--device", "cpu", *more]
    with processes(2, command, out.with_suffix(".txt")) as both:
        for process in both:
            process.join(400)
    assert [process.exitcode for process in both] == [0, 0]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_shared_out_weights_train_as_copies_do_and_resume(folder: Path, shard: Path, tmp_path: Path) -> None:
    recipe: dict[str, object] = {"optimiser": "adamw", "accumulate": 2, "clip_norm": 1.0, "keep": 5}
    parted = recipe | {"sharding": "fsdp2"}
    val = ["--val", str(shard)]
    _run(write_recipe(tmp_path / "copies.toml", **recipe), folder, tmp_path / "copies", *val)
    _run(write_recipe(tmp_path / "parts.toml", **parted), folder, tmp_path / "parts", *val)
    (tmp_path / "parts/LATEST").write_text("state-0000004.pt")  # as if it had been killed just after step 4
    _run(tmp_path / "parts.toml", folder, tmp_path / "parts", "--resume", *val)
    assert (tmp_path / "parts/state-0000006.parts").is_dir()
    ours, theirs = log(tmp_path / "parts"), log(tmp_path / "copies")
    assert [line["step"] for line in ours] == [0, 1, 2, 3, 4, 5, 6]
    for one, two in zip(ours, theirs, strict=True):
        assert one == pytest.approx(two, rel=1e-5)
    first, second = (weights(tmp_path / name / "toy.safetensors") for name in ("copies", "parts"))
    for key in first:
        assert torch.allclose(first[key], second[key], atol=1e-4), key
    # One process alone goes on from the state of two.
    (tmp_path / "parts/LATEST").write_text("state-0000004.pt")
    (tmp_path / "parts/toy.safetensors").rename(tmp_path / "by-two.safetensors")
    alone = pretrain(toy(**parted), [folder], tmp_path / "parts", resumed=True, device="cpu")
    by_two = weights(tmp_path / "by-two.safetensors")
    assert all(torch.allclose(value, by_two[key], atol=1e-4) for key, value in weights(alone).items())
    _run(
        write_recipe(tmp_path / "half.toml", **parted | {"precision": "fp16"}),
        folder,
        tmp_path / "half",
        *val,
    )
    for half, whole in zip(log(tmp_path / "half"), theirs, strict=True):
        assert half.pop("loss_scale", 65536) == 65536
        assert half == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize(
    "change", [{"optimiser": "muon"}, {"ema": 0.9}, {"target": "pca"}, {"compile": True}]
)
def test_what_cannot_be_shared_out_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="fsdp2") as caught:
        toy(**{"optimiser": "adamw", "sharding": "fsdp2", **change})
    assert caught.value.field == "sharding"
