"""What network a file's tensors make: its shape, its target, and what we wrote beside them.

A head count stands in no tensor's shape, and nothing in a public file says raw or normalised pixels: both come
from a config, from what is known of the files, or from the caller, never from a guess.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from model.checkpoints.files import FORMAT, RawFile, refuse
from model.checkpoints.layouts import Tensors, content, recognise
from model.config import SIZES, MAEConfig, Target
from model.errors import CheckpointError

#: Patches a side at most: a number in a config, or in a file's head, decides how large a table is made.
_MOST_CELLS = 128

#: Encoder heads by width: ViT's family (arXiv 2010.11929) and DeiT's small ones; huge has heads of 80.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS = {512: 16}  # the one decoder of the paper's code


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the caller knows and the file may not say. It adds to a file, and never overrules one.

    Attributes:
        heads: Encoder attention heads.
        decoder_heads: Decoder attention heads.
        target: What the decoder predicts.
        source: Who says so, for reports.
    """

    heads: int | None = None
    decoder_heads: int | None = None
    target: Target | None = None
    source: str = "you"


#: The authors' released files, whose names alone say what they predict (nothing inside does).
_RELEASED: tuple[tuple[str, Target], ...] = (
    (r"^mae_visualize_vit_(base|large|huge)", "pixel"),
    (r"^mae_pretrain_vit_(base|large|huge)", "norm_pixel"),
)


def stored_facts(raw: RawFile) -> dict[str, Any]:
    """What this product wrote into the file, whatever its layout: ``config``, ``name``, ``card``; or nothing.

    Raises:
        CheckpointError: It is there and cannot be read.
    """
    try:
        if raw.header.get("format") == FORMAT:
            facts = {key: json.loads(raw.header.get(key, "{}")) for key in ("config", "card")}
            return {**facts, "name": raw.header.get("name", raw.path.stem)}
        facts = (
            json.loads(raw.header["unmask"]) if "unmask" in raw.header else raw.arguments.get("unmask", {})
        )
        return facts if isinstance(facts, dict) else {}
    except ValueError as error:
        raise _bad_header(raw, error) from error


def stored_config(raw: RawFile) -> MAEConfig | None:
    """The config among ``stored_facts``."""
    values = stored_facts(raw).get("config")
    try:
        return MAEConfig.from_dict(values) if isinstance(values, dict) else None
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise _bad_header(raw, error) from error


def _bad_header(raw: RawFile, error: Exception) -> CheckpointError:
    return refuse(
        f"{raw.path.name} carries a header that cannot be read ({error})",
        "The file was changed or written by another version; nothing was loaded.",
        "unreadable",
    )


def find_target(raw: RawFile, given: Given) -> tuple[Target | None, str]:
    """What the decoder predicts, and who says so; ``(None, "")`` where nobody does."""
    stored = stored_config(raw)
    if stored is not None:
        return stored.target, "the file's own config"
    options = raw.arguments.get("args", {})
    if isinstance(options.get("norm_pix_loss"), bool):
        return _target(options["norm_pix_loss"]), "the training options stored in the file"
    if raw.config.get("model_type") == "vit_mae":
        return _target(bool(raw.config.get("norm_pix_loss", False))), "config.json"
    if given.target is not None:
        return given.target, given.source
    if is_released(raw):
        return next(target for name, target in _RELEASED if re.match(name, raw.path.name)), "the file's name"
    return None, ""


def is_released(raw: RawFile) -> bool:
    """Whether the file bears the name of one that the authors released."""
    return any(re.match(name, raw.path.name) for name, _ in _RELEASED)


def _target(normalised: bool) -> Target:
    return "norm_pixel" if normalised else "pixel"


def infer_config(raw: RawFile, house: Tensors, given: Given, target: Target) -> MAEConfig:
    """The shape of the network, from tensors, config and caller.

    Args:
        raw: The file.
        house: Its tensors under house names.
        given: What the caller adds.
        target: What was found out about it (shapes do not tell).

    Raises:
        CheckpointError: A needed tensor is missing, or a head count is nowhere to be had.
    """
    name = raw.path.name
    needed = ["cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"]
    if content(house) == "full":
        needed += ["decoder_embed.weight", "decoder_pred.weight", "decoder_blocks.0.mlp.fc1.weight"]
    if absent := [key for key in needed if key not in house]:
        raise refuse(
            f"{name} lacks {', '.join(absent)}",
            "It is no whole vision transformer of the paper's kind; give a complete file.",
            "tensors",
        )
    patch = house["patch_embed.proj.weight"]
    if patch.ndim != 4 or patch.shape[2] != patch.shape[3]:
        raise refuse(
            f"{name} cuts patches of shape {list(patch.shape[1:])}; only square patches are read",
            "Give a model of pictures with square patches (videos and spectrograms have others).",
            "shape",
        )
    width, side = int(patch.shape[0]), int(patch.shape[2])
    values: dict[str, Any] = {
        "image_size": _image_size(raw, house, side),
        "patch_size": side,
        "channels": int(patch.shape[1]),
        "width": width,
        "depth": _depth(house, "blocks", name),
        "mlp_ratio": house["blocks.0.mlp.fc1.weight"].shape[0] / width,
        "target": target,
    }
    if "decoder_embed.weight" in house:
        values["decoder_width"] = decoder_width = int(house["decoder_embed.weight"].shape[0])
        values["decoder_depth"] = _depth(house, "decoder_blocks", name)
        ratio = house["decoder_blocks.0.mlp.fc1.weight"].shape[0] / decoder_width
        if ratio != values["mlp_ratio"]:
            raise refuse(
                f"{name}: MLP ratio {values['mlp_ratio']:g} in the encoder, {ratio:g} in the decoder",
                "Only one ratio for both is supported.",
                "shape",
            )
    stored = stored_config(raw)
    if stored is not None:
        # Shapes first: a header that promises another network than the file holds builds nothing.
        for key, value in values.items():
            if getattr(stored, key) != value:
                raise refuse(
                    f"{name}: its config says {key} {getattr(stored, key)}, its tensors {value}",
                    "The file was changed or written by another version; nothing was loaded.",
                    "tensors",
                )
        return stored
    if "decoder_width" in values:
        values["decoder_heads"] = _heads(raw, values, given, decoder=True)
    values["heads"] = _heads(raw, values, given, decoder=False)
    return MAEConfig(**values, decoder=recognise(raw).decoder)


def _image_size(raw: RawFile, house: Tensors, patch_size: int) -> int:
    """Side of the picture: from the stored positions, else a config, else the paper's 224."""
    if "pos_embed" in house:
        cells = house["pos_embed"].shape[1] - 1
        side = round(cells**0.5)
        if side * side != cells:
            raise refuse(
                f"{raw.path.name} has positions for {cells} patches, which is no square grid",
                "Only square grids are read.",
                "shape",
            )
        if side > _MOST_CELLS:
            raise _too_many_cells(raw, side * patch_size)
        return side * patch_size
    stored = stored_config(raw) or SIZES.get(raw.arguments.get("size", ""))
    size = stored.image_size if stored else raw.config.get("image_size", 224)
    size = int(size[0] if isinstance(size, list | tuple) else size)
    if not 0 < size <= _MOST_CELLS * patch_size:
        raise _too_many_cells(raw, size)
    return size


def _too_many_cells(raw: RawFile, size: int) -> CheckpointError:
    return refuse(
        f"{raw.path.name} asks for pictures of {size} pixels a side",
        f"At most {_MOST_CELLS} patches a side are read.",
        "shape",
    )


def _heads(raw: RawFile, values: dict[str, Any], given: Given, *, decoder: bool) -> int:
    """A head count, from the config, the known sizes or the caller; refused where nobody knows."""
    part = "decoder" if decoder else "encoder"
    width = values["decoder_width" if decoder else "width"]
    stored = raw.config.get("decoder_num_attention_heads" if decoder else "num_attention_heads")
    if stored is not None:
        return int(stored)
    asked = given.decoder_heads if decoder else given.heads
    if asked is not None:
        return asked
    known = (_DECODER_HEADS if decoder else _HEADS).get(width)
    field = "decoder_heads" if decoder else "heads"
    for size in SIZES.values():
        if all(getattr(size, key) == value for key, value in values.items() if key not in _FREE):
            known = known or getattr(size, field)
    if known is None:
        raise refuse(
            f"{raw.path.name}: {width} wide {part} of unknown heads; no tensor tells their number",
            f"Give it: python -m model convert IN OUT --to unmask --{field.replace('_', '-')} N.",
            "heads",
        )
    return int(known)


#: What may differ between a file and a named size without changing its heads.
_FREE = ("image_size", "target", "heads", "decoder_heads")


def _depth(house: Tensors, stem: str, file_name: str) -> int:
    numbers = {key.split(".")[1] for key in house if key.startswith(stem + ".")}
    if absent := {str(number) for number in range(len(numbers))} - numbers:
        raise refuse(
            f"{file_name} lacks {stem}.{min(absent, key=int)}: its blocks are not numbered without a gap",
            "Give a complete file.",
            "tensors",
        )
    return len(numbers)
