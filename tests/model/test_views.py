"""Pictures of normalised pixels: what each view knows, and what it says of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model import Options
from model.checkpoints import store
from model.config import SIZES, MAEConfig
from model.errors import CheckpointError, MaskError
from model.network import MAE
from model.reconstruct import Reconstructor, load
from model.result import Job, Prediction, Reconstruction
from model.views import Colours, contrast, error_map, uncertainty_map
from tests.pictures import encoded, photo

PICTURE = encoded(photo())


@pytest.fixture
def normalised(tmp_path: Path) -> Reconstructor:
    network = MAE(MAEConfig(**{**SIZES["debug"].to_dict(), "target": "norm_pixel"}))
    network.init_weights(torch.Generator().manual_seed(0))
    store.write(tmp_path / "n.safetensors", network, name="n", card={})
    return load(tmp_path / "n.safetensors", "cpu")


def _perfect(reconstructor: Reconstructor, view: str, seed: int = 1, ratio: str = "0.75") -> Reconstruction:
    """The result if the network predicted every patch's contrast exactly."""
    job = reconstructor.prepare(PICTURE, Options(seed=seed, view=view, ratio=ratio))
    picture = reconstructor._as_viewed(_truth(reconstructor, job), job, job.mask)
    return reconstructor.finish(job, Prediction(picture, 0.0))


def _truth(reconstructor: Reconstructor, job: Job) -> NDArray[np.float32]:
    network = MAE(reconstructor._config)
    image = network.normalise(torch.from_numpy(job.pixels.copy()).permute(2, 0, 1)[None] / 255)
    truth: NDArray[np.float32] = network.unpatchify(network.target(image))[0].permute(1, 2, 0).numpy()
    return truth


def test_statistics_are_those_of_the_training_target(normalised: Reconstructor) -> None:
    """Taken off by the network's own target and put back here, the photo is whole again."""
    job = normalised.prepare(PICTURE, Options(seed=1))
    original = job.pixels.astype(np.float32) / np.float32(255)
    upper = slice(32)  # the two directions of a picture are told apart
    statistics = Colours().statistics(original[upper], 16)
    assert statistics.shape == (2, 4, 2)
    back = Colours().denormalise(_truth(normalised, job)[upper], statistics)
    np.testing.assert_allclose(back, original[upper], atol=2e-6)


def test_beyond_black_and_white_is_black_and_white() -> None:
    beyond = np.array([[-9, 9]], dtype=np.float32)[..., None].repeat(3, axis=-1)
    assert Colours().shown(beyond)[0, :, 0].tolist() == [0, 1]
    assert contrast(beyond)[0, :, 0].tolist() == [0, 1]


def test_the_view_is_estimated_unless_another_is_asked_for(normalised: Reconstructor) -> None:
    answer = normalised(PICTURE, Options(seed=1)).to_dict()
    assert answer["view"] == "estimated"
    assert "interpolated from the visible patches" in answer["view_note"]


def test_the_oracle_says_that_it_uses_the_answer(normalised: Reconstructor) -> None:
    result = _perfect(normalised, "oracle")
    assert result.to_dict()["view"] == "oracle"
    assert "Uses the answer" in result.to_dict()["view_note"]
    assert result.metrics["mse"] < 1e-9


def test_an_estimate_lies_between_the_oracle_and_a_plain_fill(normalised: Reconstructor) -> None:
    result = _perfect(normalised, "estimated", ratio="0.5")
    assert 1e-6 < result.metrics["mse"] < result.metrics["plain_fill"]["mse"]


@pytest.mark.parametrize("model", ["reconstructor", "normalised"])
def test_the_view_of_its_own_never_looks_at_hidden_pixels(model: str, request: pytest.FixtureRequest) -> None:
    own = request.getfixturevalue(model)
    job = own.prepare(PICTURE, Options(seed=1))
    hidden = job.mask.hidden.reshape(4, 4).repeat(16, 0).repeat(16, 1)
    other = job.pixels.copy()
    other[hidden] = 255 - other[hidden]
    changed = replace(job, pixels=other)
    before, after = own.run([job])[0], own.run([changed])[0]
    assert np.array_equal(before.pixels, after.pixels)


def test_the_oracle_does_look_at_them(normalised: Reconstructor) -> None:
    job = normalised.prepare(PICTURE, Options(seed=1, view="oracle"))
    other = replace(job, pixels=255 - job.pixels // 2)
    assert not np.array_equal(normalised.run([job])[0].pixels, normalised.run([other])[0].pixels)


def test_contrast_alone_is_compared_with_the_photos_contrast(normalised: Reconstructor) -> None:
    result = _perfect(normalised, "normalised")
    assert result.metrics["mse"] < 1e-9
    patches = result.prediction.pixels.reshape(4, 16, 4, 16, 3)
    assert np.abs(patches.mean(axis=(1, 3, 4)) - 0.5).max() < 0.05, "every patch at mean grey"
    assert np.array_equal(result.panel("original"), result.job.pixels), "the photo itself stays a panel"


def test_contrast_alone_is_laid_over_the_whole_box_at_full_size(normalised: Reconstructor) -> None:
    pixels = photo(90, 70)
    result = normalised(encoded(pixels), Options(seed=1, crop=(3, 5, 64), view="normalised"))
    full = result.full_size(encoded(pixels))
    assert np.array_equal(full[5:69, 3:67], result.panel("pasted")), "visible patches are no photo either"
    assert np.array_equal(full[:5], pixels[:5])


def test_one_visible_patch_is_enough_for_an_estimate(normalised: Reconstructor) -> None:
    result = normalised(PICTURE, Options(hidden_count=15, seed=2))
    assert np.isfinite(result.prediction.pixels).all()


def test_a_flat_picture_stays_finite_in_every_view(normalised: Reconstructor) -> None:
    flat = encoded(np.full((64, 64, 3), 90, dtype=np.uint8))
    for view in normalised.views:
        result = normalised(flat, Options(seed=1, view=view))
        assert np.isfinite(result.prediction.pixels).all()
        assert np.isfinite(result.metrics["nmse"])


def test_jobs_of_several_views_run_together_as_alone(normalised: Reconstructor) -> None:
    jobs = [normalised.prepare(PICTURE, Options(seed=1, view=view)) for view in normalised.views]
    for job, prediction in zip(jobs, normalised.run(jobs), strict=True):
        np.testing.assert_allclose(prediction.pixels, normalised.run([job])[0].pixels, atol=1e-5)


@pytest.mark.parametrize("view", ["estimated", "oracle", "sideways"])
def test_a_pixel_model_has_its_pixels_alone(reconstructor: Reconstructor, view: str) -> None:
    with pytest.raises(MaskError, match="debug offers pixels") as caught:
        reconstructor(PICTURE, Options(view=view))
    assert (caught.value.code, caught.value.field) == ("view", "view")
    assert reconstructor(PICTURE, Options(view="pixels")).to_dict()["view"] == "pixels"


def test_a_normalised_model_is_never_shown_as_pixels(normalised: Reconstructor) -> None:
    with pytest.raises(MaskError, match="estimated, normalised, oracle"):
        normalised(PICTURE, Options(view="pixels"))
    assert normalised.describe()["views"] == ["estimated", "normalised", "oracle"]


# --- a model that tells mean and deviation too ----------------------------------------------------------


@pytest.fixture
def telling(tmp_path: Path) -> Reconstructor:
    network = MAE(MAEConfig(**{**SIZES["debug"].to_dict(), "target": "norm_pixel_stats"}))
    network.init_weights(torch.Generator().manual_seed(0))
    store.write(tmp_path / "telling.safetensors", network, name="telling", card={})
    return load(tmp_path / "telling.safetensors", "cpu")


def _all_told(reconstructor: Reconstructor, job: Job) -> NDArray[np.float32]:
    """What a perfect network predicts: ``[L, P*P*3 + 2]``."""
    network = MAE(MAEConfig(**{**SIZES["debug"].to_dict(), "target": "norm_pixel_stats"}))
    image = network.normalise(torch.from_numpy(job.pixels.copy()).permute(2, 0, 1)[None] / 255)
    target = network.target(image)
    assert float(network.loss(image, target, torch.from_numpy(job.mask.hidden)[None])) == 0
    told: NDArray[np.float32] = target[0].numpy()
    return told


def test_told_mean_and_deviation_make_the_photo_whole_without_a_look_at_it(telling: Reconstructor) -> None:
    job = telling.prepare(PICTURE, Options(seed=1, view="predicted"))
    told = _all_told(telling, job)
    assert told.shape == (16, 16 * 16 * 3 + 2)
    blind = replace(job, pixels=np.where(_hidden_pixels(job), 0, job.pixels).astype(np.uint8))
    shown = telling._shown(told, blind, job.mask)
    np.testing.assert_allclose(shown, job.pixels / 255, atol=1e-5)


def test_a_told_deviation_beyond_all_pictures_stays_finite(telling: Reconstructor) -> None:
    job = telling.prepare(PICTURE, Options(seed=1, view="predicted"))
    told = _all_told(telling, job)
    told[:, -1] = 200  # its exponential is no float32
    assert np.isfinite(telling._shown(told, job, job.mask)).all()


def _hidden_pixels(job: Job) -> NDArray[np.bool_]:
    return job.mask.hidden.reshape(4, 4).repeat(16, 0).repeat(16, 1)[..., None]


def test_the_predicted_view_never_looks_at_hidden_pixels(telling: Reconstructor) -> None:
    job = telling.prepare(PICTURE, Options(seed=1, view="predicted"))
    changed = replace(job, pixels=np.where(_hidden_pixels(job), 255 - job.pixels, job.pixels))
    assert np.array_equal(telling.run([job])[0].pixels, telling.run([changed])[0].pixels)


def test_a_statistics_error_counts_beside_the_pixels(telling: Reconstructor) -> None:
    job = telling.prepare(PICTURE, Options(seed=1))
    network = MAE(MAEConfig(**{**SIZES["debug"].to_dict(), "target": "norm_pixel_stats"}))
    image = network.normalise(torch.from_numpy(job.pixels.copy()).permute(2, 0, 1)[None] / 255)
    off = network.target(image)
    off[..., -2] += 1
    hidden = torch.from_numpy(job.mask.hidden)[None]
    assert float(network.loss(image, off, hidden)) == pytest.approx(0.5)


def test_only_a_model_that_tells_them_has_the_predicted_view(
    telling: Reconstructor, normalised: Reconstructor
) -> None:
    assert telling.views == ("predicted", "estimated", "normalised", "oracle")
    assert "predicted by the model" in telling(PICTURE, Options(view="predicted")).to_dict(())["view_note"]
    with pytest.raises(MaskError, match="predicted"):
        normalised(PICTURE, Options(view="predicted"))


def test_a_model_of_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    network = MAE(MAEConfig(**{**SIZES["debug"].to_dict(), "target": "pca"}))
    store.write(tmp_path / "pca.safetensors", network, name="pca", card={})
    with pytest.raises(CheckpointError, match="no picture to show"):
        load(tmp_path / "pca.safetensors", "cpu")


def test_an_error_has_the_colour_that_its_legend_says() -> None:
    original = np.full((4, 4, 3), 0.4, dtype=np.float32)
    reconstruction, hidden = original.copy(), np.ones((4, 4), dtype=bool)
    # In one of three colours, so that the mean over them is a third of it: 0, 10, 24 and 40 %.
    reconstruction[0, :, 0] += np.array([0, 0.3, 0.72, 1.2], dtype=np.float32)
    hidden[3] = False
    shown = error_map(original, reconstruction, hidden)
    assert shown[0].tolist() == [[255, 255, 255], [250, 190, 170], [200, 50, 40], [80, 0, 10]]
    assert shown[3].tolist() == [[217, 217, 217]] * 4, "what was visible is faded to a quarter"


def test_a_spread_has_the_colour_that_its_legend_says() -> None:
    original = np.full((2, 10, 3), 0.4, dtype=np.float32)
    spread = np.array([[0.0, 0.05, 0.12, 0.2, np.nan]], dtype=np.float32)
    shown = uncertainty_map(original, spread)[0, ::2].tolist()  # a corner of each patch
    assert shown == [[255, 255, 255], [170, 200, 245], [45, 95, 190], [10, 15, 80], [217, 217, 217]]
