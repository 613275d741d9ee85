"""Training: what is sampled, that it learns, and that a killed run ends as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from model.__main__ import main
from model.checkpoints import store
from model.config import SIZES
from model.errors import CheckpointError, DataError, RecipeError
from model.masking import Ints
from model.network import MAE
from model.positions import POSITIONS
from model.pretrain import beginning
from model.pretrain.augment import crop_boxes
from model.pretrain.data import Photos
from model.pretrain.host import batches
from model.pretrain.launch import pretrain
from model.pretrain.loop import build_optimisers, learning_rate, run
from model.pretrain.muon import Muon, orthogonalise
from model.pretrain.pace import Pace
from model.pretrain.recipe import Adversarial, Recipe, load_recipe
from model.pretrain.resume import MAY_CHANGE, Training
from model.pretrain.samples import Keys, Sample, Sampler, stand_ins
from model.pretrain.watch import Progress, Watch
from model.pretrain.world import ALONE
from model.reconstruct import load
from tests.pictures import encoded
from tests.training import PHOTOS, equal, toy, weights

# --- data -------------------------------------------------------------------------------------------------


def test_a_folder_and_a_shard_of_the_same_photos_hold_the_same_bytes(folder: Path, shard: Path) -> None:
    in_folder, in_shard = Photos.open([folder]), Photos.open([shard])
    assert len(in_folder) == len(in_shard) == 12
    assert {in_folder.read(n) for n in range(12)} == {in_shard.read(n) for n in range(12)} == set(PHOTOS)
    assert {entry.source for entry in in_shard.entries} == {"odd", "even"}


def test_a_missing_or_empty_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        Photos.open([tmp_path / "nowhere"])
    with pytest.raises(DataError, match=str(tmp_path)):
        Photos.open([tmp_path])


def test_a_broken_photo_is_named(folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"no picture at all")
    photos = Photos.open([folder])
    number = [entry.name for entry in photos.entries].index("broken.jpg")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        photos.decode(number)


def test_an_epoch_holds_every_photo_once_in_another_order(folder: Path) -> None:
    sampler = Sampler(Photos.open([folder]), toy())
    first, second = (sampler.epoch(number)[0].tolist() for number in (0, 1))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second


def test_a_source_of_weight_one_half_gives_each_photo_every_other_epoch(shard: Path) -> None:
    sampler = Sampler(Photos.open([shard]), toy(source_weights={"odd": 0.5}))
    epochs = [sampler.epoch(number)[0] for number in range(4)]
    counts = np.bincount(np.concatenate(epochs), minlength=12)
    assert counts[::2].tolist() == [4] * 6
    assert counts[1::2].tolist() == [2] * 6
    assert all(len(epoch) == 9 for epoch in epochs)


def test_an_epoch_is_at_least_one_photo_long_where_a_small_weight_leaves_the_first_empty(
    tmp_path: Path,
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a.jpg").write_bytes(PHOTOS[0])
    recipe = toy(steps=0, epochs=20, source_weights={"one": 0.3})
    assert Sampler(Photos.open([tmp_path / "one"]), recipe).length(0) == 0
    path = pretrain(recipe, [tmp_path / "one"], tmp_path / "run", device="cpu")
    assert path is not None
    assert store.read(path).card["steps"] == 5


def test_the_sequence_of_samples_goes_on_from_any_place(folder: Path) -> None:
    sampler = Sampler(Photos.open([folder]), toy())
    whole = [sample for epoch in range(4) for sample in samples_of(sampler, epoch)]
    assert from_step(sampler, 0, 5, size=9) == whole[:45]
    assert from_step(sampler, 2, 3, size=9) == whole[18:45]


def samples_of(sampler: Sampler, epoch: int) -> list[Sample]:
    return [Sample(int(number), key) for number, key in zip(*sampler.epoch(epoch), strict=True)]


def from_step(sampler: Sampler, start: int, steps: int, size: int = 1) -> list[Sample]:
    """The samples of so many batches, one after the other."""
    batches = sampler.batches(size, start, slice(None))
    return [sample for _, batch in islice(batches, steps) for sample in batch]


class _Counting(Sampler):
    """Remembers which epochs were made."""

    def epoch(self, number: int) -> tuple[Ints, Keys]:
        self.made = [*getattr(self, "made", []), number]
        return super().epoch(number)


@pytest.mark.parametrize("source_weights", [{}, {"odd": 0.3}, {"odd": 0.1, "even": 0.45}])
@pytest.mark.parametrize("crops", [1, 3])
def test_epochs_before_the_one_reached_are_counted_and_not_made(
    shard: Path, crops: int, source_weights: dict[str, float]
) -> None:
    sampler = _Counting(Photos.open([shard]), toy(crops=crops, source_weights=source_weights))
    epochs = [samples_of(sampler, number) for number in range(60)]
    first = [sum(map(len, epochs[:number])) for number in range(60)]
    plain = [sample for epoch in epochs for sample in epoch]
    for start in [0, 1, 5, 17, 40, *first[1:50:7], *(number - 1 for number in first[2:50:7])]:
        sampler.made = []
        assert from_step(sampler, start, 3) == plain[start : start + 3]
        reached = max(number for number in range(60) if first[number] <= start)
        assert min(sampler.made) >= reached, start


def test_the_same_step_gives_the_same_batch_whatever_the_threads(folder: Path) -> None:
    photos = Photos.open([folder])
    one, two = batches(photos, toy(), 0, 1), batches(photos, toy(), 2, 3)
    third = [next(one) for _ in range(3)][2]
    resumed = next(two)
    assert torch.equal(third.images, resumed.images)
    assert torch.equal(third.hidden, resumed.hidden)
    assert third.images.shape == (4, 3, 64, 64)
    assert third.hidden.sum(dim=1).tolist() == [12] * 4


def test_crops_stay_inside_and_keep_their_share() -> None:
    keys = np.arange(500, dtype=np.uint64)
    boxes = crop_boxes(keys, [150] * 500, [220] * 500, (0.2, 1.0))
    for top, left, height, width, _ in zip(*boxes, strict=True):
        assert 0 <= top <= 150 - height
        assert 0 <= left <= 220 - width
        assert 0.18 <= height * width / (150 * 220) <= 1.0
        assert 0.72 <= width / height <= 1.4
    assert set(boxes.flip[:20].tolist()) == {True, False}


def test_a_crop_is_the_same_alone_and_in_a_batch() -> None:
    keys = np.arange(300, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    heights, widths = [150 + n % 90 for n in range(300)], [220 - n % 50 for n in range(300)]
    together = np.stack(crop_boxes(keys, heights, widths, (0.2, 1.0)))
    for n in range(300):
        alone = np.stack(crop_boxes(keys[n : n + 1], [heights[n]], [widths[n]], (0.2, 1.0)))
        assert (alone[:, 0] == together[:, n]).all()


def test_crops_are_for_ever_the_same() -> None:
    boxes = crop_boxes(np.array([1, 2**63], dtype=np.uint64), [213, 213], [221, 221], (0.2, 1.0))
    assert np.stack(boxes).T.tolist() == [[5, 33, 201, 187, 1], [13, 30, 138, 180, 0]]


def test_samples_and_their_stand_ins_are_for_ever_the_same(folder: Path) -> None:
    """Golden: a change here makes a resumed run another one."""
    sampler = Sampler(Photos.open([folder]), toy(seed=3, crops=2))
    first = samples_of(sampler, 1)[:3]
    assert [(sample.number, int(sample.key)) for sample in first] == [
        (10, 286526029346534613),
        (10, 4931557590743174690),
        (6, 2947389400710306305),
    ]
    assert stand_ins(first[1], 12)[:4] == [10, 3, 0, 6]


def test_a_crop_that_fits_nowhere_falls_back_to_the_centre_square() -> None:
    box = crop_boxes(np.array([1], dtype=np.uint64), [10], [400], (0.9, 1.0))
    assert [int(of[0]) for of in box[:4]] == [0, 195, 10, 10]


# --- recipe -----------------------------------------------------------------------------------------------


def test_the_shipped_recipes_are_valid(root: Path) -> None:
    names = [path.stem for path in (root / "model/pretrain/recipes").glob("*.toml")]
    assert "small" in names
    for name in names:
        load_recipe(name)


def test_the_papers_rate_follows_the_batch_and_its_epochs_the_photos() -> None:
    paper = load_recipe("paper-base-800").in_steps(1_281_167)
    assert (paper.steps, paper.warmup_steps) == (250_228, 12_512)
    assert paper.lr == pytest.approx(2.4e-3)
    mine = load_recipe("paper-base-800", batch_size=256, epochs=100).in_steps(10_000)
    assert (mine.steps, mine.warmup_steps) == (3907, 1563)
    assert mine.lr == pytest.approx(1.5e-4)
    assert mine.in_steps(77) == mine


def test_a_run_is_as_long_as_its_epochs(folder: Path, tmp_path: Path) -> None:
    photos = len(Photos.open([folder]))
    path = pretrain(toy(steps=0, epochs=1.5, batch_size=4), [folder], tmp_path / "run", device="cpu")
    assert path is not None
    card = store.read(path).card
    assert card["steps"] == card["recipe"]["steps"] == -(-3 * photos // 8)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("steps = 1\nnme = 'x'", "nme"),
        ("name = 'x'\nsteps = 0", "steps"),
        ("name = 'x'\nsteps = 1\nsize = 'giant'", "size"),
        ("name = 'x'\nsteps = 1\nmask_ratio = 1.0", "mask_ratio"),
        ("name = 'x'\nsteps = 1\ncrop_scale = [0.5, 0.2]", "crop_scale"),
        ("name = 'x'\nsteps = 1\noptimiser = 'sgd'", "optimiser"),
        ("name = 'x'\nsteps = 1\n[source_weights]\nodd = 2.0", "source_weights"),
        ("name = 'x'", "steps"),
        ("steps = 1", "name"),
        ("name = 'x'\nsteps = 1\nminutes = 2.0", "steps"),
        ("name = 'x'\nsteps = 1\nepochs = 2", "steps"),
        ("name = 'x'\nepochs = -1", "epochs"),
        ("name = 'x'\nsteps = 1\nwarmup_steps = 1\nwarmup_epochs = 1", "warmup_epochs"),
        ("name = 'x'\nsteps = 1\nlr = 1e-3\nbase_lr = 1e-3", "base_lr"),
        ("name = 'x'\nsteps = 1\nema = 1.0", "ema"),
        ("name = 'x'\nsteps = 1\nlr = -1e-3", "lr"),
        ("name = 'x'\nsteps = 1\nbase_lr = 'high'", "base_lr"),
        ("name = 'x'\nsteps = 1\nmuon_lr = 0.0", "muon_lr"),
        ("name = 'x'\nsteps = 1\nbetas = [0.9, 1.0]", "betas"),
        ("name = 'x'\nsteps = 1\nclip_norm = -1.0", "clip_norm"),
        ("name = 'x'\nsteps = 1\nbatch_size = 32.0", "batch_size"),
        ("name = 'x'\nsteps = 1e3", "steps"),
        ("name = 'x'\nsteps = true", "steps"),
        ("name = 'x'\nsteps = 1\nmask_ratio = '75 %'", "mask_ratio"),
        ("name = 'x'\nsteps = 1\ncompile = 1", "compile"),
        ("name = 'x'\nsteps = 1\ndecoder_heads = 0", "decoder_heads"),
        ("name = '../x'\nsteps = 1", "name"),
        ("name = ''\nsteps = 1", "name"),
        ("name = 'x'\nsteps = 1\nmask_ratio = [0.75]", "mask_ratio"),
        ("name = 'x'\nsteps = 1\nmask_ratio = [0.5, 0.6, 0.9]", "mask_ratio"),
        ("name = 'x'\nsteps = 1\ncrop_scale = [0.5]", "crop_scale"),
        ("name = 'x'\nepochs = inf", "epochs"),
        ("name = 'x'\nminutes = inf", "minutes"),
        ("name = 'x'\nsteps = 1\nlr = nan", "lr"),
        ("name = 'caf\xe9'", "recipe"),
        ("name = 'x'\nsteps = 1\n[network]\nheads = 0", "network"),
        ("name = 'x'\nsteps = 1\n[network]\nlayers = 2", "network"),
        ("name = 'x'\nsteps = 1\n[network]\nimage_size = 100", "network"),
        ("name = 'x'\nsteps = 1\n[network]\npixel_mean = 0.5", "network"),
        ("name = 'x'\nsteps = 1\n[network]\npixel_mean = [0.5]", "network"),
        ("name = 'x'\nsteps = 1\n[network]\npixel_std = [0.5, 0.5, 'x']", "network"),
        ("name = 'x'\nsteps = 1\n[adversarial]\nscales = 2.0", "scales"),
        ("name = 'x'\nsteps = 1\ndata_path = 'moon'", "data_path"),
        ("name = ", "recipe"),
        ("name = 'x'\nsteps = 1\nsource_weights = 0.5", "source_weights"),
        ("name = 'x'\nsteps = 1\nmasking = ['random']", "masking"),
        ("name = 'x'\nsteps = 1\nnetwork = ['a']", "network"),
        ("name = 'x'\nsteps = 1\ncrop_scale = 0.5", "crop_scale"),
        ("name = 'x'\nsteps = 1\nbetas = 0.9", "betas"),
        ("name = 'x'\nsteps = 1\nseed = -1", "seed"),
        ("name = 'x'\nsteps = 1\nseed = 18446744073709551616", "seed"),
        ("name = 'x'\nsteps = 1\ntarget = 'pca'\n[network]\npatch_size = 4", "network"),
    ],
)
def test_a_wrong_recipe_is_refused_by_key(tmp_path: Path, text: str, field: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert caught.value.field == field


def test_a_recipe_may_change_the_shape_of_its_size(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "name = 'x'\nsteps = 1\n[network]\nimage_size = 96\npatch_size = 8\nwidth = 384\nheads = 6"
    )
    config = load_recipe(str(path)).config
    assert (config.patches, config.width, config.heads, config.decoder_width) == (144, 384, 6, 512)
    assert load_recipe(str(path), size="debug").config == SIZES["debug"]


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="small"):
        load_recipe("giant")


@pytest.mark.parametrize("schedule", ["cosine", "trapezoid"])
def test_the_learning_rate_rises_and_ends_near_zero(schedule: str) -> None:
    recipe = toy(steps=100, warmup_steps=10, schedule=schedule)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[0] == 0
    assert rates[10] == 1
    assert rates[99] < 0.03
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_a_shortened_run_still_reaches_its_rate() -> None:
    recipe = load_recipe("small-data", steps=140).with_short_warmup()
    rates = [learning_rate(recipe, step) for step in range(140)]
    assert rates[0] == 0
    assert max(rates) == rates[14] == 1
    assert rates[-1] < 0.1


def test_a_run_of_few_steps_learns_from_the_first() -> None:
    recipe = load_recipe("small-data", steps=1).with_short_warmup()
    assert learning_rate(recipe, 0) == 1, "a first step of warming up has a rate of 0"


@pytest.mark.parametrize("shorter", [(), ("--steps", "20"), ("--epochs", "5")])
def test_a_warm_up_is_cut_where_the_run_is_shortened_and_nowhere_else(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shorter: tuple[str, ...]
) -> None:
    recipe = tmp_path / "slow.toml"
    recipe.write_text(
        "name = 'slow'\nsize = 'debug'\nepochs = 10\nwarmup_epochs = 4\nbatch_size = 12\nlog_every = 1"
    )
    if not shorter:
        recipe.write_text(recipe.read_text().replace("12", "6"))
    line = ["pretrain", str(recipe), "--data", str(folder), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*line, *shorter]) == 0
    card = store.read(tmp_path / "run/slow.safetensors").card
    steps, warmup = card["recipe"]["steps"], card["recipe"]["warmup_steps"]
    assert (steps, warmup) == {(): (20, 8), ("--steps", "20"): (20, 2), ("--epochs", "5"): (5, 0)}[shorter]
    assert ("Warm-up cut to" in capsys.readouterr().err) == bool(shorter)
    rates = [json.loads(line)["lr"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rates.index(max(rates)) == warmup


def test_a_warm_up_longer_than_its_run_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="7 must be at most the 6 steps") as caught:
        pretrain(toy(warmup_steps=7), [folder], tmp_path / "run", device="cpu")
    assert caught.value.field == "warmup_steps"


def test_the_shipped_recipes_keep_their_warm_up(root: Path) -> None:
    for path in (root / "model/pretrain/recipes").glob("*.toml"):
        recipe = load_recipe(path.stem).in_steps(1_281_167)
        assert recipe.minutes or 10 * recipe.warmup_steps <= recipe.steps, path.stem


def test_minutes_become_steps_before_a_slow_run_has_used_them_up(
    debug_network: MAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("model.pretrain.pace.time.monotonic", lambda: now)
    training = Training(toy(steps=0, minutes=1.0), debug_network, [], "")
    pace = Pace(0, now, 1.0)
    for seconds in (10, 2, 2, 2):  # the first compiles
        now += seconds
        training.step += 1
        recipe = pace.plan(training, torch.device("cpu"), ALONE)
        assert not pace.over
    assert (training.step, recipe.steps, recipe.minutes) == (4, 25, None)  # 97 % of 44 s in steps of 2
    now = 160.0
    assert pace.over


# --- Muon -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 96), (96, 32), (40, 40)])
def test_orthogonalised_updates_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(
        orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0)), 5)
    )
    assert float(values.min()) > 0.3
    assert float(values.max()) < 1.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_steps_as_torch_does_in_its_bfloat16(dtype: torch.dtype) -> None:
    start, gradients = torch.randn(24, 40), [torch.randn(24, 40) for _ in range(3)]
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    optimisers = [
        Muon([ours], lr=0.02, weight_decay=0.1, dtype=dtype),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimiser in optimisers:
            optimiser.step()
    moved = (theirs - start).detach()
    assert float((ours - theirs).detach().norm() / moved.norm()) < 0.03


def test_every_parameter_is_in_one_optimiser_and_norms_are_not_decayed(debug_network: MAE) -> None:
    adamw, muon = build_optimisers(debug_network, toy())
    groups = [*adamw.param_groups, *muon.param_groups]
    members = [parameter for group in groups for parameter in group["params"]]
    assert len(members) == len(set(members)) == len(list(debug_network.parameters()))
    assert all(p.ndim == 1 for group in groups if group["weight_decay"] == 0 for p in group["params"])
    assert {tuple(p.shape) for p in muon.param_groups[0]["params"]} == {
        (96, 32),
        (32, 32),
        (128, 32),
        (32, 128),
    }


# --- runs -------------------------------------------------------------------------------------------------


def test_training_learns_and_leaves_weights_pictures_and_a_log(tmp_path: Path) -> None:
    # Photos of one colour each: what is hidden is known as soon as the colour of the rest is copied.
    folder = tmp_path / "plain"
    folder.mkdir()
    for number, colour in enumerate(np.random.default_rng(0).integers(0, 256, (12, 3), dtype=np.uint8)):
        (folder / f"{number}.png").write_bytes(encoded(np.broadcast_to(colour, (64, 64, 3)).copy()))
    recipe = toy(
        steps=60, batch_size=12, lr=1e-2, muon_lr=4e-2, log_every=10, picture_every=20, checkpoint_every=20
    )
    weights = pretrain(recipe, [folder], tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[-1]["samples"] == 720
    assert len(list((tmp_path / "run/pictures").glob("*.webp"))) == 4
    assert load(weights, "cpu").describe()["samples"] == 720


def test_a_run_that_crashed_ends_bit_equal_to_an_uninterrupted_one(shard: Path, tmp_path: Path) -> None:
    whole = pretrain(toy(), [shard], tmp_path / "whole", device="cpu")

    def crash(progress: Progress, network: MAE) -> None:
        if progress.step == 5:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(toy(), Photos.open([shard]), tmp_path / "parts", device=torch.device("cpu"), report=crash)
    assert (tmp_path / "parts/LATEST").read_text() == "state-0000004.pt"
    parts = pretrain(toy(), [shard], tmp_path / "parts", resumed=True, device="cpu", workers=2)
    first, second = (weights(path) for path in (whole, parts))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_resuming_another_recipe_or_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        pretrain(toy(), [folder], tmp_path / "empty", resumed=True, device="cpu")
    assert not (tmp_path / "empty").exists()
    pretrain(toy(steps=2), [folder], tmp_path / "run", device="cpu")
    with pytest.raises(CheckpointError, match="batch_size"):
        pretrain(toy(batch_size=2), [folder], tmp_path / "run", resumed=True, device="cpu")


#: Of each setting that decides what was learned so far, another value than ``toy`` has.
ANOTHER: dict[str, object] = {
    "size": "mini",
    "network": {"depth": 1},
    "target": "norm_pixel",
    "decoder_depth": 2,
    "decoder_width": 64,
    "decoder_heads": 1,
    "mask_tokens": "encoder",
    "loss_on": "all",
    "seed": 1,
    "batch_size": 2,
    "mask_ratio": 0.5,
    "masking": {"grid": 1.0},
    "augment": "fixed",
    "crops": 2,
    "crop_scale": (0.5, 1.0),
    "source_weights": {"photos": 0.5},
    "optimiser": "adamw",
    "weight_decay": 0.3,
    "betas": (0.8, 0.9),
    "ema": 0.9,
    "adversarial": Adversarial(channels=4),
}


def test_a_resumed_run_learns_as_before(folder: Path, tmp_path: Path) -> None:
    known = {entry.name for entry in fields(Recipe)}
    assert known >= MAY_CHANGE
    pretrain(toy(steps=2), [folder], tmp_path / "run", device="cpu")
    for name in sorted(known - MAY_CHANGE):
        with pytest.raises(CheckpointError, match=f" has {name} = "):
            pretrain(toy(**{name: ANOTHER[name]}), [folder], tmp_path / "run", resumed=True, device="cpu")


def test_a_run_goes_on_with_its_own_photos_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept" / folder.name
    shutil.copytree(folder, kept)
    pretrain(toy(steps=2), [kept], tmp_path / "run", device="cpu")
    moved = tmp_path / "moved" / folder.name
    shutil.copytree(kept, moved)
    pretrain(toy(steps=3), [moved], tmp_path / "run", resumed=True, device="cpu")
    next(path for path in sorted(moved.rglob("*")) if path.is_file()).unlink()
    with pytest.raises(CheckpointError, match="other photos"):
        pretrain(toy(steps=4), [moved], tmp_path / "run", resumed=True, device="cpu")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as a terminal has it: what a shell starts behind its back ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_stops_the_run_and_afterwards_does_what_it_did_before(folder: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def stop(progress: Progress, network: MAE) -> None:
        if progress.step == 3:
            signal.raise_signal(signal.SIGTERM)

    training = run(toy(), Photos.open([folder]), tmp_path, device=torch.device("cpu"), report=stop)
    assert training.step == 4
    assert (tmp_path / "LATEST").read_text() == "state-0000004.pt"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("interruptible")
def test_a_run_that_was_stopped_says_where_and_a_finished_one_does_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "report", lambda watch, progress, network: signal.raise_signal(signal.SIGINT))
        assert pretrain(toy(steps=9, log_every=1), [folder], tmp_path / "run", device="cpu") is not None
    assert "Stopped after step 2 of 9; --resume goes on from there." in capsys.readouterr().err
    pretrain(toy(steps=9), [folder], tmp_path / "run", resumed=True, device="cpu")
    assert "Stopped" not in capsys.readouterr().err


def test_a_run_that_fails_gives_the_signals_back_too(folder: Path, tmp_path: Path) -> None:
    pretrain(toy(steps=2), [folder], tmp_path, device="cpu")
    before = signal.getsignal(signal.SIGINT)
    # Of the state, which is read where the signals are taken already.
    with pytest.raises(CheckpointError, match="batch_size"):
        pretrain(toy(batch_size=2), [folder], tmp_path, resumed=True, device="cpu")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_in_a_thread_listens_to_no_signal(folder: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as thread:
        left = thread.submit(pretrain, toy(steps=1), [folder], tmp_path, device="cpu").result()
    assert left is not None
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_leaves_the_running_average_of_its_weights_which_follows_quickly_at_first(
    folder: Path, tmp_path: Path
) -> None:
    after: list[torch.Tensor] = []

    def remember(_: Progress, network: MAE) -> None:
        after.append(network.cls_token.detach().clone())

    photos, cpu, first = Photos.open([folder]), torch.device("cpu"), tmp_path / "first.safetensors"
    store.write(first, MAE(toy().config), name="first", card={})
    init = beginning.read(first, toy())
    run(toy(steps=4), photos, tmp_path / "plain", device=cpu, init=init, report=remember)
    averaged = run(toy(steps=4, ema=0.25), photos, tmp_path / "averaged", device=cpu, init=init)
    expected = weights(first)["cls_token"]
    for kept, learned in zip((1 / 10, 2 / 11, 0.25, 0.25), after, strict=True):
        expected = kept * expected + (1 - kept) * learned
    torch.testing.assert_close(averaged.result.cls_token.detach(), expected)
    assert not torch.equal(expected, after[-1])


def test_each_optimiser_follows_the_schedule_from_its_own_rate(folder: Path, tmp_path: Path) -> None:
    recipe = toy(steps=3, lr=1e-3, muon_lr=2e-2)
    training = run(recipe, Photos.open([folder]), tmp_path, device=torch.device("cpu"))
    scale = learning_rate(training.recipe, 2)
    adamw, muon = (optimiser.param_groups[0]["lr"] for optimiser in training.optimisers)
    assert (adamw, muon) == pytest.approx((1e-3 * scale, 2e-2 * scale))


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path) -> None:
    recipe = toy(steps=200, lr=1e38, optimiser="adamw")
    with pytest.raises(DataError, match="loss"):
        pretrain(recipe, [folder], tmp_path / "run", device="cpu")


def test_a_run_can_begin_with_given_weights(folder: Path, tmp_path: Path) -> None:
    first = pretrain(toy(), [folder], tmp_path / "first", device="cpu")
    # A step at rate zero leaves the weights as they were given.
    still = toy(steps=1, warmup_steps=1)
    second = pretrain(still, [folder], tmp_path / "second", init=first, device="cpu")
    assert equal(first, second)
    assert not equal(first, pretrain(still, [folder], tmp_path / "fresh", device="cpu"))


@pytest.mark.parametrize(("learned", "ema"), [(False, None), (True, 0.9)])
def test_a_resumed_run_goes_on_from_its_state_and_not_from_the_weights_given(
    folder: Path, tmp_path: Path, learned: bool, ema: float | None
) -> None:
    first, recipe = tmp_path / "first.safetensors", toy(ema=ema)
    network = MAE(recipe.config)
    if learned:  # positions are then no formula, which would be made anew
        for name in POSITIONS:
            network.get_buffer(name).normal_(generator=torch.Generator().manual_seed(1))
    store.write(first, network, name="first", card={})
    whole = pretrain(recipe, [folder], tmp_path / "whole", init=first, device="cpu")
    photos, cpu = Photos.open([folder]), torch.device("cpu")

    def crash(progress: Progress, network: MAE) -> None:
        if progress.step == 5:
            raise RuntimeError("power cut")

    given = beginning.read(first, recipe)
    with pytest.raises(RuntimeError, match="power cut"):
        run(recipe, photos, tmp_path / "parts", device=cpu, init=given, report=crash)
    parts = pretrain(recipe, [folder], tmp_path / "parts", resumed=True, init=first, device="cpu")
    assert equal(whole, parts)
    assert equal(whole, tmp_path / "whole"), "a state is read as the weights of its step"
    assert torch.equal(weights(parts)["pos_embed"], network.pos_embed)
    assert parts is not None
    assert store.read(parts).card["begun_from"]["sha256"] == store.read(first).digest


def test_weights_that_were_begun_from_others_keep_their_licence_and_name_them(
    root: Path, folder: Path, tmp_path: Path
) -> None:
    given, out = root / "weights/mini.safetensors", tmp_path / "run"
    length = ["--steps", "1", "--batch-size", "2", "--device", "cpu"]
    begun = ["--init", str(given), "--name", "mine", "--data", str(folder), "--out", str(out)]
    assert main(["pretrain", "own-photos", *begun, *length]) == 0
    mine, mini = store.read(out / "mine.safetensors"), store.read(given)
    assert (mine.name, mine.card["licence"], mine.card["samples"]) == ("mine", mini.card["licence"], 2)
    before = mine.card["begun_from"]
    assert (before["name"], before["sha256"], before["samples"]) == ("mini", mini.digest, 409_600)
    assert before["trained_on"] == mini.card["trained_on"]
    state = store.read(out / "state-0000001.pt").card
    assert (state["licence"], state["begun_from"]) == (mine.card["licence"], before)


def test_an_encoder_alone_is_a_beginning_to_which_a_decoder_is_trained(folder: Path, tmp_path: Path) -> None:
    first = pretrain(toy(), [folder], tmp_path / "first", device="cpu")
    assert first is not None
    with safe_open(first, "pt") as file:
        known = list(file.keys())
        tensors = {key: file.get_tensor(key) for key in known if not key.startswith(("decoder_", "mask_"))}
        save_file(tensors, tmp_path / "encoder.safetensors", metadata=file.metadata())
    still = toy(steps=1, warmup_steps=1, decoder_depth=2)
    second = pretrain(
        still, [folder], tmp_path / "second", init=tmp_path / "encoder.safetensors", device="cpu"
    )
    begun = weights(second)
    assert all(torch.equal(begun[name], value) for name, value in tensors.items())
    assert begun["decoder_pred.weight"].std() > 0
    other = toy(network={"patch_size": 8})
    with pytest.raises(CheckpointError, match=r"network: patch_size 16 instead of 8\.$"):
        pretrain(other, [folder], tmp_path / "other", init=tmp_path / "encoder.safetensors", device="cpu")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "random 75 %"),
        ({"masking": {"block": 1.0, "random": 0.0}, "mask_ratio": 0.5}, "block 50 %"),
        ({"mask_ratio": (0.65, 0.85)}, "random 65 to 85 %"),
        ({"masking": {"random": 0.75, "grid": 0.25}}, "75 % hidden: random 75 %, grid 25 %"),
    ],
)
def test_a_run_tells_on_which_masks_it_trained(changes: dict[str, object], words: str) -> None:
    assert toy(**changes).masks == words


def test_weights_of_another_size_are_refused_as_a_beginning(folder: Path, tmp_path: Path) -> None:
    first = pretrain(toy(), [folder], tmp_path / "first", device="cpu")
    with pytest.raises(CheckpointError, match="width 32 instead of 256, depth 2") as caught:
        pretrain(toy(size="small"), [folder], tmp_path / "other", init=first, device="cpu")
    assert caught.value.field == "init"
    assert "decoder_width = 32, decoder_depth = 1" in caught.value.hint
    assert "[network] image_size = 64, width = 32, depth = 2, heads = 2" in caught.value.hint
    assert not (tmp_path / "other/LATEST").exists()


def test_what_no_recipe_can_say_is_no_beginning(folder: Path, tmp_path: Path) -> None:
    wide = MAE(replace(SIZES["debug"], mlp_ratio=2.0))
    store.write(tmp_path / "wide.safetensors", wide, name="wide", card={})
    with pytest.raises(CheckpointError, match=r"mlp_ratio 2\.0 instead of 4\.0") as caught:
        pretrain(toy(), [folder], tmp_path / "run", init=tmp_path / "wide.safetensors", device="cpu")
    assert "No recipe can express mlp_ratio" in caught.value.hint


def test_a_run_takes_the_colours_of_the_weights_it_begins_with(folder: Path, tmp_path: Path) -> None:
    halves = (0.5, 0.5, 0.5)
    first = tmp_path / "first.safetensors"
    network = MAE(replace(SIZES["debug"], pixel_mean=halves, pixel_std=halves))
    store.write(first, network, name="first", card={})
    pretrain(toy(steps=2), [folder], tmp_path / "run", init=first, device="cpu")
    longer = pretrain(toy(steps=3), [folder], tmp_path / "run", resumed=True, init=first, device="cpu")
    assert longer is not None
    config = store.read(longer).network.config
    assert (config.pixel_mean, config.pixel_std) == ((0.5,) * 3, (0.5,) * 3)
    said = toy(network={"pixel_mean": [0.4] * 3})
    with pytest.raises(CheckpointError, match="pixel_mean") as caught:
        pretrain(said, [folder], tmp_path / "other", init=first, device="cpu")
    assert "[network] pixel_mean = [0.5, 0.5, 0.5]" in caught.value.hint


@pytest.mark.parametrize("target", ["norm_pixel", "norm_pixel_stats", "pca"])
def test_weights_of_another_target_are_taken_but_for_the_last_layer(
    folder: Path, tmp_path: Path, target: str
) -> None:
    first = pretrain(toy(), [folder], tmp_path / "first", device="cpu")
    assert first is not None
    still = toy(target=target, lr=1e-12, muon_lr=1e-12, steps=1)
    other = pretrain(still, [folder], tmp_path / "other", init=first, device="cpu")
    assert other is not None
    begun, ended = weights(first), weights(other)
    kept = {name for name in begun if not name.startswith("decoder_pred.")}
    for name in kept:
        assert torch.allclose(begun[name], ended[name], atol=1e-6), name
    assert not torch.equal(begun["decoder_pred.weight"][:8], ended["decoder_pred.weight"][:8])


@pytest.mark.slow
def test_a_stopped_process_saves_its_state_and_goes_on(root: Path, folder: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "model", "pretrain", "small", "--size", "debug", "--batch-size", "4",
        "--steps", "100000", "--data", str(folder), "--out", str(tmp_path / "run"), "--device", "cpu",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    log = tmp_path / "run" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 280
        while not log.is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.terminate()
        assert process.wait(timeout=200) == 0
    finally:
        process.kill()
    assert (tmp_path / "run" / "LATEST").is_file()
    assert (tmp_path / "run" / "small.safetensors").is_file()
    steps = json.loads(log.read_text().splitlines()[-1])["step"]
    assert 0 < steps < 100_000
