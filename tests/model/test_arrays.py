"""Arrays of any number of channels, for models that no picture file fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model import Options, arrays
from model.__main__ import main
from model.checkpoints import store
from model.checkpoints.store import Checkpoint
from model.config import SIZES, MAEConfig
from model.errors import CheckpointError, ImageError, MaskError
from model.masking import sample_mask
from model.network import MAE
from model.reconstruct import load
from tests.pictures import encoded, photo


def _model(**changes: Any) -> Checkpoint:
    network = MAE(MAEConfig(**{**SIZES["debug"].to_dict(), "channels": 5, **changes})).eval()
    network.init_weights(torch.Generator().manual_seed(0))
    return Checkpoint(network, "five", "", {})


def _array(height: int = 64, width: int = 96, channels: int = 5) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(size=(height, width, channels)).astype(np.float32)


def _with(no_data: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    array = _array().astype(np.float64)
    array[:16, :16] = no_data
    return array


def test_hidden_patches_of_an_array_are_what_the_network_predicts_and_the_rest_stays() -> None:
    model, array = _model(), _array()
    result = arrays.repaint(model, array, Options(seed=3))
    (mask,) = result.masks
    assert mask.grid == (4, 6)
    image = torch.from_numpy(array).permute(2, 0, 1)[None]
    ids = (torch.from_numpy(of)[None] for of in (mask.ids_keep, mask.ids_restore))
    with torch.inference_mode():
        picture = model.network.unpatchify(model.network(image, *ids), mask.grid)[0].permute(1, 2, 0).numpy()
    hidden = np.kron(mask.hidden.reshape(mask.grid), np.ones((16, 16), dtype=bool))
    assert np.array_equal(result.values[hidden], picture[hidden])
    assert np.array_equal(result.values[~hidden], array[~hidden])
    assert result.nmse == pytest.approx(np.square(picture - array)[hidden].mean(), rel=1e-5)
    assert 0.9 < result.fill_nmse < 1.2


def test_an_array_may_have_hundreds_of_channels() -> None:
    result = arrays.repaint(_model(channels=200, decoder_width=32), _array(channels=200), Options(seed=3))
    assert result.values.shape == (64, 96, 200)
    assert 0.9 < result.fill_nmse < 1.2


def test_bytes_come_back_as_bytes_in_pixels() -> None:
    array = (40 * _array() + 120).clip(0, 255).astype(np.uint8)
    given = arrays.repaint(_model(), array, Options(seed=3))
    assert given.values.dtype == np.uint8
    config = _model().network.config
    mean, std = np.array(config.image_mean), np.array(config.image_std)
    floats = ((array / 255 - mean) / std).astype(np.float32)
    same = arrays.repaint(_model(), floats, Options(seed=3))
    back = (same.values * std + mean) * 255
    assert np.abs(back.clip(0, 255) - given.values).max() < 0.51
    assert given.nmse == pytest.approx(same.nmse, rel=1e-3)


def test_a_normalised_model_takes_mean_and_deviation_from_what_is_visible() -> None:
    array = 3 + 0.1 * _array()  # alike everywhere: the visible patches tell it exactly enough
    result = arrays.repaint(_model(target="norm_pixel"), array, Options(seed=3))
    hidden = np.kron(result.masks[0].hidden.reshape(4, 6), np.ones((16, 16), dtype=bool))
    assert result.values[hidden].mean() == pytest.approx(3, abs=0.1)


def test_every_patch_of_an_array_can_be_predicted_from_the_others() -> None:
    array = _array()
    result = arrays.repaint(_model(), array, Options(cover="complete", seed=1))
    assert len(result.masks) == 4
    assert (result.values != array).mean() > 0.99


@pytest.mark.parametrize("cover", ["single", "complete", "ensemble"])
def test_an_array_and_a_picture_of_one_photo_have_the_same_figures(tmp_path: Path, cover: str) -> None:
    network = _model(channels=3).network
    store.write(tmp_path / "three.safetensors", network, name="three", card={})
    pixels = photo(64, 64)
    options = Options(cover=cover, seed=1)
    metrics = load(tmp_path / "three.safetensors", "cpu")(encoded(pixels), options).metrics
    array = arrays.repaint(Checkpoint(network, "three", "", {}), np.asarray(pixels), options)
    assert array.fill_nmse == pytest.approx(metrics["plain_fill"]["nmse"], rel=1e-4)
    # Pictures end at black and white, and an array may not.
    assert array.nmse == pytest.approx(metrics["nmse"], rel=0.2)


@pytest.mark.parametrize(
    ("array", "code", "says", "hint"),
    [
        (_array(channels=3), "array-shape", "looks at 5 channels", r"\[H, W, 5\]"),
        (np.moveaxis(_array(), -1, 0), "array-shape", "looks at 5 channels", "moveaxis"),
        (_array(70), "array-shape", "4 to 40 whole patches of 16", "64 x 64"),
        (_array(32), "array-shape", "4 to 40 whole patches of 16", "64 x 64"),
        (_array().astype(np.int32), "array-type", "int32", "uint8"),
        (np.full((64, 64, 5), np.nan, dtype=np.float32), "array-finite", "not finite", "nan_to_num"),
        (_with(np.finfo(np.float32).min).astype(np.float32), "array-finite", "beyond 1e.09", "numpy.where"),
        (_with(1e39), "array-finite", "beyond 1e.09", "numpy.where"),
        (np.ma.masked_equal(_with(-9999.0), -9999.0), "array-finite", "masked values", "filled"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(array: Any, code: str, says: str, hint: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        arrays.repaint(_model(), array)
    assert caught.value.code == code
    assert hint.replace("\\", "") in caught.value.hint


def test_whatever_numpy_makes_an_array_of_is_taken_as_that_array() -> None:
    tensor: Any = torch.from_numpy(_array())
    given, same = (arrays.repaint(_model(), of, Options(seed=3)).values for of in (_array(), tensor))
    assert np.array_equal(given, same)


def test_what_is_about_pictures_is_refused_for_arrays() -> None:
    for options in (Options(view="pixels"), Options(fit="whole"), Options(crop="0,0,64")):
        with pytest.raises(MaskError, match="taken as it is"):
            arrays.repaint(_model(), _array(), options)
    with pytest.raises(CheckpointError, match="not pixels"):
        arrays.repaint(_model(target="pca"), _array())


def test_the_command_reads_an_array_and_writes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.write(tmp_path / "five.safetensors", _model().network, name="five", card={})
    np.save(tmp_path / "scene.npy", _array())
    line = ["reconstruct", str(tmp_path / "scene.npy"), "--weights", str(tmp_path / "five.safetensors")]
    assert main([*line, "--seed", "3", "--ratio", "0.5"]) == 0
    assert "hid 12 of 24 patches (random, seed 3); nmse" in capsys.readouterr().out
    assert np.load(tmp_path / "scene-unmasked.npy").shape == (64, 96, 5)
    assert main([*line, "--panels", "masked"]) == 2
    assert "--panels" in capsys.readouterr().err
    np.save(tmp_path / "scene.npy", np.array([{}]), allow_pickle=True)
    assert main(line) == 2
    assert "not a readable array" in capsys.readouterr().err


def test_standardised_patches_get_the_mean_and_the_deviation_of_the_visible_ones_back() -> None:
    rng = np.random.default_rng(0)
    patch, pred = rng.normal(3, 0.1, 80), torch.from_numpy(rng.normal(size=(1, 16, 80))).float()
    patches = torch.from_numpy(np.tile(patch, (1, 16, 1))).float()  # all alike, so that none is unknown
    whole = arrays._with_statistics(pred, patches, sample_mask("random", (4, 4), 12, 0))
    wanted = pred.numpy() * patch.std(ddof=1) + patch.mean()
    np.testing.assert_allclose(whole.numpy(), wanted, atol=1e-4)
