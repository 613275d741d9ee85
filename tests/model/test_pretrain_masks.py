"""What is hidden in training: a range of ratios, a mixture of strategies, the same for everyone who asks."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from model.errors import CheckpointError, RecipeError
from model.masking import MAX_SEED, SAMPLERS, noise
from model.pretrain import feed
from model.pretrain.data import Photos
from model.pretrain.launch import pretrain
from model.pretrain.recipe import Recipe, load_recipe
from model.pretrain.resume import latest_step
from model.pretrain.samples import Sample, masks
from model.pretrain.world import World
from tests.training import equal, log, run_until, toy

MIXTURE = {"random": 0.5, "block": 0.3, "grid": 0.2}


def _samples(count: int) -> list[Sample]:
    return [Sample(n, key) for n, key in enumerate(noise(np.array([7], dtype=np.uint64), count)[0])]


def _strategy(row: np.ndarray, sample: Sample, recipe: Recipe) -> str:
    """Which strategy drew this mask; a mask of two strategies is counted for the first."""
    seed = int(sample.key ^ np.uint64(0x5DEECE66D)) & MAX_SEED
    for name in ("block", "grid"):
        if (SAMPLERS[name].mask(recipe.config.grid, int(row.sum()), seed) == row).all():
            return name
    return "random"


def test_the_masks_of_a_step_are_for_ever_the_same() -> None:
    """Golden: a change here makes a resumed run another one."""
    recipe = toy(seed=3, mask_ratio=(0.5, 0.9), masking=MIXTURE)
    told = hashlib.sha256(np.packbits([masks(_samples(16), recipe, step) for step in range(6)]).tobytes())
    assert told.hexdigest()[:16] == "205f4533d3a92dc1"


def test_a_ratio_is_drawn_for_each_step_evenly_from_its_range() -> None:
    recipe = toy(mask_ratio=(0.5, 0.9))
    counts = [masks(_samples(3), recipe, step).sum(axis=1) for step in range(400)]
    assert all(len(set(of.tolist())) == 1 for of in counts)  # a batch is a rectangle
    hidden = np.array([of[0] for of in counts])
    assert (hidden.min(), hidden.max()) == (9, 15)  # of 16 patches; a part of one more is hidden whole
    middle = np.bincount(hidden, minlength=16)[9:15]
    assert middle.min() > 35  # a sixteenth of 0.4 is 62 of 400


def test_one_ratio_hides_what_it_always_hid() -> None:
    one, pair = (masks(_samples(8), toy(mask_ratio=ratio), 3) for ratio in (0.75, (0.75, 0.75)))
    assert (one == pair).all()
    assert (one.sum(axis=1) == 12).all()


def test_a_mixture_gives_each_strategy_its_share_of_the_samples() -> None:
    recipe, samples = toy(size="small", masking=MIXTURE), _samples(600)
    rows = masks(samples, recipe, 0)
    found = [_strategy(row, sample, recipe) for row, sample in zip(rows, samples, strict=True)]
    for name, share in MIXTURE.items():
        assert found.count(name) / 600 == pytest.approx(share, abs=0.06)
    assert (rows.sum(axis=1) == 147).all()


def test_a_samples_mask_depends_on_the_sample_and_not_on_its_neighbours() -> None:
    recipe, samples = toy(mask_ratio=(0.5, 0.9), masking=MIXTURE), _samples(20)
    together = masks(samples, recipe, 5)
    for place in (0, 7, 19):
        assert (masks(samples[place : place + 1], recipe, 5)[0] == together[place]).all()


@pytest.mark.parametrize("path", ["host", "device"])
def test_any_number_of_processes_and_either_path_hide_the_same(folder: Path, path: str) -> None:
    recipe = toy(batch_size=8, mask_ratio=(0.3, 0.9), masking=MIXTURE)
    photos, device = Photos.open([folder]), torch.device("cpu")
    expected = next(feed.batches(photos, recipe, 3, device=device, workers=1)).hidden
    chosen = toy(batch_size=8, mask_ratio=(0.3, 0.9), masking=MIXTURE, data_path=path)
    for size in (1, 2, 4):
        parts = [
            next(feed.batches(photos, chosen, 3, device=device, workers=2, world=World(rank, size))).hidden
            for rank in range(size)
        ]
        assert torch.equal(torch.cat(parts), expected)


def test_a_run_on_a_range_and_a_mixture_resumes_bit_equal(folder: Path, tmp_path: Path) -> None:
    recipe = toy(mask_ratio=(0.5, 0.9), masking=MIXTURE)
    whole = pretrain(recipe, [folder], tmp_path / "whole", device="cpu")
    run_until(recipe, folder, tmp_path / "parts", 5)
    assert equal(whole, pretrain(recipe, [folder], tmp_path / "parts", resumed=True, device="cpu"))
    assert log(tmp_path / "parts")[-1] == log(tmp_path / "whole")[-1]


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"mask_ratio": (0.5, 0.8)}, "mask_ratio"), ({"masking": {"random": 0.5, "block": 0.5}}, "masking")],
)
def test_resuming_with_other_masks_is_refused(
    folder: Path, tmp_path: Path, changed: dict[str, object], named: str
) -> None:
    given: dict[str, object] = {"mask_ratio": (0.5, 0.9), "masking": MIXTURE}
    run_until(toy(**given), folder, tmp_path, 3)
    with pytest.raises(CheckpointError, match=named):
        pretrain(toy(**{**given, **changed}), [folder], tmp_path, resumed=True, device="cpu")
    assert latest_step(tmp_path) == 2


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("mask_ratio = [0.8, 0.5]", "mask_ratio"),
        ("mask_ratio = [0.0, 0.5]", "mask_ratio"),
        ("[masking]\nrandom = 0.5\nblock = 0.4", "masking"),
        ("[masking]\nstripes = 1.0", "masking"),
        ("[masking]\nrandom = 1.5\nblock = -0.5", "masking"),
    ],
)
def test_a_wrong_range_or_mixture_is_refused_by_key(tmp_path: Path, line: str, field: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(f"name = 'x'\nsteps = 1\n{line}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert caught.value.field == field


def test_a_recipe_file_may_hold_a_range_and_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "right.toml"
    path.write_text("name = 'x'\nsteps = 1\nmask_ratio = [0.6, 0.9]\n[masking]\nrandom = 0.75\ngrid = 0.25\n")
    recipe = load_recipe(str(path))
    assert recipe.ratio_range == (0.6, 0.9)
    assert recipe.masking == {"random": 0.75, "grid": 0.25}
