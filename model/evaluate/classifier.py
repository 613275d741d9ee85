"""An encoder turned into a classifier: timm's ViT, its mean of the patches, a new norm and a new layer.

Source: arXiv 2111.06377, appendix A.1 and its public code: mean pooling instead of the class token, first weights
of the last layer of 2e-5.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from model.checkpoints.containers import open_raw
from model.checkpoints.files import replacing
from model.config import IMAGE_MEAN, IMAGE_STD, MAEConfig
from model.devices import autocast
from model.errors import CheckpointError, DataError
from model.evaluate.features import Encoder, whole
from model.network import MAE
from model.pretrain.data import decode


def scratch(config: MAEConfig, seed: int, name: str) -> Encoder:
    """An encoder of random weights."""
    network = MAE(config)
    network.init_weights(torch.Generator().manual_seed(seed))
    return Encoder(network, name, f"random weights, seed {seed}")


def build(encoder: Encoder, classes: int, *, drop_path: float, seed: int) -> VisionTransformer:
    """A classifier that begins with the weights of an encoder.

    Args:
        encoder: Trained or random; all but its last norm is taken, as in the paper's code.
        classes: How many.
        drop_path: Stochastic depth of the last block; it grows linearly from 0.
        seed: Of the last layer's first weights.
    """
    config = encoder.config
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it would reseed every GPU too
        vit = _fresh(config, classes, drop_path)
        head: Any = vit.head
        nn.init.trunc_normal_(head.weight, std=2e-5)
        nn.init.zeros_(head.bias)
    weights = {name: value for name, value in encoder.weights().items() if not name.startswith("norm.")}
    own = vit.state_dict()
    assert set(own) - set(weights) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    vit.load_state_dict({**own, **weights})
    _take_imagenet_colours(vit, config)
    return vit


def _fresh(config: MAEConfig, classes: int, drop_path: float = 0.0) -> VisionTransformer:
    norm_layer: Any = partial(nn.LayerNorm, eps=1e-6)
    return VisionTransformer(
        img_size=config.image_size, patch_size=config.patch_size, num_classes=classes, global_pool="avg",
        embed_dim=config.width, depth=config.depth, num_heads=config.heads, mlp_ratio=config.mlp_ratio,
        norm_layer=norm_layer, drop_path_rate=drop_path,
    )  # fmt: skip


@torch.no_grad()
def _take_imagenet_colours(vit: VisionTransformer, config: MAEConfig) -> None:
    """Fold other colours than ImageNet's, which training and judging normalise by, into the patch projection."""
    if (config.image_mean, config.image_std) == (IMAGE_MEAN, IMAGE_STD):
        return
    mean, std, own_mean, own_std = (
        torch.tensor(of).view(1, -1, 1, 1)
        for of in (IMAGE_MEAN, IMAGE_STD, config.image_mean, config.image_std)
    )
    projection: Any = vit.patch_embed.proj
    projection.bias += (projection.weight * (mean - own_mean) / own_std).sum(dim=(1, 2, 3))
    projection.weight *= std / own_std


def freeze(vit: VisionTransformer, blocks: float) -> None:
    """Leave only the last blocks, the norm and the last layer to learn.

    Args:
        vit: A classifier.
        blocks: How many; a half is the MLP half of the next block, with its norm (paper, fig. 9).

    Raises:
        DataError: It is not a multiple of a half between 0 and the depth.
    """
    depth = len(vit.blocks)
    check_blocks(blocks, depth)
    vit.requires_grad_(False)
    for module in (vit.fc_norm, vit.head):
        module.requires_grad_(True)
    for number in range(depth - int(blocks), depth):
        vit.blocks[number].requires_grad_(True)
    if blocks % 1:
        block: Any = vit.blocks[depth - int(blocks) - 1]
        block.norm2.requires_grad_(True)
        block.mlp.requires_grad_(True)


def check_blocks(blocks: float, depth: int) -> None:
    """Refuse what ``freeze`` cannot leave of an encoder of this depth.

    Raises:
        DataError: It is not a multiple of a half between 0 and the depth.
    """
    if not 0 <= blocks <= depth or (2 * blocks) % 1:
        raise DataError(
            f"blocks is {blocks:g}; it must be 0, 0.5, 1, ... up to {depth}.",
            code="blocks",
            hint="Give the number of last blocks to train; 0.5 is the MLP half of the last one.",
            field="blocks",
        )


def train_mode(vit: VisionTransformer) -> None:
    """Training mode, with stochastic depth only where something learns."""
    vit.train()
    for block in vit.blocks:
        if not any(parameter.requires_grad for parameter in block.parameters()):
            block.eval()


@torch.inference_mode()
def logits(vit: VisionTransformer, images: Tensor) -> Tensor:
    """What a classifier in evaluation mode says of whole photos ``[B, 3, S, S] uint8`` on its device: ``[B, C]``."""
    mean, std = (
        torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD)
    )
    with autocast(images.device):
        return vit((images.float() / 255 - mean) / std).float()


def write(path: Path, vit: VisionTransformer, name: str, config: MAEConfig, classes: Sequence[str]) -> None:
    """Write a classifier under timm's names; its classes, and what ``Classifier.read`` needs, into the header.

    Raises:
        CheckpointError: It cannot be written.
    """
    seen = replace(config, pixel_mean=None, pixel_std=None)  # its colours are ImageNet's by now
    facts = {"name": name, "config": seen.to_dict()}
    header = {"format": "pt", "classes": json.dumps(classes), "unmask": json.dumps(facts)}
    with replacing(path) as part:
        save_file(
            {key: value.cpu().contiguous() for key, value in vit.state_dict().items()}, part, metadata=header
        )


@dataclass(frozen=True)
class Classifier:
    """A fine-tuned classifier in use: what it says of a photo is what it was judged by.

    Attributes:
        vit: In evaluation mode, on its device.
        classes: Names, in the order of its answers.
        name: Of the model.
        side: Of the square that it sees, pixels.
    """

    vit: VisionTransformer
    classes: tuple[str, ...]
    name: str
    side: int

    @classmethod
    def read(cls, path: Path, device: torch.device) -> Classifier:
        """Read what ``evaluate finetune``, ``partial`` or ``scratch`` left.

        Raises:
            CheckpointError: It cannot be read, or is none of these.
        """
        raw = open_raw(path)
        config = raw.own.config
        if "classes" not in raw.header or config is None:
            raise CheckpointError(
                f"{path} is not a classifier that `evaluate finetune` of this version left.",
                code="classifier",
                hint="Make one of photos with labels: python -m model evaluate finetune --help tells how.",
                field="weights",
            )
        classes = tuple(json.loads(raw.header["classes"]))
        vit = _fresh(config, len(classes))
        vit.load_state_dict(raw.tensors)
        return cls(vit.to(device).eval(), classes, raw.own.name or path.stem, config.image_size)

    def prepare(self, data: bytes) -> Tensor:
        """The bytes of a picture as it is judged, ``[3, S, S] uint8``.

        Raises:
            ImageError: They are no picture, or a broken one.
        """
        return whole(decode(data), self.side)

    def run(self, images: Sequence[Tensor]) -> list[dict[str, float]]:
        """Of each prepared picture the probabilities of all classes, the likeliest first."""
        device = next(self.vit.parameters()).device
        shares = logits(self.vit, torch.stack(list(images)).to(device)).softmax(dim=1).tolist()
        return [dict(sorted(zip(self.classes, of, strict=True), key=lambda pair: -pair[1])) for of in shares]
