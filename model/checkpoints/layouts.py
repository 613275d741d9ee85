"""The public formats of MAE weights: how each is told, and its names in ours and back.

House names are those of the authors' files (``blocks.0.attn.qkv.weight``), so most maps are a few renamings.
Knows names, and positions that half precision has rounded; what network they make is ``shapes``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from model.checkpoints.files import FORMAT, RawFile, refuse
from model.network import in_decoder
from model.positions import POSITIONS, unrounded

Tensors = dict[str, Tensor]
Content = Literal["full", "encoder", "classifier"]


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
        doubt: Why it could not be proved.
        decoder: Which of the decoders that our network can be it has.
        folded: What has to be computed from its tensors, once they have our names.
    """

    name: str
    title: str
    tells: Callable[[RawFile], bool]
    renamed: tuple[tuple[str, str], ...] = ()
    unused: str = ""
    proof: str = ""
    doubt: str = ""
    decoder: Literal["paper", "patches"] = "paper"
    folded: Callable[[Tensors], Tensors] | None = None

    def to_house(self, tensors: Tensors) -> Tensors:
        """The file's tensors under our names."""
        house: Tensors = {}
        for name, value in tensors.items():
            if self.unused and re.search(self.unused, name):
                continue
            house[_rename(name, self.renamed)] = value
        if self.folded:
            # What does not fit together stays as it is: its names are then refused as left over.
            with suppress(RuntimeError, IndexError, ValueError):
                house = self.folded(house)
        house = _joined(house)
        if content(house) != "classifier":  # a layer of classes that was stored along takes no part
            house = {name: value for name, value in house.items() if not name.startswith("head.")}
        return house | {name: unrounded(house[name]) for name in POSITIONS if name in house}


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
# Both decoders that lightly has had: MAEDecoderTIMM, which names its parts as the authors do and holds projection and
# prediction too, and the one of 1.6, which leaves these two to the model around it.
_LIGHTLY = (
    (r"^backbone\.vit\.", ""),
    (r"^decoder\.(blocks|norm|pos_embed)", r"decoder_\1"),
    (r"^decoder\.", ""),
    (r"^prediction_head\.", "decoder_pred."),
)
_STABLE_PRETRAINING = (
    (r"^encoder\.vit\.", ""),
    (r"^decoder\.transformer\.context_proj\.", "decoder_embed."),
    (r"^decoder\.transformer\.output_proj\.", "decoder_pred."),
    (r"^decoder\.transformer\.final_norm\.", "decoder_norm."),
    (r"^decoder\.transformer\.", "decoder_"),
    (r"^decoder\.mask_token$", "mask_token"),
)


def _fold_stable_pretraining(house: Tensors) -> Tensors:
    """Its mask token is of the encoder's width and projected on its own, and its patches have the colour first."""
    folded = dict(house)
    weight, bias = (folded.pop(f"decoder_query_proj.{kind}", None) for kind in ("weight", "bias"))
    if "mask_token" in house and weight is not None:
        folded["mask_token"] = nn.functional.linear(house["mask_token"], weight, bias)
    if "decoder_pos_embed" in house:  # no class token, no position of it
        table = house["decoder_pos_embed"]
        folded["decoder_pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    if "patch_embed.proj.weight" in house:
        channels, *sides = house["patch_embed.proj.weight"].shape[1:]
        for name in {"decoder_pred.weight", "decoder_pred.bias"} & house.keys():
            rows = house[name].reshape(channels, *sides, *house[name].shape[1:])  # [C, P, P] or [C, P, P, d]
            folded[name] = rows.movedim(0, 2).flatten(0, 2).contiguous()
    return folded


_QKV = "blocks.0.attn.qkv.weight"

LAYOUTS: tuple[Layout, ...] = (
    Layout("unmask", "Unmask", lambda raw: raw.header.get("format") == FORMAT, proof="this code"),
    Layout("run", "Unmask, a state of a training run", lambda raw: raw.is_state, proof="this code"),
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
        proof="mmpretrain 1.2.0 (MAEViT and MAEPretrainDecoder)",
    ),
    Layout(
        "lightly",
        "lightly (MaskedVisionTransformerTIMM)",
        _has("backbone.vit." + _QKV),
        renamed=_LIGHTLY,
        # Its backbone wrapper, timm's untouched class head and its training script's probe take no part.
        unused=r"^(online_classifier\.|backbone\.(mask_token$|vit\.head\.))",
        proof="lightly 1.6.0 (MAEDecoderTIMM and MaskedVisionTransformerDecoderTIMM)",
    ),
    Layout(
        "solo-learn",
        "solo-learn",
        _has("backbone." + _QKV, "decoder.decoder_embed.weight"),
        renamed=((r"^(?:backbone|decoder)\.", ""),),
        unused=r"^(classifier|momentum_\w+)\.",
        doubt="the released package holds no MAE, and the development version asks for other versions of everything",
    ),
    Layout(
        "stable-pretraining",
        "stable-pretraining",
        _has("encoder.vit." + _QKV),
        renamed=_STABLE_PRETRAINING,
        # Its encoder keeps a second name for the patch projection; probes beside the model are stored with it.
        unused=r"^(masking|encoder\.patch_embed|callbacks_\w+)\.",
        proof="stable-pretraining 0.1.8 (MAE)",
        decoder="patches",
        folded=_fold_stable_pretraining,
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
        r"(^|\.)(enc_to_dec|to_pixels|decoder_pos_emb)\.|\.to_qkv\.weight$",
        "vit-pytorch's MAE, which has no class token and normalises patches before it projects them",
    ),
    (
        r"(^|\.)encoder_to_decoder\.weight$",
        "pengzhiliang's MAE, which has no class token and other positions",
    ),
    (r"relative_position", "BEiT or Swin (relative positions)"),
    (r"\.(ls1\.gamma|lambda_1|gamma_1)$", "a vision transformer with layer scale (DINOv2 is one)"),
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
                f"{name} holds {family}: a different model from the masked autoencoder of the paper",
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
    if any(in_decoder(key) for key in house):
        return "full"
    if "norm.weight" in house and "fc_norm.weight" not in house:  # whatever stands behind it
        return "encoder"
    return "classifier" if "head.weight" in house or "fc_norm.weight" in house else "encoder"


def _joined(house: Tensors) -> Tensors:
    """Stack separate query, key and value tensors to one, in that order; absent biases become zeros."""
    joined = dict(house)
    for query, key, value in (("query", "key", "value"), ("q", "k", "v")):
        for name in house:
            if not name.endswith(f".attn.{query}.weight"):
                continue
            stem = name.removesuffix(f"{query}.weight")
            for kind in ("weight", "bias"):
                # Fragments stay in, so that they are named as missing and left over.
                pieces = [f"{stem}{part}.{kind}" for part in (query, key, value)]
                if joined.keys() >= set(pieces):
                    joined[f"{stem}qkv.{kind}"] = torch.cat([joined.pop(piece) for piece in pieces])
                elif kind == "bias" and not joined.keys() & pieces and f"{stem}qkv.weight" in joined:
                    weight = joined[f"{stem}qkv.weight"]
                    joined[f"{stem}qkv.bias"] = weight.new_zeros(len(weight))
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
    """By pairs (pattern, new name), in this order, each at most once."""
    for pattern, new in table:
        name = re.sub(pattern, new, name, count=1)
    return name
