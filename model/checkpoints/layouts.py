"""The public formats of MAE weights: how each is told, and its names in ours and back.

House names are those of the authors' files (``blocks.0.attn.qkv.weight``), so most maps are a few renamings.
Knows names and shapes only, no files. A head count stands in no tensor's shape: it comes from a config, from
sizes that are known, or from the caller, never from a guess.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from model.checkpoints.files import RawFile, refuse
from model.config import SIZES, MAEConfig, Target
from model.errors import CheckpointError

Tensors = dict[str, Tensor]
Content = Literal["full", "encoder", "classifier"]

#: The format string in the header of our own files.
FORMAT = "unmask-mae-1"
POSITIONS = ("pos_embed", "decoder_pos_embed")
#: Patches a side at most, where only a number in a config decides how large a table is made.
_MOST_CELLS = 128

#: Encoder heads by width: ViT's family (arXiv 2010.11929) and DeiT's small ones; huge has heads of 80.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS = {512: 16}  # the one decoder of the paper's code


@dataclass(frozen=True)
class Layout:
    """One public format.

    Attributes:
        name: Short name, as in ``convert --to``.
        title: What a person calls it.
        tells: True for a file that has this format's tell-tale names.
        renamed: Pairs (pattern, house name), tried in this order on every name, each at most once.
        unused: Names that the origin's program stores and an MAE never reads.
        proof: What the map was proved against; empty where it was only read in the origin's code.
    """

    name: str
    title: str
    tells: Callable[[RawFile], bool]
    renamed: tuple[tuple[str, str], ...] = ()
    unused: str = ""
    proof: str = ""

    def to_house(self, tensors: Tensors) -> Tensors:
        """The file's tensors under our names."""
        house: Tensors = {}
        for name, value in tensors.items():
            if self.unused and re.search(self.unused, name):
                continue
            for pattern, ours in self.renamed:
                name = re.sub(pattern, ours, name, count=1)
            house[name] = value
        return _joined(house)


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the caller knows and the file may not say. It adds to a file, and never overrules one.

    Attributes:
        heads: Encoder attention heads.
        decoder_heads: Decoder attention heads.
        target: What the decoder predicts.
    """

    heads: int | None = None
    decoder_heads: int | None = None
    target: Target | None = None


def _has(*names: str) -> Callable[[RawFile], bool]:
    return lambda raw: all(name in raw.tensors for name in names)


# Hugging Face: H1 (files of 4.x to 5.15), H2 (encoder, no "vit."), H3 (inner names of 5.9 and later), H4 (what
# 5.23 saves). One table reads all four, because none of them uses a name for two things.
_HUGGINGFACE = (
    (r"^vit\.", ""),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^decoder\.(?:decoder_layers|decoder_encoder\.layer)\.", "decoder_blocks."),
    (r"^decoder\.", ""),
    (r"^(?:encoder\.layer|layers)\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.(q|k|v)_proj\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
_OPENMMLAB = (
    (r"^backbone\.layers\.", "blocks."),
    (r"^neck\.decoder_blocks\.", "decoder_blocks."),
    (r"^backbone\.ln1\.", "norm."),
    (r"^neck\.(?:ln1|norm1|decoder_norm)\.", "decoder_norm."),
    (r"^(?:backbone|neck)\.", ""),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"\.ln(1|2)\.", r".norm\1."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)
_QKV = "blocks.0.attn.qkv.weight"

LAYOUTS: tuple[Layout, ...] = (
    Layout("unmask", "Unmask", lambda raw: raw.header.get("format") == FORMAT, proof="this code"),
    Layout(
        "huggingface",
        "Hugging Face ViTMAE",
        lambda raw: any(
            re.match(r"^(vit\.)?(encoder\.layer|layers)\.0\.attention\.", name) for name in raw.tensors
        ),
        renamed=_HUGGINGFACE,
        proof="transformers 5.24 (ViTMAEForPreTraining)",
    ),
    Layout(
        "openmmlab",
        "OpenMMLab (mmpretrain, mmselfsup)",
        _has("backbone.layers.0.ln1.weight", "backbone.patch_embed.projection.weight"),
        renamed=_OPENMMLAB,
        unused=r"^(data_preprocessor|head)\.",
    ),
    Layout(
        "lightly",
        "lightly (MaskedVisionTransformerTIMM)",
        _has("backbone.vit." + _QKV),
        renamed=((r"^backbone\.vit\.", ""), (r"^decoder\.", "")),
        # Its backbone wrapper and timm's untouched class head are stored and take no part.
        unused=r"^(backbone\.mask_token|backbone\.vit\.head\..*)$",
    ),
    # timm's encoder has the authors' names; only the container differs.
    Layout(
        "timm",
        "timm encoder",
        lambda raw: _QKV in raw.tensors and not raw.nested and "decoder_embed.weight" not in raw.tensors,
        proof="timm 1.0.31 (VisionTransformer)",
    ),
    Layout(
        "authors",
        "authors' code (facebookresearch/mae)",
        _has(_QKV),
        proof="transformers 5.24, by the published conversion",
    ),
)

#: Families that are no MAE of the paper although they look like one, by a name that only they use.
_FAMILIES = (
    (
        r"(^|\.)encoder_to_decoder\.weight$",
        "pengzhiliang's MAE, which has no class token and other positions",
    ),
    (r"relative_position", "BEiT or Swin (relative positions)"),
    (r"\.ls1\.gamma$", "DINOv2 (layer scale)"),
    (r"\.(lambda_1|gamma_1)$", "a vision transformer with layer scale"),
    (r"^layer4\.0\.", "a ResNet"),
    (r"^(text_model|transformer\.resblocks|visual)\.", "CLIP"),
    (r"^stages\.", "a convolutional network"),
)


def recognise(raw: RawFile) -> Layout:
    """The format of a file.

    Raises:
        CheckpointError: It is another family of model, or none that is known.
    """
    name = raw.path.name
    for pattern, family in _FAMILIES:
        if any(re.search(pattern, key) for key in raw.tensors):
            raise refuse(
                f"{name} holds {family}: another model than the masked autoencoder of the paper",
                "Give a file of one of the layouts in docs/models.md.",
                "family",
            )
    layout = next((layout for layout in LAYOUTS if layout.tells(raw)), None)
    if layout is None:
        first = ", ".join(sorted(raw.tensors)[:3]) or "none"
        raise refuse(
            f"{name} carries no config of ours, and its names ({first}, ...) belong to no known MAE layout",
            "Give a file of one of the layouts in docs/models.md.",
            "layout",
        )
    return layout


def content(house: Tensors) -> Content:
    """Whether the tensors (house names) are a whole MAE, its encoder, or a classifier made of it."""
    if "head.weight" in house or "fc_norm.weight" in house:
        return "classifier"
    decoder = any(key.startswith("decoder_") or key == "mask_token" for key in house)
    return "full" if decoder else "encoder"


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
        return given.target, "you"
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
    if patch.ndim != 4 or patch.shape[1] != 3 or patch.shape[2] != patch.shape[3]:
        raise refuse(
            f"{name} cuts patches of shape {list(patch.shape[1:])}; only square patches of 3 colours are read",
            "Give a model of colour pictures.",
            "shape",
        )
    width, side = int(patch.shape[0]), int(patch.shape[2])
    values: dict[str, Any] = {
        "image_size": _image_size(raw, house, side),
        "patch_size": side,
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
    return MAEConfig(**values)


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
        return side * patch_size
    stored = stored_config(raw)
    size = stored.image_size if stored else raw.config.get("image_size", 224)
    size = int(size[0] if isinstance(size, list | tuple) else size)
    if not 0 < size <= _MOST_CELLS * patch_size:
        raise refuse(
            f"{raw.path.name} asks for pictures of {size} pixels a side",
            f"At most {_MOST_CELLS} patches a side are read.",
            "shape",
        )
    return size


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


def _joined(house: Tensors) -> Tensors:
    """Stack separate query, key and value tensors to one, in that order; absent biases become zeros."""
    joined = dict(house)
    for name in house:
        if not name.endswith(".attn.query.weight") and not name.endswith(".attn.q.weight"):
            continue
        stem = name[: name.index(".attn.") + 6]
        parts = ("query", "key", "value") if name.endswith("query.weight") else ("q", "k", "v")
        for kind in ("weight", "bias"):
            pieces = [joined.pop(f"{stem}{part}.{kind}", None) for part in parts]
            present = [piece for piece in pieces if piece is not None]
            if len(present) == 3:
                joined[f"{stem}qkv.{kind}"] = torch.cat(present)
            elif kind == "bias" and not present and f"{stem}qkv.weight" in joined:
                joined[f"{stem}qkv.bias"] = torch.zeros(len(joined[f"{stem}qkv.weight"]))
            else:  # leave the fragments in, so that they are named as missing and left over
                joined |= {
                    f"{stem}{part}.{kind}": piece
                    for part, piece in zip(parts, pieces, strict=True)
                    if piece is not None
                }
    return joined


_TO_HUGGINGFACE = (
    (r"^pos_embed$", "vit.embeddings.position_embeddings"),
    (r"^cls_token$", "vit.embeddings.cls_token"),
    (r"^patch_embed\.proj\.", "vit.embeddings.patch_embeddings.projection."),
    (r"^norm\.", "vit.layernorm."),
    (r"^decoder_blocks\.", "decoder.decoder_layers."),
    (r"^(mask_token$|decoder_(?:pos_embed$|embed\.|norm\.|pred\.))", r"decoder.\1"),
    (r"^blocks\.", "vit.encoder.layer."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def to_huggingface(house: Tensors) -> Tensors:
    """House names to H1, the one Hugging Face layout that every version of transformers reads."""
    theirs: Tensors = {}
    for name, value in house.items():
        if ".attn.qkv." in name:
            stem, kind = name.split(".attn.qkv.")
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                key = f"{stem}.attention.attention.{part}.{kind}"
                theirs[_rename(key, _TO_HUGGINGFACE)] = piece.contiguous()
        else:
            theirs[_rename(name, _TO_HUGGINGFACE)] = value
    return theirs


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in table:
        name = re.sub(pattern, new, name, count=1)
    return name
