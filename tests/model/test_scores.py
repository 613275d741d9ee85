"""Figures against scikit-image and plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from model.scores import Floats, interpolate, plain_fill, score
from tests.pictures import photo


def _picture(seed: int = 0) -> Floats:
    return photo(96, 96, seed).astype(np.float32) / np.float32(255)


def _hidden() -> np.ndarray:
    hidden = np.zeros((96, 96), dtype=bool)
    hidden[16:48, 32:64] = True
    hidden[0:16, 80:96] = True
    return hidden


def test_ssim_over_hidden_pixels_equals_scikit_image() -> None:
    original, hidden = _picture(), _hidden()
    other = np.where(hidden[..., None], _picture(1), original)
    _, full = structural_similarity(  # type: ignore[no-untyped-call]
        original,
        other,
        channel_axis=2,
        data_range=1.0,
        gaussian_weights=True,
        use_sample_covariance=False,
        full=True,
    )
    assert score(original, [other], hidden)[0].ssim == pytest.approx(float(full[hidden].mean()), abs=2e-5)


def test_errors_are_means_over_hidden_pixels() -> None:
    original, hidden = _picture(), _hidden()
    other = original.copy()
    other[hidden] += np.float32(0.1)
    found = score(original, [other], hidden)[0]
    assert found.mse == pytest.approx(0.01, rel=1e-4)
    assert found.psnr_db == pytest.approx(20, abs=1e-3)
    assert found.colour_error_percent == pytest.approx(10, rel=1e-4)
    assert found.nmse == pytest.approx(0.01 * np.mean(1 / np.square([0.229, 0.224, 0.225])), rel=1e-4)


def test_a_perfect_fill_scores_no_error() -> None:
    found = score(_picture(), [_picture()], _hidden())[0]
    assert (found.mse, found.psnr_db) == (0, 100)
    assert found.ssim == pytest.approx(1, abs=1e-5)
    assert score(_picture(), [_picture() + np.float32(1e-6)], _hidden())[0].psnr_db == 100, (
        "the same to the eye"
    )


def test_several_candidates_score_as_each_alone() -> None:
    original, hidden = _picture(), _hidden()
    candidates = [plain_fill(original, hidden), interpolate(original, hidden)]
    together = score(original, candidates, hidden)
    assert together == [score(original, [candidate], hidden)[0] for candidate in candidates]


def test_a_plain_fill_is_the_mean_of_the_visible_pixels() -> None:
    original, hidden = _picture(), _hidden()
    filled = plain_fill(original, hidden)
    np.testing.assert_allclose(filled[hidden][0], original[~hidden].mean(axis=0), rtol=1e-5)
    assert np.array_equal(filled[~hidden], original[~hidden])


def test_interpolation_continues_a_ramp_exactly() -> None:
    ramp = np.repeat(np.linspace(0, 1, 96, dtype=np.float32)[None, :, None], 96, axis=0).repeat(3, axis=2)
    hidden = np.zeros((96, 96), dtype=bool)
    hidden[32:64, 32:64] = True
    np.testing.assert_allclose(interpolate(ramp, hidden), ramp, atol=1e-5)


def test_interpolation_starts_from_what_touches_the_hole_on_every_side() -> None:
    original, hidden = np.zeros((96, 96, 3), dtype=np.float32), np.zeros((96, 96), dtype=bool)
    hidden[32:64, 32:64] = True
    original[64, 32:64] = 1
    for turns in range(4):
        filled = interpolate(np.rot90(original, turns).copy(), hidden)
        assert np.rot90(filled, -turns)[63, 48, 0] > 0.9


def test_interpolation_takes_the_nearest_outside_the_hull() -> None:
    original, hidden = _picture(), np.ones((96, 96), dtype=bool)
    hidden[40:56, 40:56] = False
    filled = interpolate(original, hidden)
    assert np.isfinite(filled).all()
    np.testing.assert_allclose(filled[0, 0], original[40, 40])
