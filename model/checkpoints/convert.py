"""One weight file to another layout, to the bit; only predicted means and deviations are known to ours alone.

Whatever we write also carries our config (head counts stand in no public file), name and card (with the licence),
in a place that the other programs do not look at.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints import layouts, registry, store
from model.checkpoints.files import parts, refuse, replacing, write_json
from model.checkpoints.shapes import Given
from model.config import MAEConfig
from model.network import sees_images
from model.positions import sincos_positions

_LOGGER = logging.getLogger(__name__)

To = Literal["unmask", "authors", "huggingface", "timm"]


def convert(source: Path, out: Path, *, to: To, given: Given | None = None) -> Path:
    """Read a file of any known layout and write it in another.

    Args:
        source: File, folder or name of the registry to read.
        out: File to write; for ``huggingface`` a folder.
        to: ``unmask``; ``authors`` (their ``.pth``); ``huggingface`` (the folder that every transformers
            reads); ``timm`` (the encoder alone, for what ``timm_call`` says).
        given: What the source may leave out.

    Returns:
        What was written.

    Raises:
        CheckpointError: The source cannot be read, lacks what the new layout needs, or ``out`` cannot hold that.
    """
    if to == "timm":
        write_timm(source, out, given)
        return out
    check_out(source, out, to)
    checkpoint = store.read(source, given)
    config = checkpoint.network.config
    if to == "unmask":
        store.write(out, checkpoint.network, name=checkpoint.name, card=checkpoint.card)
        return out
    tensors = {key: value.detach().contiguous() for key, value in checkpoint.network.state_dict().items()}
    if config.target == "norm_pixel_stats":
        config = _without_statistics(tensors, config)
        _LOGGER.warning(
            "%s: %s knows no predicted mean and deviation; they are left out, and it predicts norm_pixel.",
            checkpoint.name,
            to,
        )
    _check_common(checkpoint.name, config, to)
    facts = {"config": config.to_dict(), "name": checkpoint.name, "card": checkpoint.card}
    if to == "authors":
        _save_pickle(out, {"model": tensors, "unmask": facts})
        return out
    header = {"format": "pt", "unmask": json.dumps(facts)}
    write_json(out / "config.json", _huggingface_config(config))
    write_json(out / "preprocessor_config.json", _preprocessor(config))
    # Last: a reader that sees the weights sees the whole folder.
    with replacing(out / "model.safetensors") as part:
        save_file(layouts.to_huggingface(tensors), part, metadata=header)
    return out


def check_out(source: Path, out: Path, to: To | Literal["onnx"]) -> None:
    """Before anything is read: a folder is not a file, the authors' layout is a pickle, and the source stays.

    Raises:
        CheckpointError: ``out`` cannot be written in this layout, or is what would be read.
    """
    if to == "huggingface" and out.exists() and not out.is_dir():
        raise refuse(f"{out} is a file, and {to} is a folder", "Name a folder.", "out")
    if to != "huggingface" and out.is_dir():
        raise refuse(f"{out} is a folder, and {to} is a file", "Name a file.", "out")
    written = out / "model.safetensors" if to == "huggingface" else out
    if written.exists() and any(written.samefile(part) for part in parts(registry.locate(source).path)):
        raise refuse(f"{out} is what would be converted, and would be lost", "Name another place.", "out")
    if to == "authors" and out.suffix == ".safetensors":
        raise refuse(
            f"{out.name} would not be a safetensors file: {to} is a pickle",
            "Name it *.pth, or --to unmask.",
            "out",
        )


def _without_statistics(tensors: dict[str, Tensor], config: MAEConfig) -> MAEConfig:
    """The paper's normalised target alone: the last layer loses its two last numbers a patch. Tensors change in place.

    Returns:
        The config of what is left.
    """
    for name in ("decoder_pred.weight", "decoder_pred.bias"):
        tensors[name] = tensors[name][: config.patch_values].clone()  # a pickle would keep the rest of a view
    return replace(config, target="norm_pixel")


def _check_common(name: str, config: MAEConfig, to: str) -> None:
    """Other layouts know two targets and the paper's decoder: the rest of ours would be misread there."""
    if to == "authors" and (config.pixel_mean or config.pixel_std):
        raise refuse(
            f"{name} normalises pixels by other colours than ImageNet's, which {to} cannot express",
            "Convert to unmask or huggingface.",
            "target",
        )
    if config.decoder != "paper":
        raise refuse(
            f"{name} has a decoder without a class token, which {to} cannot express",
            "Convert to unmask, or the encoder alone to timm.",
            "target",
        )
    if config.target in ("pixel", "norm_pixel") and config.mask_tokens == "decoder":
        return
    raise refuse(
        f"{name} predicts {config.target} with mask tokens in the {config.mask_tokens}, which {to} cannot express",
        "Convert to unmask, or the encoder alone to timm.",
        "target",
    )


def timm_call(config: MAEConfig, file: Path) -> str:
    """What opens a file of timm's names in timm, as a line of Python: no name of timm's has every shape."""
    return (
        f"timm.create_model('vit_base_patch16_224', img_size={config.image_size}, patch_size={config.patch_size}, "
        f"in_chans={config.channels}, embed_dim={config.width}, depth={config.depth}, num_heads={config.heads}, "
        f"mlp_ratio={config.mlp_ratio:g}, num_classes=0, checkpoint_path={str(file)!r})"
    )


def write_timm(source: Path, out: Path, given: Given | None = None) -> MAEConfig:
    """The encoder of anything that has one: a file of timm's names, positions included; a pickle holds them alone.

    Returns:
        Its shape, for ``timm_call``.

    Raises:
        CheckpointError: As for ``convert``.
    """
    check_out(source, out, "timm")
    file = store.read_encoder(source, given, "Convert the pre-trained file that it was made from.")
    config = file.config
    encoder = {key: value.float().contiguous() for key, value in file.tensors.items() if sees_images(key)}
    if "pos_embed" not in encoder:
        encoder["pos_embed"] = sincos_positions(*config.grid, config.width)
    if out.suffix != ".safetensors":  # timm chooses its reader by the name
        _save_pickle(out, encoder)
        return config
    facts = {"config": config.to_dict(), "name": file.name, "card": file.card}
    header = {"format": "pt", "unmask": json.dumps(facts)}
    with replacing(out) as part:
        save_file(encoder, part, metadata=header)
    return config


def _save_pickle(out: Path, content: dict[str, Any]) -> None:
    # Through a file object: by its name torch would write the name into the file.
    with replacing(out) as part, part.open("wb") as file:
        torch.save(content, file)


def _huggingface_config(config: MAEConfig) -> dict[str, Any]:
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "attention_probs_dropout_prob": 0.0,
        "decoder_hidden_size": config.decoder_width,
        "decoder_intermediate_size": round(config.decoder_width * config.mlp_ratio),
        "decoder_num_attention_heads": config.decoder_heads,
        "decoder_num_hidden_layers": config.decoder_depth,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": config.width,
        "image_size": config.image_size,
        "initializer_range": 0.02,
        "intermediate_size": round(config.width * config.mlp_ratio),
        "layer_norm_eps": 1e-6,  # transformers' own default, 1e-12, is not what any public MAE was trained with
        "mask_ratio": 0.75,
        "norm_pix_loss": config.target == "norm_pixel",
        "num_attention_heads": config.heads,
        "num_channels": config.channels,
        "num_hidden_layers": config.depth,
        "patch_size": config.patch_size,
        "qkv_bias": True,
        "torch_dtype": "float32",
    }


def _preprocessor(config: MAEConfig) -> dict[str, Any]:
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": config.image_size, "width": config.image_size},
    }
