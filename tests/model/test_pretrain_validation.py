"""The loss on held-out photos while a run goes on: what it is measured on, and that the training never notices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.transforms.v2.functional import center_crop, resize

from model.checkpoints import store
from model.errors import CheckpointError, DataError
from model.network import MAE
from model.pretrain.data import Photos
from model.pretrain.launch import pretrain
from model.pretrain.loop import run
from model.pretrain.recipe import Adversarial
from model.pretrain.validation import AT_ONCE, Validation
from model.pretrain.watch import Progress
from tests.pictures import encoded, photo
from tests.training import equal, log, toy


def _losses(out: Path) -> dict[int, float]:
    return {line["step"]: line["val_loss"] for line in log(out) if "val_loss" in line}


@pytest.mark.parametrize(
    "changes",
    [{"ema": 0.9}, {"adversarial": Adversarial(channels=4)}, {"recompute": True, "mask_ratio": (0.5, 0.9)}],
)
def test_a_run_learns_the_same_with_held_out_photos_also_when_it_is_killed(
    folder: Path, shard: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    recipe = toy(log_every=3, **changes)
    plain = pretrain(recipe, [folder], tmp_path / "plain", device="cpu")
    whole = pretrain(recipe, [folder], tmp_path / "whole", val=[shard], device="cpu")
    assert equal(plain, whole)

    def crash(progress: Progress, network: MAE) -> None:
        if progress.val_loss is not None and progress.step == 4:
            raise RuntimeError("power cut")

    held_out = Validation.load(Photos.open([shard]), recipe, 1)
    with pytest.raises(RuntimeError, match="power cut"):
        run(
            recipe,
            Photos.open([folder]),
            tmp_path / "parts",
            device=torch.device("cpu"),
            report=crash,
            validation=held_out,
        )
    parts = pretrain(recipe, [folder], tmp_path / "parts", val=[shard], resumed=True, device="cpu", workers=2)
    assert equal(whole, parts)
    assert list(_losses(tmp_path / "whole")) == [0, 2, 4, 6]
    assert _losses(tmp_path / "parts") == {step: _losses(tmp_path / "whole")[step] for step in (4, 6)}


def test_the_loss_on_held_out_photos_decides_which_state_is_the_best(
    folder: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = toy(checkpoint_every=1, keep=1)
    pretrain(recipe, [folder], tmp_path, val=[shard], device="cpu")
    losses = _losses(tmp_path)
    trained = {line["step"]: line["loss"] for line in log(tmp_path) if "loss" in line}
    assert min(losses, key=lambda step: losses[step]) == 6
    assert min(trained, key=lambda step: trained[step]) < 6, "else this tells nothing"
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-0000006.pt"]
    said = f"Lowest validation loss: {losses[6]:.4f}, of {tmp_path}/state-0000006.pt (named by BEST)."
    assert said in capsys.readouterr().err
    # The loss on other photos is another one, and the training's too: however low, it is not compared with.
    state = torch.load(tmp_path / "state-0000006.pt", weights_only=True)
    torch.save(state | {"best": 0.0}, tmp_path / "state-0000006.pt")
    pretrain(replace(recipe, steps=7), [folder], tmp_path, resumed=True, device="cpu")
    assert (tmp_path / "BEST").read_text() == "state-0000007.pt"


def test_no_state_is_the_best_where_a_run_began_better(
    folder: Path, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = toy(optimiser="adamw", lr=0.3, steps=3, checkpoint_every=1)
    pretrain(replace(recipe, steps=2), [folder], tmp_path, val=[shard], device="cpu")
    pretrain(recipe, [folder], tmp_path, val=[shard], device="cpu", resumed=True)
    losses = _losses(tmp_path)
    assert min(losses, key=lambda step: losses[step]) == 0
    assert not (tmp_path / "BEST").exists()
    said = f"Lowest validation loss: {losses[0]:.4f}, before the first step: no state is better."
    assert capsys.readouterr().err.count(said) == 2


def test_runs_of_other_seeds_and_crops_are_judged_alike(folder: Path, shard: Path, tmp_path: Path) -> None:
    init = tmp_path / "first.safetensors"
    store.write(init, MAE(toy().config), name="first", card={})
    for name, changes in {"one": {}, "two": {"seed": 1, "augment": "none", "batch_size": 2}}.items():
        pretrain(
            toy(steps=1, mask_ratio=(0.5, 0.9), **changes),
            [folder],
            tmp_path / name,
            init=init,
            val=[shard],
            device="cpu",
        )
    assert _losses(tmp_path / "one")[0] == _losses(tmp_path / "two")[0]
    assert _losses(tmp_path / "one")[1] != _losses(tmp_path / "two")[1]


def test_held_out_photos_are_the_centre_squares_of_some_that_are_evenly_spread(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "005a.jpg").write_bytes(b"no picture")
    photos = Photos.open([folder])
    places = [entry.name for entry in photos.entries]
    held_out = Validation.load(photos, toy(val_photos=4), 2)
    assert len(photos) == 13
    images = torch.cat([batch.images for batch in held_out.batches])
    taken = [0, 4, 8, 12]
    expected = [
        resize(center_crop(photos.decode(n), [70, 70]), [64, 64], antialias=True, interpolation=3)
        for n in taken
        if places[n] != "005a.jpg"
    ]
    assert (images.int() - torch.stack(expected).int()).abs().max() <= 1
    assert (
        held_out.told[0]
        == "validation: 4 photos, evenly spread over 13 photos of 1 source; left out: 1 .txt."
    )
    assert len(held_out.told) == 1 + ("005a.jpg" in [places[n] for n in taken])


def test_many_held_out_photos_are_judged_in_parts_that_weigh_what_they_hold(tmp_path: Path) -> None:
    held_out = tmp_path / "held-out"
    held_out.mkdir()
    for n in range(AT_ONCE + 1):
        (held_out / f"{n}.png").write_bytes(encoded(photo(16, 16, seed=n)))
    validation = Validation.load(Photos.open([held_out]), toy(), 1)
    assert [len(batch.images) for batch in validation.batches] == [AT_ONCE, 1]


def test_what_cannot_judge_a_run_is_refused_before_it_begins(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="12 of 12 val photos are also training photos") as caught:
        pretrain(toy(), [folder], tmp_path / "run", val=[folder], device="cpu")
    assert caught.value.field == "val"
    (tmp_path / "held-out").mkdir()
    (tmp_path / "held-out/broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="None of the 1 photos to validate on can be decoded"):
        pretrain(toy(), [folder], tmp_path / "run", val=[tmp_path / "held-out"], device="cpu")
    with pytest.raises(CheckpointError, match="whose pictures are learned from"):
        pretrain(toy(), [folder], tmp_path / "held-out/run", val=[tmp_path / "held-out"], device="cpu")
    assert not (tmp_path / "run").exists()
