"""The report on repainting: figures beside fills, with intervals, for several masks at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from model.__main__ import main
from model.checkpoints import store
from model.config import IMAGE_MEAN, IMAGE_STD, SIZES, MAEConfig
from model.errors import DataError, RecipeError
from model.evaluate.fills import (
    FILLS,
    METRICS,
    border_steps,
    figures,
    fine_detail,
    norm_pixel_agreement,
    resampled,
    sharpness,
)
from model.evaluate.reconstruction import answer, evaluate
from model.images import load_square
from model.masking import sample_mask
from model.network import MAE
from model.pretrain.data import Photos
from model.reconstruct import Reconstructor
from model.scores import Floats
from tests.pictures import encoded, photo


def _picture() -> tuple[Floats, np.ndarray]:
    original = photo(64, 64).astype(np.float32) / np.float32(255)
    hidden = np.zeros((64, 64), dtype=bool)
    hidden[16:48, 16:32] = True
    return original, hidden


def test_the_truth_has_no_normalised_loss_and_grey_has_all_of_it() -> None:
    original, hidden = _picture()
    assert norm_pixel_agreement(original, original, hidden, 16) == pytest.approx(1, abs=1e-5)
    mean, std = (np.array(of, dtype=np.float32) for of in (IMAGE_MEAN, IMAGE_STD))
    dimmed = (
        mean + (original - mean) * np.float32(0.5) + 0.1 * std
    )  # mean and contrast of a patch do not count
    assert norm_pixel_agreement(original, dimmed, hidden, 16) == pytest.approx(1, abs=1e-4)
    grey = np.broadcast_to(mean + 0.3 * std, original.shape).astype(np.float32)
    assert norm_pixel_agreement(original, grey, hidden, 16) == 0


def test_the_loss_of_normalised_pixels_is_the_networks_own_with_nothing_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = MAE(MAEConfig.from_dict({**SIZES["debug"].to_dict(), "target": "norm_pixel"})).eval()
    network.init_weights(torch.Generator().manual_seed(0))
    store.write(tmp_path / "norm.safetensors", network, name="norm", card={})
    (tmp_path / "0.png").write_bytes(encoded(photo(64, 64)))
    arguments = ["evaluate", "reconstruct", str(tmp_path / "norm.safetensors"), "--data", str(tmp_path)]
    assert main([*arguments, "--device", "cpu", "--json"]) == 0
    setting = json.loads(capsys.readouterr().out)["settings"][0]
    mask = sample_mask("random", (4, 4), 12, 0)
    image = network.normalise(torch.tensor(photo(64, 64)).permute(2, 0, 1)[None] / 255)
    with torch.no_grad():
        keep, restore = (torch.from_numpy(ids)[None] for ids in (mask.ids_keep, mask.ids_restore))
        pred = network.decode(network.encode(image, keep), restore)
        loss = network.loss(image, pred, torch.from_numpy(mask.hidden)[None])
    assert setting["norm_pixel_loss"]["mean"] == pytest.approx(float(loss), abs=1e-3)
    assert (
        setting["scores"]["model"]["norm_pixel_unexplained"]["mean"] <= 1 < setting["norm_pixel_loss"]["mean"]
    )


def test_the_agreement_gives_the_loss_of_the_papers_target_at_the_best_scale() -> None:
    original, hidden = _picture()
    candidate = cv2.GaussianBlur(original, (0, 0), 4).astype(np.float32)
    network = MAE(MAEConfig.from_dict({**SIZES["debug"].to_dict(), "target": "norm_pixel"}))
    places = torch.from_numpy(hidden[::16, ::16].reshape(-1))

    def patches(image: Floats) -> torch.Tensor:
        return network.target(network.normalise(torch.from_numpy(image).permute(2, 0, 1)[None]))[0, places]

    true, other = patches(original), patches(candidate)
    losses = [float((scale * other - true).square().mean()) for scale in np.linspace(0, 1, 201)]
    r = norm_pixel_agreement(original, candidate, hidden, 16)
    assert 1 - r * r == pytest.approx(min(losses), abs=5e-3)


def test_the_true_means_are_the_means_of_the_hidden_patches() -> None:
    original, hidden = _picture()
    filled = FILLS["true_means"](original, hidden, 16)
    np.testing.assert_allclose(filled[20, 20], original[16:32, 16:32].mean(axis=(0, 1)), rtol=1e-5)
    assert np.array_equal(filled[~hidden], original[~hidden])


def test_a_blurred_picture_is_less_sharp_than_the_photo_and_a_flat_one_not_at_all() -> None:
    original, hidden = _picture()
    blurred = cv2.GaussianBlur(original, (0, 0), 3).astype(np.float32)
    assert sharpness(original, original, hidden, 16) == pytest.approx(1)
    assert sharpness(original, blurred, hidden, 16) < 0.95
    assert sharpness(original, np.full_like(original, 0.5), hidden, 16) == 0


def test_steps_at_borders_are_counted_there_and_nowhere_else() -> None:
    original, hidden = _picture()
    flat = np.full_like(original, 0.5)
    assert border_steps(flat, hidden, 16) == 0
    raised = np.where(hidden[..., None], flat + np.float32(0.25), flat)
    assert border_steps(raised, hidden, 16) == pytest.approx(0.25)
    lined = flat.copy()
    lined[:, 40] = 1  # inside visible patches
    lined[32] = 1  # at a border of two hidden patches, and of two visible ones
    assert border_steps(lined, hidden, 16) == 0
    assert border_steps(flat, np.zeros_like(hidden), 16) == 0


def test_fine_detail_is_power_above_half_nyquist_in_hidden_patches() -> None:
    _, hidden = _picture()
    x = np.arange(64)

    def waves(cycles: float) -> Floats:
        wave = 0.5 + 0.25 * np.sin(2 * np.pi * cycles * x)
        return np.broadcast_to(wave[None, :, None], (64, 64, 3)).astype(np.float32)

    assert fine_detail(waves(0.4), hidden, 16) == pytest.approx(0.25**2 / 2, rel=0.1)  # all of its variance
    assert fine_detail(waves(0.06), hidden, 16) < 1e-3 * fine_detail(waves(0.4), hidden, 16)
    painted = np.where(hidden[..., None], np.float32(0.5), waves(0.4))
    assert fine_detail(painted, hidden, 16) == pytest.approx(0, abs=1e-9)


def test_a_perfect_model_scores_perfectly_and_every_fill_has_a_row() -> None:
    original, hidden = _picture()
    rows = figures(original, original, hidden, 16)
    assert rows.shape == (1 + len(FILLS), len(METRICS))
    assert rows[0, 0] == 0
    assert (rows[1:, 0] > 0).all()


def test_intervals_hold_the_mean_and_shrink_with_the_number_of_photos() -> None:
    values = np.random.default_rng(1).normal(size=400)
    widths = []
    for count in (25, 400):
        draws, _ = resampled(values[:count])
        low, high = np.percentile(draws, [2.5, 97.5])
        assert low < values[:count].mean() < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_a_kept_answer_is_not_taken_for_one_of_other_photos_or_masks(
    reconstructor: Reconstructor, tmp_path: Path
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(photo(80, 72, number)))
    photos = Photos.open([tmp_path])
    asked: dict[str, Any] = {"strategies": ["random"], "ratios": ["0.75"], "limit": 2}
    first = answer(reconstructor, photos, tmp_path / "out", **asked)
    assert answer(reconstructor, photos, tmp_path / "out", **asked) == first
    for change in ({"limit": 3}, {"ratios": ["0.5"]}, {"strategies": ["block"]}):
        with pytest.raises(DataError, match="other weights, photos or settings"):
            answer(reconstructor, photos, tmp_path / "out", **asked | change)
    with pytest.raises(DataError, match="other weights, photos or settings"):
        answer(reconstructor, Photos(photos.entries[1:]), tmp_path / "out", **asked)
    with pytest.raises(RecipeError, match="limit is 0; it must be a whole number, at least 1"):
        answer(reconstructor, photos, tmp_path / "out", **asked | {"limit": 0})


def test_a_broken_photo_is_named(reconstructor: Reconstructor, tmp_path: Path) -> None:
    (tmp_path / "whole.png").write_bytes(encoded(photo(80, 72)))
    (tmp_path / "broken.jpg").write_bytes(encoded(photo(80, 72), "JPEG")[:700])
    with pytest.raises(DataError, match=r"broken\.jpg in .* cannot be used: image is damaged"):
        evaluate(reconstructor, Photos.open([tmp_path]))


def test_one_command_measures_several_masks_and_writes_a_report(
    debug_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.png").write_bytes(encoded(photo(80, 72, number)))
    arguments = ["evaluate", "reconstruct", str(debug_file), "--data", str(photos), "--device", "cpu"]
    arguments += ["--ratio", "0.5,0.75", "--strategy", "random,block", "--out", str(out), "--json"]
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [(row["strategy"], row["ratio"]) for row in facts["settings"]] == [
        ("random", 0.5), ("random", 0.75), ("block", 0.5), ("block", 0.75),
    ]  # fmt: skip
    assert facts["view"] == "pixels"
    assert "norm_pixel_loss" not in facts["settings"][0], "of no target that this model has"
    for row in facts["settings"]:
        for scores in row["scores"].values():
            assert all(value["low"] <= value["mean"] <= value["high"] for value in scores.values())
            assert scores.keys() >= {"seam_ratio", "fine_detail"}
    assert facts == json.loads((out / "reconstruct-debug.json").read_text())
    sheet = load_square((out / "reconstruct-debug-sheet.png").read_bytes(), 32)
    assert sheet.std() > 0
    assert (
        "Navier" in (out / "reconstruct-debug.md").read_text()
        or "navier_stokes" in (out / "reconstruct-debug.md").read_text()
    )
    assert (out / "reconstruct-debug.html").read_text().count("<svg") == 4
    (out / "reconstruct-debug.html").unlink()
    assert main(arguments[:-1]) == 0
    assert not (out / "reconstruct-debug.html").exists(), "the answer was kept, not made again"
    assert "at least 1 dB above interpolation" in capsys.readouterr().out
