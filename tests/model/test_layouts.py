"""Every public layout in, ours and three others out, measured against the programs that own them."""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import re
import sys
import types
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model import Options
from model.__main__ import main
from model.checkpoints import shapes, store
from model.checkpoints.convert import convert
from model.checkpoints.files import FORMAT
from model.checkpoints.report import inspect
from model.checkpoints.shapes import Given
from model.config import SIZES, MAEConfig
from model.errors import CheckpointError
from model.evaluate.features import load_encoder
from model.loading import open_weights
from model.masking import sample_mask
from model.network import MAE
from model.positions import POSITIONS, resized
from model.reconstruct import load
from tests.model.origins.record import HERE, question, sampled, values
from tests.pictures import encoded, photo

#: No named size, so that nothing is known beforehand: 5 x 5 patches of 8 pixels, widths with heads of 16 and 12.
ODD = MAEConfig(
    image_size=40,
    patch_size=8,
    width=48,
    depth=3,
    heads=3,
    decoder_width=24,
    decoder_depth=2,
    decoder_heads=2,
)
ODD_HEADS = Given(heads=3, decoder_heads=2, target="pixel")


def _network(config: MAEConfig = ODD) -> MAE:
    """Random weights, with biases and norms away from their trivial start."""
    network = MAE(config).eval()
    network.init_weights(torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.fixture(scope="module")
def network() -> MAE:
    return _network()


@pytest.fixture
def ours(tmp_path: Path, network: MAE) -> Path:
    path = tmp_path / "ours.safetensors"
    store.write(path, network, name="odd", card={"licence": "none"})
    return path


def _inputs(config: MAEConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Image, ids_keep, ids_restore for two masks of three quarters."""
    count = config.patches - config.patches // 4
    masks = [sample_mask("random", config.grid, count, seed) for seed in range(2)]
    side = config.image_size
    image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    keep, restore = (
        torch.from_numpy(np.stack([getattr(m, k) for m in masks])) for k in ("ids_keep", "ids_restore")
    )
    return image, keep, restore


def _predict(network: MAE) -> Tensor:
    with torch.inference_mode():
        pred: Tensor = network(*_inputs(network.config))
    return pred


def _gap(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _equal(one: MAE, other: MAE) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(value.equal(b[key]) for key, value in a.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_that_half_precision_rounded_are_the_formulas(
    tmp_path: Path, ours: Path, dtype: torch.dtype
) -> None:
    folder = convert(ours, tmp_path / "half", to="huggingface")
    stored = load_file(folder / "model.safetensors")
    save_file({name: value.to(dtype) for name, value in stored.items()}, folder / "model.safetensors")
    network, exact = store.read(folder).network, MAE(ODD)
    assert all(network.get_buffer(name).equal(exact.get_buffer(name)) for name in POSITIONS)
    assert not any("differs from the formula" in note for note in inspect(folder).notes)
    assert open_weights(folder, "cpu").engine.handles((4, 9)), "openvino serves other grids too"
    timm = convert(folder, tmp_path / "timm.safetensors", to="timm")
    assert load_file(timm)["pos_embed"].equal(exact.pos_embed)
    # In a notebook the network itself may be rounded: other grids are still the formula's.
    assert resized(exact.to(dtype).pos_embed, ODD.grid, (4, 9)).equal(
        resized(MAE(ODD).pos_embed, ODD.grid, (4, 9)).to(dtype)
    )


def test_positions_alike_for_every_patch_are_told_wherever_the_file_is_read(
    tmp_path: Path, network: MAE, caplog: pytest.LogCaptureFixture
) -> None:
    flat = copy.deepcopy(network)
    flat.decoder_pos_embed.zero_()
    store.write(tmp_path / "flat.safetensors", flat, name="flat", card={})
    told = [note for note in inspect(tmp_path / "flat.safetensors").notes if "pos_embed" in note]
    assert len(told) == 1
    assert "decoder_pos_embed is the same for every patch" in told[0]
    assert "cannot tell hidden patches apart" in told[0]
    assert told[0] in store.read(tmp_path / "flat.safetensors").notes
    assert any(told[0] in line for line in caplog.messages)


# --- both directions, to the bit ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "name"), [("authors", "a.pth"), ("huggingface", "folder"), ("unmask", "u.safetensors")]
)
@pytest.mark.parametrize("target", ["pixel", "norm_pixel"])
def test_a_file_comes_back_to_the_bit(tmp_path: Path, to: Any, name: str, target: Any) -> None:
    network = _network(MAEConfig(**{**ODD.to_dict(), "target": target}))
    store.write(tmp_path / "ours.safetensors", network, name="odd", card={"licence": "none"})
    there = convert(tmp_path / "ours.safetensors", tmp_path / name, to=to)
    back = convert(there, tmp_path / "back.safetensors", to="unmask")
    assert (store.read(there).name, store.read(there).card) == ("odd", {"licence": "none"})
    read = store.read(back).network
    assert read.config == network.config
    assert _equal(read, network)
    assert load_file(back).keys() == load_file(tmp_path / "ours.safetensors").keys()


@pytest.mark.parametrize(
    ("to", "name", "says"),
    [
        ("authors", "a.safetensors", "is a pickle"),
        ("huggingface", "file", "is a folder"),
        ("unmask", "folder", "is a file"),
    ],
)
def test_a_place_that_cannot_hold_the_layout_is_refused_before_anything_is_written(
    tmp_path: Path, ours: Path, to: Any, name: str, says: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=says) as caught:
        convert(ours, tmp_path / name, to=to)
    assert caught.value.code == "checkpoint-out"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("to", ["authors", "huggingface"])
def test_predicted_statistics_are_left_out_where_a_layout_knows_none(
    tmp_path: Path, to: Any, caplog: pytest.LogCaptureFixture
) -> None:
    network = _network(replace(ODD, target="norm_pixel_stats"))
    store.write(tmp_path / "ours.safetensors", network, name="odd", card={})
    written = store.read(convert(tmp_path / "ours.safetensors", tmp_path / "out", to=to)).network
    assert "they are left out" in caplog.text
    assert written.config == replace(ODD, target="norm_pixel")
    assert _predict(written).equal(_predict(network)[..., : ODD.patch_values])


@pytest.mark.parametrize("to", ["authors", "huggingface"])
@pytest.mark.parametrize("own", [{"target": "pca"}, {"mask_tokens": "encoder"}, {"decoder": "patches"}])
def test_what_another_layout_cannot_say_is_not_written_in_it(tmp_path: Path, to: Any, own: Any) -> None:
    path = tmp_path / "ours.safetensors"
    store.write(path, _network(MAEConfig(**{**ODD.to_dict(), **own})), name="odd", card={})
    with pytest.raises(CheckpointError, match="cannot express"):
        convert(path, tmp_path / "out", to=to)
    convert(path, tmp_path / "e.safetensors", to="timm")


def test_positions_that_are_not_the_formula_survive_and_are_said(tmp_path: Path) -> None:
    network = _network()
    network.pos_embed[0, 3] += 0.5
    store.write(tmp_path / "ours.safetensors", network, name="odd", card={})
    path = tmp_path / "ours.safetensors"
    for to, name in (("authors", "a.pth"), ("huggingface", "h"), ("unmask", "u.safetensors")):
        path = convert(path, tmp_path / name, to=to)  # type: ignore[arg-type]
        checkpoint = store.read(path)
        assert _equal(checkpoint.network, network), to
        assert any("pos_embed differs from the formula by up to 0.5" in note for note in checkpoint.notes)


# --- the authors' files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"model": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
        lambda s: {"model": {re.sub(r"^(blocks\.\d+)\.", r"\1._orig_mod.", k): v for k, v in s.items()}},
        lambda s: {"module": s},
        lambda s: {"module": {f"_forward_module.model.{k}": v for k, v in s.items()}},
        lambda s: {"state_dict": {f"net.{k}": v for k, v in s.items()}},
        lambda s: {"model_ema": s},
        lambda s: {"model": {**s, "head.weight": torch.ones(9, 48), "head.bias": torch.ones(9)}},
        lambda s: {
            "model": s,
            "optimizer": {"state": {}},
            "args": argparse.Namespace(lr=1e-4, device="cuda"),
        },
    ],
    ids=[
        "bare",
        "model",
        "module",
        "compiled",
        "blocks",
        "deepspeed",
        "fabric",
        "net",
        "average",
        "head",
        "training",
    ],
)
def test_authors_files_are_read_however_wrapped(
    tmp_path: Path, network: MAE, wrap: Callable[[dict[str, Tensor]], Any]
) -> None:
    torch.save(wrap(network.state_dict()), tmp_path / "a.pth")
    checkpoint = store.read(tmp_path / "a.pth", ODD_HEADS)
    assert checkpoint.layout == "authors"
    assert _equal(checkpoint.network, network)


def test_a_name_of_a_trainer_beside_the_network_is_left_over(tmp_path: Path, network: MAE) -> None:
    lightning = {f"model.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": lightning | {"loss.scale": torch.ones(1)}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"missing none, left over loss\.scale"):
        store.read(tmp_path / "a.ckpt", ODD_HEADS)


def test_of_weights_and_their_average_the_caller_may_choose(tmp_path: Path, network: MAE) -> None:
    average = {key: value + 1 for key, value in network.state_dict().items() if "pos_embed" not in key}
    average |= {key: value for key, value in network.state_dict().items() if "pos_embed" in key}
    torch.save({"model": network.state_dict(), "model_ema": average}, tmp_path / "a.pth")
    raw = store.read(tmp_path / "a.pth", ODD_HEADS)
    assert _equal(raw.network, network)
    assert any("convert --weights-key model_ema" in note for note in raw.notes)
    chosen = store.read(tmp_path / "a.pth", replace(ODD_HEADS, weights_key="model_ema"))
    assert chosen.network.norm.bias.equal(network.norm.bias + 1)
    with pytest.raises(CheckpointError, match="no weights under 'ema'") as caught:
        store.read(tmp_path / "a.pth", replace(ODD_HEADS, weights_key="ema"))
    assert caught.value.hint == "It holds model, model_ema to choose from."
    torch.save({"student": average, "teacher": network.state_dict(), "lr": {"now": 1}}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="without named tensors") as caught:
        store.read(tmp_path / "b.pth", ODD_HEADS)
    assert "student, teacher: convert it with --weights-key student" in caught.value.hint
    assert _equal(store.read(tmp_path / "b.pth", replace(ODD_HEADS, weights_key="teacher")).network, network)
    store.write(tmp_path / "a.safetensors", network, name="odd", card={})
    with pytest.raises(CheckpointError, match="under no key"):
        store.read(tmp_path / "a.safetensors", replace(ODD_HEADS, weights_key="model_ema"))


class Kept(dict[str, Any]):
    """As a trainer keeps its settings: a class of its own, with a state."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.history = np.arange(3.0)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_trainers_store_beside_the_weights_is_passed_over(
    tmp_path: Path, network: MAE, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = "pytorch_lightning.utilities.parsing"  # looks like that package, which is not here
    for parent in ("pytorch_lightning", "pytorch_lightning.utilities", home):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    kept = type("AttributeDict", (Kept,), {"__module__": home})
    setattr(sys.modules[home], "AttributeDict", kept)  # noqa: B010 (mypy knows that a module has no such name)
    content = {
        "hyper_parameters": kept({"lr": np.float64(0.1), "where": Path("runs")}),
        "counts": defaultdict(int, {"epoch": 3}),
        "state_dict": network.state_dict(),
    }
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    assert b"AttributeDict" in (tmp_path / "a.ckpt").read_bytes()
    assert _equal(store.read(tmp_path / "a.ckpt", ODD_HEADS).network, network)


def test_old_pickles_are_read_too(tmp_path: Path, network: MAE) -> None:
    torch.save({"model": network.state_dict()}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert _equal(store.read(tmp_path / "a.pth", ODD_HEADS).network, network)


@pytest.mark.parametrize(("normalised", "target"), [(True, "norm_pixel"), (False, "pixel")])
def test_training_options_in_a_file_tell_its_target(
    tmp_path: Path, network: MAE, normalised: bool, target: str
) -> None:
    options = argparse.Namespace(norm_pix_loss=normalised)
    torch.save({"model": network.state_dict(), "args": options}, tmp_path / "a.pth")
    read = store.read(tmp_path / "a.pth", Given(heads=3, decoder_heads=2)).network
    assert read.config.target == target


def test_heads_that_nobody_tells_are_refused_not_guessed(tmp_path: Path, network: MAE) -> None:
    torch.save({"model": network.state_dict()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no tensor shape reveals it") as caught:
        store.read(tmp_path / "a.pth", Given(target="pixel"))
    assert caught.value.code == "checkpoint-heads"
    assert "--decoder-heads" in caught.value.hint


def test_a_written_file_may_be_read_by_others_as_any_file(debug_network: MAE, tmp_path: Path) -> None:
    store.write(tmp_path / "a.safetensors", debug_network, name="a", card={})
    (tmp_path / "any").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


@pytest.mark.parametrize(
    ("size", "heads"), [("vit_base", 12), ("vit_large", 16), ("vit_huge", 16), ("small", 4)]
)
def test_heads_of_known_sizes_are_known(size: str, heads: int) -> None:
    from model.checkpoints.files import RawFile
    from model.config import SIZES

    house = store.skeleton(SIZES[size]).state_dict()
    raw = RawFile(Path("a.pth"), house, "", 0)
    assert shapes.infer_config(raw, house, Given(), "pixel") == (SIZES[size], ())


def test_a_target_that_nobody_tells_is_refused_not_guessed(tmp_path: Path, network: MAE) -> None:
    torch.save({"model": network.state_dict()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="raw or normalised") as caught:
        store.read(tmp_path / "a.pth", Given(heads=3, decoder_heads=2))
    assert caught.value.code == "checkpoint-target-unknown"


# --- Hugging Face -------------------------------------------------------------------------------------------------


def _transformers() -> Any:
    """The package, untyped: its annotations leave out what ``output_loading_info`` changes."""
    import transformers

    return transformers


def _transformers_model(config: MAEConfig) -> Any:
    transformers = _transformers()
    values = {key: value for key, value in _huggingface_values(config).items() if key != "torch_dtype"}
    return transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**values)).eval()


def _huggingface_values(config: MAEConfig) -> dict[str, Any]:
    from model.checkpoints.convert import _huggingface_config

    return _huggingface_config(config)


def _transformers_prediction(oracle: Any, config: MAEConfig) -> Tensor:
    image, _, restore = _inputs(config)
    with torch.inference_mode():
        logits: Tensor = oracle(image, noise=restore.float()).logits
    return logits


def test_transformers_reads_the_folder_we_write(tmp_path: Path, ours: Path, network: MAE) -> None:
    convert(ours, tmp_path / "h1", to="huggingface")
    oracle, loading = _transformers().ViTMAEForPreTraining.from_pretrained(
        tmp_path / "h1", output_loading_info=True
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert _gap(_predict(network), _transformers_prediction(oracle.eval(), ODD)) < 1e-5


def test_we_write_the_names_of_every_version_of_transformers(tmp_path: Path, ours: Path) -> None:
    names = load_file(convert(ours, tmp_path / "h1", to="huggingface") / "model.safetensors").keys()
    assert "vit.encoder.layer.0.attention.attention.query.weight" in names
    assert "decoder.decoder_layers.1.attention.output.dense.bias" in names
    assert {"vit.layernorm.weight", "decoder.mask_token", "decoder.decoder_pos_embed"} <= names


@pytest.mark.parametrize(
    ("options", "tells"),
    [
        ({}, "decoder.decoder_encoder.layer.0.attention.attention.query.weight"),
        ({"save_original_format": False}, "decoder.decoder_layers.0.attention.q_proj.weight"),
        ({"max_shard_size": "60KB"}, ""),
    ],
    ids=["H4", "H3", "sharded"],
)
def test_what_transformers_saves_is_read(tmp_path: Path, network: MAE, options: Any, tells: str) -> None:
    oracle = _transformers_model(ODD)
    _randomise(oracle)
    oracle.save_pretrained(tmp_path, **options)
    if tells:
        assert tells in load_file(tmp_path / "model.safetensors")
    else:
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    checkpoint = store.read(tmp_path)
    assert checkpoint.layout == "huggingface"
    assert checkpoint.network.config == ODD
    assert _gap(_predict(checkpoint.network), _transformers_prediction(oracle, ODD)) < 1e-5
    picture = load(tmp_path, "cpu")(encoded(photo()), Options(seed=1)).panel("reconstruction")
    assert picture.shape == (40, 40, 3)


@pytest.mark.parametrize(
    "said",
    [
        {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
        {"image_mean": [0.1, 0.5, 0.7], "image_std": [0.3, 0.2, 0.4]},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 55.0, 50.0]},
    ],
    ids=["half", "odd", "none", "bytes"],
)
def test_pixels_are_normalised_as_the_folder_says(tmp_path: Path, said: dict[str, Any]) -> None:
    """From the same bytes to the same prediction as transformers, with its own processor."""
    transformers = _transformers()
    oracle = _transformers_model(ODD)
    _randomise(oracle)
    oracle.save_pretrained(tmp_path / "h")
    processor = transformers.ViTImageProcessor(size={"height": 40, "width": 40}, **said)
    processor.save_pretrained(tmp_path / "h")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    _, keep, restore = _inputs(ODD)
    with torch.inference_mode():
        image = processor(list(pixels), return_tensors="pt")["pixel_values"]
        theirs = oracle(image, noise=restore.float()).logits
    # And so by what is written from it.
    ours = convert(tmp_path / "h", tmp_path / "u.safetensors", to="unmask")
    again = convert(ours, tmp_path / "again", to="huggingface")
    for path in (tmp_path / "h", ours, again):
        loaded = open_weights(path, "cpu")
        pred = loaded.engine.run(pixels, keep.numpy(), restore.numpy())
        assert _gap(torch.from_numpy(pred), theirs) < 1e-5
        assert any("not by ImageNet's" in note for note in inspect(path).notes)
    with pytest.raises(CheckpointError, match="cannot express"):
        convert(ours, tmp_path / "a.pth", to="authors")


def test_a_folder_of_imagenets_colours_keeps_the_config_as_it_was(tmp_path: Path, ours: Path) -> None:
    folder = convert(ours, tmp_path / "h", to="huggingface")
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")  # without our config
    checkpoint = store.read(folder)
    assert (checkpoint.network.config, checkpoint.notes) == (ODD, ())
    assert "pixel_mean" not in checkpoint.network.config.to_dict()
    (folder / "preprocessor_config.json").unlink()
    assert any("are assumed" in note for note in store.read(folder).notes)


def test_the_same_weights_with_other_colours_are_proved_anew(tmp_path: Path, ours: Path) -> None:
    folder = convert(ours, tmp_path / "h", to="huggingface")
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")  # without our config
    assert open_weights(folder, "cpu").note == ""
    said = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    loaded = open_weights(folder, "cpu")
    assert (loaded.engine.name, loaded.note) == ("openvino", "")


@pytest.mark.parametrize("mean", [[0.5], "grey", [0.5, None, 0.5]])
def test_colours_that_cannot_be_read_are_refused(tmp_path: Path, ours: Path, mean: Any) -> None:
    folder = convert(ours, tmp_path / "h", to="huggingface")
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean}))
    with pytest.raises(CheckpointError, match=r"pixel_mean|preprocessor_config\.json"):
        store.read(folder)


def _randomise(oracle: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_a_bin_file_with_its_config_is_read(tmp_path: Path, ours: Path, network: MAE) -> None:
    folder = convert(ours, tmp_path / "h1", to="huggingface")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert _equal(store.read(folder).network, network)


def test_absent_query_key_and_value_biases_are_zero(tmp_path: Path, ours: Path) -> None:
    folder = convert(ours, tmp_path / "h1", to="huggingface")
    tensors = {
        key: value
        for key, value in load_file(folder / "model.safetensors").items()
        if not key.endswith(("query.bias", "key.bias", "value.bias"))
    }
    save_file(tensors, folder / "model.safetensors")
    assert not store.read(folder).network.state_dict()["blocks.0.attn.qkv.bias"].any()


def test_a_query_without_its_key_is_named(tmp_path: Path, ours: Path) -> None:
    folder = convert(ours, tmp_path / "h1", to="huggingface")
    tensors = load_file(folder / "model.safetensors")
    del tensors["vit.encoder.layer.1.attention.attention.key.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing blocks\.1\.attn\.qkv\.weight") as caught:
        store.read(folder)
    assert caught.value.code == "checkpoint-tensors"


def test_a_hugging_face_encoder_is_refused_for_pictures_and_converted_for_features(
    tmp_path: Path, ours: Path, network: MAE
) -> None:
    folder = convert(ours, tmp_path / "h2", to="huggingface")
    tensors = load_file(folder / "model.safetensors")
    encoder = {k.removeprefix("vit."): v for k, v in tensors.items() if k.startswith("vit.")}
    save_file(encoder, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="no decoder") as caught:
        store.read(folder)
    assert caught.value.code == "checkpoint-encoder"
    features = load_file(convert(folder, tmp_path / "e.safetensors", to="timm"))
    assert features["blocks.0.attn.qkv.weight"].equal(network.state_dict()["blocks.0.attn.qkv.weight"])


def test_another_activation_is_refused(tmp_path: Path, ours: Path) -> None:
    folder = convert(ours, tmp_path / "h1", to="huggingface")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "hidden_act": "relu"}))
    with pytest.raises(CheckpointError, match="relu"):
        store.read(folder)


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("num_attention_heads", "abc", "checkpoint-shape"),
        ("num_attention_heads", [1], "checkpoint-shape"),
        ("num_attention_heads", 3.7, "checkpoint-shape"),
        ("num_attention_heads", float("inf"), "checkpoint-shape"),
        ("norm_pix_loss", "false", "checkpoint-target-unknown"),
        ("layer_norm_eps", "1e-12", ""),
        ("layer_norm_eps", None, ""),
    ],
)
def test_a_config_that_says_nonsense_is_not_guessed_at(
    key: str, value: object, code: str, tmp_path: Path, ours: Path
) -> None:
    folder = convert(ours, tmp_path / "h1", to="huggingface")
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt"})  # without what it says of itself
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, key: value}))
    if code:
        with pytest.raises(CheckpointError) as caught:
            store.read(folder)
        assert caught.value.code == code
    else:
        assert any("layer_norm_eps" in note for note in inspect(folder).notes)


@pytest.mark.slow
def test_vit_base_agrees_with_transformers_through_the_folder(tmp_path: Path) -> None:
    network = _network(MAEConfig())
    store.write(tmp_path / "base.safetensors", network, name="base", card={})
    convert(tmp_path / "base.safetensors", tmp_path / "h1", to="huggingface")
    oracle = _transformers().ViTMAEForPreTraining.from_pretrained(tmp_path / "h1").eval()
    assert _gap(_predict(network), _transformers_prediction(oracle, network.config)) < 1e-5
    assert _equal(store.read(tmp_path / "h1").network, network)


# --- timm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.pth"])
def test_timm_computes_the_same_features_from_the_encoder_we_write(tmp_path: Path, name: str) -> None:
    timm: Any = importlib.import_module("timm")
    config = MAEConfig(width=192, depth=12, heads=3, decoder_width=24, decoder_depth=1, decoder_heads=2)
    network = _network(config)
    store.write(tmp_path / "ours.safetensors", network, name="tiny", card={})
    path = convert(tmp_path / "ours.safetensors", tmp_path / name, to="timm")
    theirs = timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(path), num_classes=0).eval()
    image, *_ = _inputs(config)
    with torch.inference_mode():
        mine = network.encode(image, torch.arange(config.patches).expand(2, -1))
        assert _gap(mine, theirs.forward_features(image)) < 1e-5


def test_an_encoder_is_converted_from_an_encoder(tmp_path: Path, ours: Path, network: MAE) -> None:
    first = convert(ours, tmp_path / "e.safetensors", to="timm")
    again = convert(first, tmp_path / "f.safetensors", to="timm")
    one, two = load_file(first), load_file(again)
    assert one.keys() == two.keys()
    assert all(value.equal(two[key]) for key, value in one.items())
    assert one["norm.weight"].equal(network.norm.weight)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_convert_says_the_line_that_opens_the_encoder_in_timm_whatever_its_shape(
    tmp_path: Path, ours: Path, network: MAE, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    out = tmp_path / f"encoder{suffix}"
    assert main(["convert", str(ours), str(out), "--to", "timm"]) == 0
    line = capsys.readouterr().out.partition("Open it: ")[2]
    vit = eval(line, {"timm": importlib.import_module("timm")}).eval()
    images = torch.rand(2, 3, network.config.image_size, network.config.image_size)
    with torch.no_grad():
        theirs, mine = vit.forward_features(network.normalise(images)), load_encoder(str(ours))(images)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_the_shipped_network_and_encoder_open_without_a_path() -> None:
    from model import load_encoder, load_network

    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        tokens = load_network().encode(load_network("mini").normalise(images))
        torch.testing.assert_close(load_encoder()(images), tokens)
    assert tokens.shape == (1, 197, 192)


@pytest.mark.parametrize("to", ["timm", "unmask", "huggingface"])
def test_what_is_converted_is_not_written_over(to: Any, tmp_path: Path, ours: Path, network: MAE) -> None:
    folder = convert(ours, tmp_path / "folder", to="huggingface")
    for source in (ours, folder, folder / "model.safetensors"):
        file = source if source.is_file() else source / "model.safetensors"
        before = file.read_bytes()
        with pytest.raises(CheckpointError, match=r"would be lost|is a file|is a folder"):
            convert(source, source, to=to)
        assert main(["convert", str(source), str(file), "--to", "onnx"]) == 2
        if file.parent == folder:
            with pytest.raises(CheckpointError, match="would be lost"):
                convert(source, folder if to == "huggingface" else file, to=to)
        assert file.read_bytes() == before


def test_an_encoder_alone_keeps_name_and_licence(tmp_path: Path, network: MAE) -> None:
    ours = tmp_path / "ours.safetensors"
    store.write(ours, network, name="mine", card={"licence": "CC-BY-4.0"})
    torch.save({"model": network.state_dict()}, tmp_path / "theirs-1.5.pth")
    for source, name, licence in (
        (ours, "mine", "CC-BY-4.0"),
        (tmp_path / "theirs-1.5.pth", "theirs-1.5", "not stated"),
    ):
        with safe_open(
            convert(source, tmp_path / "e.safetensors", to="timm", given=ODD_HEADS), framework="pt"
        ) as file:
            facts = json.loads(file.metadata()["unmask"])
        assert (facts["name"], facts["card"]["licence"]) == (name, licence)
        assert load_encoder(source, ODD_HEADS).name == name


def test_an_encoder_that_knew_hidden_places_leaves_their_token_behind(tmp_path: Path) -> None:
    network = _network(replace(SIZES["debug"], mask_tokens="encoder"))
    store.write(tmp_path / "whole.safetensors", network, name="e", card={})
    alone = convert(tmp_path / "whole.safetensors", tmp_path / "alone.safetensors", to="timm")
    images = torch.rand(2, 3, network.config.image_size, network.config.image_size)
    one, two = (load_encoder(path)(images) for path in (tmp_path / "whole.safetensors", alone))
    assert one.equal(two)


# --- files of other programs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem.endswith("-base") else [])
        for path in sorted(HERE.glob("*.json"))
    ],
)
def test_a_file_of_another_program_predicts_what_its_own_class_predicts(tmp_path: Path, record: Path) -> None:
    recorded = json.loads(record.read_text())
    config = MAEConfig.from_dict(recorded["config"])
    tensors = {name: values(name, tuple(shape)) for name, shape in recorded["shapes"].items()}
    torch.save({"state_dict": tensors}, tmp_path / "a.pth")
    heads = Given(heads=config.heads, decoder_heads=config.decoder_heads, target="pixel")
    checkpoint = store.read(tmp_path / "a.pth", heads)
    assert checkpoint.network.config == config
    with torch.inference_mode():
        pred = sampled(checkpoint.network(*question(config)))
    assert _gap(pred, torch.tensor(recorded["prediction"]).reshape(pred.shape)) < 1e-5


def _solo_learn(name: str) -> str:
    return ("decoder." if name.startswith(("decoder_", "mask_token")) else "backbone.") + name


def test_a_layout_without_its_program_follows_its_names_and_says_so(tmp_path: Path, network: MAE) -> None:
    tensors = {_solo_learn(key): value for key, value in network.state_dict().items()}
    tensors |= {"classifier.weight": torch.zeros(9, 48), "classifier.bias": torch.zeros(9)}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "a.ckpt")
    checkpoint = store.read(tmp_path / "a.ckpt", ODD_HEADS)
    assert checkpoint.layout == "solo-learn"
    assert _equal(checkpoint.network, network)
    assert "never checked against its own program" in checkpoint.notes[0]


def test_the_probe_beside_lightlys_model_is_left_out(tmp_path: Path) -> None:
    recorded = json.loads((HERE / "lightly-odd.json").read_text())
    tensors = {name: values(name, tuple(shape)) for name, shape in recorded["shapes"].items()}
    torch.save({"state_dict": tensors}, tmp_path / "a.ckpt")
    tensors |= {"online_classifier.linear.weight": torch.zeros(9, 48)}
    torch.save({"state_dict": tensors}, tmp_path / "b.ckpt")
    first, second = (store.read(tmp_path / name, ODD_HEADS) for name in ("a.ckpt", "b.ckpt"))
    assert second.layout == "lightly"
    assert _equal(first.network, second.network)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize("value", [torch.zeros(48, device="meta"), torch.zeros(48).to_sparse()])
def test_a_tensor_without_plain_numbers_is_refused(tmp_path: Path, network: MAE, value: Tensor) -> None:
    torch.save({"model": network.state_dict() | {"norm.weight": value}}, tmp_path / "a.pth")
    for read in (store.read, inspect):
        with pytest.raises(CheckpointError, match=r"for norm\.weight") as caught:
            read(tmp_path / "a.pth", ODD_HEADS)
        assert caught.value.code == "checkpoint-tensors"


def _stable_pretraining() -> dict[str, Tensor]:
    recorded = json.loads((HERE / "stable-pretraining-odd.json").read_text())
    return {name: values(name, tuple(shape)) for name, shape in recorded["shapes"].items()}


def test_a_decoder_of_patches_alone_draws_pictures_and_is_kept_only_where_it_can_be_said(
    tmp_path: Path,
) -> None:
    torch.save({"state_dict": _stable_pretraining()}, tmp_path / "a.ckpt")
    ours = convert(tmp_path / "a.ckpt", tmp_path / "u.safetensors", to="unmask", given=ODD_HEADS)
    first, second = store.read(tmp_path / "a.ckpt", ODD_HEADS).network, store.read(ours).network
    assert second.config.decoder == "patches"
    assert _equal(first, second)
    assert load(ours, "cpu")(encoded(photo()), Options(seed=1)).panel("reconstruction").shape == (40, 40, 3)
    with pytest.raises(CheckpointError, match="without a class token, which authors cannot express"):
        convert(ours, tmp_path / "b.pth", to="authors")


@pytest.mark.parametrize("part", ["query_proj.weight", "output_proj.weight", "blocks.0.cross_attn.q.weight"])
def test_another_decoder_under_the_same_names_is_refused(tmp_path: Path, part: str) -> None:
    tensors = _stable_pretraining() | {f"decoder.transformer.{part}": torch.zeros(7, 5)}
    torch.save({"state_dict": tensors}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError) as caught:
        store.read(tmp_path / "a.ckpt", ODD_HEADS)
    assert caught.value.code == "checkpoint-tensors"


# --- runs of our own ------------------------------------------------------------------------------------------------


def _state(folder: Path, trained: MAE, average: MAE | None = None, **more: Any) -> Path:
    """As ``model.pretrain.resume`` writes it."""
    path = folder / "state-0000007.pt"
    weights = [dict(net.named_parameters()) if net else None for net in (trained, average)]
    recipe = {"name": "trial", "batch_size": 4, "target": "norm_pixel"}
    state = {"step": 7, "network": weights[0], "average": weights[1], "recipe": recipe}
    torch.save({**state, **more}, path)
    for pointer in ("LATEST", "BEST"):
        (folder / pointer).write_text(path.name)
    return path


@pytest.mark.parametrize("way", [".", "LATEST", "BEST", "state-0000007.pt"])
def test_a_run_opens_by_its_folder_its_pointers_and_its_states(
    tmp_path: Path, network: MAE, way: str
) -> None:
    config = {**ODD.to_dict(), "target": "norm_pixel"}
    _state(tmp_path, network, unmask={"config": config})
    checkpoint = store.read(tmp_path / way)
    assert (checkpoint.layout, checkpoint.name) == ("run", "trial")
    assert (checkpoint.card["steps"], checkpoint.card["samples"]) == (7, 28)
    assert checkpoint.network.config == MAEConfig.from_dict(config)
    assert _equal(checkpoint.network, network)


def test_of_a_run_that_averages_its_weights_the_average_is_read(tmp_path: Path, network: MAE) -> None:
    average = _network()
    average.norm.bias.data += 1
    _state(tmp_path, network, average, unmask={"config": ODD.to_dict()})
    assert _equal(store.read(tmp_path).network, average)


def test_a_state_of_before_states_kept_their_config_follows_its_recipe(
    tmp_path: Path, debug_network: MAE
) -> None:
    recipe = {"name": "old", "batch_size": 4, "target": "norm_pixel", "size": "debug"}
    _state(tmp_path, debug_network, recipe=recipe)
    checkpoint = store.read(tmp_path)
    assert _equal(checkpoint.network, debug_network)
    assert checkpoint.network.config.target == "norm_pixel"


def test_a_state_in_parts_says_so(tmp_path: Path, network: MAE) -> None:
    _state(tmp_path, network, network=None)
    with pytest.raises(CheckpointError, match="in parts, one per process"):
        store.read(tmp_path)


@pytest.mark.parametrize("wrong", [{"step": "many"}, {"recipe": {"batch_size": None}}])
def test_a_state_that_does_not_count_is_refused(tmp_path: Path, network: MAE, wrong: dict[str, Any]) -> None:
    _state(tmp_path, network, unmask={"config": ODD.to_dict()}, **wrong)
    with pytest.raises(CheckpointError, match="no whole numbers"):
        store.read(tmp_path)


@pytest.mark.parametrize("wrong", [{"unmask": [1]}, {"positions": "sincos"}, {"origin": None}])
def test_a_state_whose_parts_are_no_dicts_is_refused_by_their_name(
    tmp_path: Path, network: MAE, wrong: dict[str, Any]
) -> None:
    _state(tmp_path, network, **{"unmask": {"config": ODD.to_dict()}, **wrong})
    with pytest.raises(CheckpointError, match=f"whose '{next(iter(wrong))}' is a") as caught:
        store.read(tmp_path)
    assert caught.value.code == "checkpoint-layout"


def test_a_state_whose_weights_are_no_tensors_is_refused(tmp_path: Path, network: MAE) -> None:
    _state(tmp_path, network, unmask={"config": ODD.to_dict()}, network={"norm.weight": [1.0], 7: "seven"})
    with pytest.raises(CheckpointError, match="a dict without named tensors"):
        store.read(tmp_path)


def test_a_pointer_to_a_state_that_is_gone_is_named(tmp_path: Path, network: MAE) -> None:
    _state(tmp_path, network).unlink()
    with pytest.raises(CheckpointError, match=r"state-0000007\.pt, which is not there"):
        store.read(tmp_path)


# --- grey and many channels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 5])
def test_checkpoints_of_any_number_of_channels_come_back_to_the_bit(tmp_path: Path, channels: int) -> None:
    network = _network(MAEConfig(**{**ODD.to_dict(), "channels": channels}))
    torch.save({"model": network.state_dict()}, tmp_path / "a.pth")
    path = convert(tmp_path / "a.pth", tmp_path / "u.safetensors", to="unmask", given=ODD_HEADS)
    for to, name in (("huggingface", "h"), ("authors", "b.pth")):
        path = convert(path, tmp_path / name, to=to)  # type: ignore[arg-type]
        checkpoint = store.read(path)
        assert checkpoint.network.config.channels == channels
        assert _equal(checkpoint.network, network)
    assert json.loads((tmp_path / "h" / "config.json").read_text())["num_channels"] == channels


def test_a_prediction_of_other_channels_than_the_picture_is_refused(tmp_path: Path, network: MAE) -> None:
    state = {**network.state_dict(), "patch_embed.proj.weight": torch.zeros(48, 1, 8, 8)}
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"decoder_pred.* has shape") as caught:
        store.read(tmp_path / "a.pth", ODD_HEADS)
    assert caught.value.code == "checkpoint-tensors"


# --- refusals -------------------------------------------------------------------------------------------------------


def _without_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(("decoder_", "mask_token"))}


def _classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {key: value for key, value in _without_decoder(state).items() if not key.startswith("norm.")}
    head = {"head.weight": torch.zeros(9, 48), "head.bias": torch.zeros(9)}
    return kept | head | {"fc_norm.weight": torch.ones(48), "fc_norm.bias": torch.zeros(48)}


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (_without_decoder, "encoder", "no decoder: it cannot reconstruct"),
        (_classifier, "classifier", "fine-tuned classifier"),
        (lambda s: {k: v for k, v in s.items() if k != "norm.bias"}, "tensors", "missing norm.bias"),
        (lambda s: {**s, "blocks.0.wings": torch.ones(2)}, "tensors", "left over blocks.0.wings"),
        (lambda s: {k: v for k, v in s.items() if "blocks.1." not in k}, "tensors", r"blocks\.1"),
        (lambda s: {**s, "norm.bias": torch.full((48,), float("inf"))}, "finite", "norm.bias"),
        (
            lambda s: {**s, "norm.bias": torch.ones(48, dtype=torch.int8)},
            "tensors",
            r"whole numbers \(int8\)",
        ),
        (lambda s: {**s, "pos_embed": torch.zeros(1, 8, 48)}, "shape", "not a square grid"),
        (
            lambda s: {**s, "patch_embed.proj.weight": torch.zeros(48, 3, 8, 4)},
            "shape",
            "only square patches",
        ),
        (lambda s: {"enc_to_dec.weight": torch.ones(1)}, "family", "vit-pytorch"),
        (lambda s: {"layer4.0.conv1.weight": torch.ones(1)}, "family", "ResNet"),
        (
            lambda s: {**s, "blocks.0.ls1.gamma": torch.ones(48)},
            "family",
            "a vision transformer with layer scale",
        ),
        (lambda s: {"encoder_to_decoder.weight": torch.ones(1)}, "family", "no class token"),
        (lambda s: {"wings": torch.ones(1)}, "layout", "no known MAE layout"),
        (lambda s: {"steps": 3}, "layout", "without named tensors"),
        (lambda s: [1, 2], "layout", "list without named tensors"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_reason(
    tmp_path: Path, network: MAE, change: Callable[[dict[str, Tensor]], Any], code: str, says: str
) -> None:
    torch.save(change(network.state_dict()), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=says) as caught:
        store.read(tmp_path / "a.pth", ODD_HEADS)
    assert caught.value.code == f"checkpoint-{code}"
    assert caught.value.hint


class Trap:
    """A pickle that would run a command on loading."""

    ran = False

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return setattr, (Trap, "ran", True)


@pytest.mark.parametrize("what", [lambda: nn.Linear(2, 2), Trap, lambda: {"model": Trap()}])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_object_is_refused_and_never_run(
    tmp_path: Path, what: Callable[[], Any], zipped: bool
) -> None:
    torch.save(what(), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="nothing was run") as caught:
        store.read(tmp_path / "a.pth")
    assert caught.value.code == "checkpoint-pickle"
    assert not Trap.ran


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch's own, of what it calls obsolete
def test_a_network_saved_as_code_is_not_called_damaged(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match="a TorchScript archive, which opens only by running code"
    ) as caught:
        store.read(tmp_path / "a.pt")
    assert caught.value.code == "checkpoint-pickle"
    assert "state_dict" in caught.value.hint


def test_an_old_pickle_cut_anywhere_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "whole.pth").read_bytes()
    for keep in range(len(whole)):
        (tmp_path / "a.pth").write_bytes(whole[:keep])
        with pytest.raises(CheckpointError):
            store.read(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # torch's word on a turned bit
def test_an_old_pickle_damaged_anywhere_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "whole.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "whole.pth").read_bytes()
    for place in range(len(whole)):
        (tmp_path / "a.pth").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError):  # read or not, these are no weights of ours
            store.read(tmp_path / "a.pth")


def test_a_pickle_that_holds_itself_is_refused(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="without named tensors"):
        store.read(tmp_path / "a.pth")


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000])
def test_a_cut_pickle_is_refused(tmp_path: Path, network: MAE, keep: int) -> None:
    torch.save({"model": network.state_dict()}, tmp_path / "whole.pth")
    (tmp_path / "a.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:keep])
    with pytest.raises(CheckpointError) as caught:
        store.read(tmp_path / "a.pth")
    assert caught.value.code == "checkpoint-unreadable"


@pytest.mark.parametrize("name", ["model.safetensors", "a.pth"])
def test_a_clone_without_its_large_files_says_how_to_fetch_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 447648408\n"
    )
    with pytest.raises(CheckpointError, match="pointer of Git LFS") as caught:
        store.read(tmp_path / name, ODD_HEADS)
    assert "git lfs pull" in caught.value.hint
    with pytest.raises(CheckpointError, match="pointer of Git LFS"):
        open_weights(tmp_path / name, "cpu")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds none of"):
        store.read(tmp_path)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../../model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-1\.safetensors, which is not there"):
        store.read(tmp_path)


def test_a_header_that_promises_another_network_builds_nothing(tmp_path: Path, ours: Path) -> None:
    tensors = load_file(ours)
    config = json.dumps({**ODD.to_dict(), "width": 4_000_000_000, "heads": 4})
    save_file(tensors, ours, metadata={"format": FORMAT, "config": config, "name": "x", "card": "{}"})
    with pytest.raises(CheckpointError, match="its config says width"):
        store.read(ours)
