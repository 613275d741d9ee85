"""What a person is told about a weight file."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.__main__ import main
from model.checkpoints import registry, shapes, store
from model.checkpoints.convert import convert
from model.checkpoints.files import RawFile
from model.checkpoints.report import inspect
from model.checkpoints.shapes import Given
from model.config import SIZES, MAEConfig, Target
from model.errors import CheckpointError
from model.loading import report_beside
from model.network import MAE
from tests.pictures import encoded


def _encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(("decoder_", "mask_token"))}


def test_what_lies_beside_the_shipped_weights_is_their_report() -> None:
    path = registry.shipped()
    told = inspect(path).to_dict()
    kept = report_beside(path, told["digest"])
    assert kept, f"run: python -m model prove {path}"
    assert kept.pop("path") == path.name
    assert kept.pop("config").items() <= told["config"].items(), "later fields have their defaults"
    assert json.loads(json.dumps(told)).items() >= kept.items()


def test_our_own_file_is_ready(debug_file: Path) -> None:
    report = inspect(debug_file)
    assert (report.layout, report.content, report.size, report.target) == ("Unmask", "full", "debug", "pixel")
    assert report.usable_for == ("reconstruct", "evaluate", "serve", "convert")
    assert report.advice == "Ready to reconstruct pictures."
    assert report.digest == store.read(debug_file).digest


def test_an_encoder_is_told_which_file_to_use_instead(tmp_path: Path, debug_network: MAE) -> None:
    path = tmp_path / "mae_pretrain_vit_base.pth"
    torch.save({"model": _encoder(debug_network.state_dict())}, path)
    report = inspect(path, Given(heads=2))
    assert (report.content, report.target) == ("encoder", None)
    assert report.usable_for == ("evaluate", "convert")
    assert "mae_visualize_vit_*.pth" in report.advice
    assert not report.missing
    assert "no decoder" in "\n".join(report.lines())


def test_a_classifier_is_good_for_nothing_here(tmp_path: Path, debug_network: MAE) -> None:
    state = {k: v for k, v in _encoder(debug_network.state_dict()).items() if not k.startswith("norm.")}
    state |= {"fc_norm.weight": torch.ones(32), "fc_norm.bias": torch.zeros(32)}
    torch.save(
        {"model": {**state, "head.weight": torch.ones(9, 32), "head.bias": torch.ones(9)}}, tmp_path / "c.pth"
    )
    report = inspect(tmp_path / "c.pth", Given(heads=2))
    assert (report.content, report.usable_for) == ("classifier", ())
    assert not report.missing
    assert not report.left_over
    assert "cannot reconstruct" in report.advice


def test_missing_and_left_over_tensors_are_named(tmp_path: Path, debug_network: MAE) -> None:
    state = debug_network.state_dict()
    del state["norm.bias"]
    torch.save({"model": {**state, "wings": torch.ones(1)}}, tmp_path / "a.pth")
    report = inspect(tmp_path / "a.pth", Given(target="pixel"))
    assert (report.missing, report.left_over, report.usable_for) == (("norm.bias",), ("wings",), ())
    assert "Do not use" in report.advice


def test_what_stands_in_the_way_is_a_note(tmp_path: Path, debug_network: MAE) -> None:
    debug_network.norm.bias.data[0] = float("nan")
    torch.save({"model": debug_network.state_dict()}, tmp_path / "a.pth")
    report = inspect(tmp_path / "a.pth")
    assert any("norm.bias holds numbers that are not finite" in note for note in report.notes)
    assert report.usable_for == ()


def test_an_unknown_target_is_said_and_how_to_find_out(tmp_path: Path, debug_network: MAE) -> None:
    torch.save({"model": debug_network.state_dict()}, tmp_path / "a.pth")
    report = inspect(tmp_path / "a.pth")
    assert report.target is None
    assert "--photos" in report.advice
    assert report.usable_for == ("evaluate", "convert")


def test_normalised_pixels_come_with_a_warning(tmp_path: Path, debug_network: MAE) -> None:
    torch.save({"model": debug_network.state_dict()}, tmp_path / "a.pth")
    report = inspect(tmp_path / "a.pth", Given(target="norm_pixel"))
    assert (report.target, report.target_source) == ("norm_pixel", "you")
    assert "brightness and contrast" in report.advice


@pytest.mark.parametrize("target", ["pca", "tokens"])
def test_what_predicts_no_pixels_is_not_called_good_for_pictures(tmp_path: Path, target: Target) -> None:
    store.write(tmp_path / "m.safetensors", MAE(replace(SIZES["debug"], target=target)), name="m", card={})
    report = inspect(tmp_path / "m.safetensors")
    assert report.usable_for == ("evaluate", "convert")
    assert "no picture" in report.advice


@pytest.mark.parametrize("target", ["norm_pixel_stats", "pca"])
def test_an_encoder_is_sound_whatever_its_decoder_predicted(tmp_path: Path, target: Target) -> None:
    network = MAE(replace(SIZES["debug"], target=target))
    store.write(tmp_path / "f.safetensors", network, name="f", card={})
    report = inspect(convert(tmp_path / "f.safetensors", tmp_path / "e.safetensors", to="timm"))
    assert (report.content, report.target, report.notes) == ("encoder", None, ())
    assert report.usable_for == ("evaluate", "convert")


def test_what_looks_at_other_channels_is_for_arrays(tmp_path: Path) -> None:
    store.write(tmp_path / "m.safetensors", MAE(replace(SIZES["debug"], channels=5)), name="m", card={})
    report = inspect(tmp_path / "m.safetensors")
    assert report.usable_for == ("reconstruct", "convert")
    assert "arrays" in report.advice


@pytest.mark.parametrize("target", ["pixel", "norm_pixel", None])
def test_an_unknown_target_is_measured_on_photos(
    tmp_path: Path, debug_network: MAE, target: str | None
) -> None:
    """A network that always paints one patch; photos of which that is the raw, or the normalised, truth."""
    pattern = np.linspace(-20, 20, 16 * 16 * 3).reshape(16, 16, 3)
    rng = np.random.default_rng(0)
    for number in range(3):
        # One brightness everywhere, or another for each patch: only contrast is left to know.
        level = np.full((4, 4), 200.0) if target == "pixel" else rng.uniform(30, 220, (4, 4))
        tile = np.zeros_like(pattern) if target == "pixel" else pattern
        photo = level.repeat(16, 0).repeat(16, 1)[..., None] + np.tile(tile, (4, 4, 1))
        (tmp_path / f"{number}.png").write_bytes(encoded(photo.round().astype(np.uint8)))
    truth = (
        torch.from_numpy(tile if target else rng.normal(size=pattern.shape)).float().permute(2, 0, 1)[None]
        / 255
    )
    scaled = truth / debug_network.image_std
    if target == "pixel":
        scaled = debug_network.normalise(torch.full((1, 3, 16, 16), 200 / 255))
    patch = debug_network.patchify(scaled)[0, 0]
    if target != "pixel":
        patch = (patch - patch.mean()) / patch.std()
    debug_network.decoder_pred.weight.data.zero_()
    debug_network.decoder_pred.bias.data.copy_(patch)
    torch.save({"model": debug_network.state_dict()}, tmp_path / "a.pth")
    report = inspect(tmp_path / "a.pth", photos=tmp_path)
    assert report.target == target
    if target:
        assert "a guess, measured on 3 photos" in str(report.target_source)
        other: Target = "pixel" if target == "norm_pixel" else "norm_pixel"
        stated = inspect(tmp_path / "a.pth", Given(target=other), photos=tmp_path)
        assert stated.target == other
        assert any(f"Not what was measured: {target}, a guess" in note for note in stated.notes)
    else:
        assert any("undecided, measured on 3 photos: pixel leaves" in note for note in report.notes)


@pytest.mark.parametrize("inside", [None, (), ("album.jpg/", "._cat.jpg", "notes.txt")])
def test_a_folder_without_photos_is_refused(
    tmp_path: Path, debug_file: Path, inside: tuple[str, ...] | None
) -> None:
    folder = tmp_path / "photos"
    for name in inside or ():
        (folder / name).mkdir(parents=True) if name.endswith("/") else (folder / name).touch()
    if inside == ():
        folder.mkdir()
    with pytest.raises(CheckpointError, match="not a folder with photos"):
        inspect(debug_file, photos=folder)


@pytest.mark.parametrize(
    ("channels", "says"), [(1, "measured on 1 photos"), (5, "do not have its 5 channels")]
)
def test_a_model_of_other_channels_is_measured_where_photos_have_them(
    tmp_path: Path, channels: int, says: str
) -> None:
    (tmp_path / "a.webp").write_bytes(encoded(np.full((64, 64, 3), 90, np.uint8), "WEBP"))
    torch.save({"model": MAE(replace(SIZES["debug"], channels=channels)).state_dict()}, tmp_path / "a.pth")
    report = inspect(tmp_path / "a.pth", Given(heads=2, decoder_heads=2), photos=tmp_path)
    assert says in " ".join((*report.notes, str(report.target_source)))


# --- what is assumed, and who is believed ---------------------------------------------------------------------------


def test_heads_told_by_the_width_alone_are_said_to_be_assumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = MAEConfig(width=384, depth=1, heads=12, decoder_width=512, decoder_depth=1, decoder_heads=16)
    torch.save({"model": MAE(small).state_dict()}, tmp_path / "a.pth")
    assert any("6 heads are assumed" in note for note in inspect(tmp_path / "a.pth").notes)
    checkpoint = store.read(tmp_path / "a.pth", Given(target="pixel"))
    assert any("6 heads are assumed" in note for note in checkpoint.notes)
    assert "6 heads are assumed" in caplog.text, "whoever only reconstructs reads it too"
    told = store.read(tmp_path / "a.pth", Given(target="pixel", heads=12))
    assert (told.network.config, told.notes) == (small, ())


@pytest.mark.parametrize("option", ["input_size", "img_size"])
def test_the_side_of_pictures_comes_from_training_options_or_is_said_to_be_assumed(
    tmp_path: Path, debug_network: MAE, option: str
) -> None:
    state = {key: value for key, value in debug_network.state_dict().items() if "pos_embed" not in key}
    heads = Given(heads=2, decoder_heads=2)
    torch.save({"model": state, "args": argparse.Namespace(**{option: 64})}, tmp_path / "a.pth")
    told = inspect(tmp_path / "a.pth", heads)
    assert told.config
    assert told.config["image_size"] == 64
    assert not told.notes
    torch.save({"model": state}, tmp_path / "b.pth")
    assert any("224 pixels are assumed" in note for note in inspect(tmp_path / "b.pth", heads).notes)


def test_the_caller_overrules_another_program_and_not_our_own_config(
    tmp_path: Path, debug_network: MAE, debug_file: Path
) -> None:
    options = argparse.Namespace(norm_pix_loss=True)
    torch.save({"model": debug_network.state_dict(), "args": options}, tmp_path / "a.pth")
    report = inspect(tmp_path / "a.pth", Given(target="pixel"))
    assert (report.target, report.target_source) == (
        "pixel", "you, though the training options stored in the file says norm_pixel",
    )  # fmt: skip
    assert store.read(tmp_path / "a.pth", Given(target="pixel")).network.config.target == "pixel"
    for given in (Given(target="norm_pixel"), Given(heads=4), Given(decoder_heads=1)):
        with pytest.raises(CheckpointError, match="its own config says") as caught:
            inspect(debug_file, given) if given.target else store.read(debug_file, given)
        assert caught.value.code == "checkpoint-contradiction"


def test_heads_that_contradict_a_config_are_taken_and_said(tmp_path: Path, debug_file: Path) -> None:
    folder = convert(debug_file, tmp_path / "h", to="huggingface")
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")  # without our config
    report = inspect(folder, Given(heads=4))
    assert report.config
    assert report.config["heads"] == 4
    assert any(
        "config.json says 2 heads in the encoder; the 4 that were given" in note for note in report.notes
    )


def test_a_name_that_only_begins_like_a_released_one_says_nothing(tmp_path: Path) -> None:
    house = store.skeleton(SIZES["vit_base"]).state_dict()
    for name, target in (
        ("mae_visualize_vit_base.pth", "pixel"),
        ("mae_pretrain_vit_base_full.pth", "norm_pixel"),
        ("mae_pretrain_vit_base_mydata.pth", None),
        ("mae_pretrain_vit_large.pth", None),
    ):
        raw = RawFile(tmp_path / name, house, "", 0)
        assert shapes.find_target(raw, Given())[0] == target, name
        assert shapes.is_released(raw) == (target is not None)


def test_the_command_prints_lines_or_json(debug_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(debug_file)]) == 0
    assert "layout      Unmask" in capsys.readouterr().out
    assert main(["inspect", str(debug_file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["content"] == "full"


def test_the_command_refuses_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.pth").write_bytes(b"no weights")
    assert main(["inspect", str(tmp_path / "a.pth")]) == 2
    assert "is neither a safetensors file nor a pickle of tensors" in capsys.readouterr().err


def test_the_command_converts_and_says_where(
    tmp_path: Path, debug_network: MAE, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(debug_network.state_dict(), tmp_path / "a.pth")
    out = tmp_path / "b.safetensors"
    assert main(["convert", str(tmp_path / "a.pth"), str(out), "--to", "unmask", "--target", "pixel"]) == 0
    assert str(out) in capsys.readouterr().out
    checkpoint = store.read(out)
    assert (checkpoint.name, checkpoint.network.config) == ("a", SIZES["debug"])
    assert checkpoint.card["licence"] == "not stated"


def test_an_encoder_cannot_be_converted_to_a_full_model(tmp_path: Path, debug_file: Path) -> None:
    encoder = convert(debug_file, tmp_path / "e.safetensors", to="timm")
    assert main(["convert", str(encoder), str(tmp_path / "x"), "--to", "huggingface"]) == 2
    assert not (tmp_path / "x").exists()
