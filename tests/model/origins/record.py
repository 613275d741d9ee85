"""What other programs' own classes predict, recorded once, so that the tests need none of them.

    PYTHONPATH=... python -m tests.model.origins.record lightly

builds the program's model, fills it with weights that every machine can make again, lets it predict, and writes
names, shapes and a sample of the prediction to a JSON file beside this one. The test makes the same weights under
the same names, reads them as a file, and compares.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
import zlib
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.config import MAEConfig
from model.masking import sample_mask
from model.network import MAE

HERE = Path(__file__).parent
#: No named size: 5 x 5 patches of 8 pixels; and the one everybody has.
CONFIGS = {
    "odd": MAEConfig(
        image_size=40, patch_size=8, width=48, depth=3, heads=3, decoder_width=24, decoder_depth=2, decoder_heads=2
    ),
    "base": MAEConfig(),
}  # fmt: skip


def values(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights made of a tensor's name: even noise by an integer hash, as large as its part in a network allows."""
    count = int(np.prod(shape))
    bits = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(
        zlib.crc32(name.encode())
    )
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    noise = ((bits >> np.uint64(40)).astype(np.float64) / 2**23 - 1).reshape(shape)  # -1 .. 1
    if len(shape) == 1:
        return torch.from_numpy(
            0.1 * noise + ("norm" in name or ".ln" in name) * name.endswith("weight")
        ).float()
    fan_in = int(np.prod(shape[1:]))
    return torch.from_numpy(noise * (0.5 if shape[0] == 1 else (3 / fan_in) ** 0.5)).float()


def question(config: MAEConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Two pictures (normalised units) and their masks of three quarters: image, ids_keep, ids_restore."""
    side = config.image_size
    image = 8 * values("picture", (2, 3, side, side))
    count = config.patches - config.patches // 4
    masks = [sample_mask("random", config.grid, count, seed) for seed in (1, 2)]
    keep, restore = (
        torch.from_numpy(np.stack([getattr(mask, key) for mask in masks]))
        for key in ("ids_keep", "ids_restore")
    )
    return image, keep, restore


def sampled(prediction: Tensor) -> Tensor:
    """Every third patch, every 17th value, fewer of a large model: enough to see a swap of anything."""
    return prediction[:, :: max(3, prediction.shape[1] // 16), :: max(17, prediction.shape[2] // 15)]


def _fill(model: nn.Module) -> None:
    filled: set[int] = set()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.data_ptr() not in filled:  # else a second name of the same numbers
                tensor.copy_(values(name, tuple(tensor.shape)))
            filled.add(tensor.data_ptr())


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _lightly_encoder(config: MAEConfig) -> nn.Module:
    vit = _module("timm.models.vision_transformer").VisionTransformer(
        img_size=config.image_size, patch_size=config.patch_size, embed_dim=config.width, depth=config.depth,
        num_heads=config.heads, num_classes=10,
    )  # fmt: skip
    encoder: nn.Module = _module("lightly.models.modules").MaskedVisionTransformerTIMM(vit=vit)
    return encoder


class LightlyOld(nn.Module):
    """The MAE of lightly's documentation, with ``MAEDecoderTIMM``."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.backbone: Any = _lightly_encoder(config)
        self.decoder: Any = _module("lightly.models.modules").MAEDecoderTIMM(
            num_patches=config.patches, patch_size=config.patch_size, embed_dim=config.width,
            decoder_embed_dim=config.decoder_width, decoder_depth=config.decoder_depth,
            decoder_num_heads=config.decoder_heads,
        )  # fmt: skip

    def forward(self, image: Tensor, keep: Tensor, restore: Tensor) -> Tensor:
        utils = _module("lightly.models.utils")
        idx_keep = torch.cat([torch.zeros(len(keep), 1, dtype=torch.int64), keep + 1], dim=1)
        latent = self.decoder.embed(self.backbone.encode(image, idx_keep=idx_keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(keep), restore.shape[1] + 1))
        tokens = utils.set_at_index(tokens, idx_keep, latent)
        prediction: Tensor = self.decoder.predict(self.decoder.decode(tokens))[:, 1:]
        return prediction


class LightlyNew(nn.Module):
    """The MAE of lightly's examples since 1.6, with ``MaskedVisionTransformerDecoderTIMM``."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.backbone: Any = _lightly_encoder(config)
        self.decoder_embed = nn.Linear(config.width, config.decoder_width)
        self.decoder: Any = _module("lightly.models.modules").MaskedVisionTransformerDecoderTIMM(
            num_patches=config.patches, embed_dim=config.decoder_width, depth=config.decoder_depth,
            num_heads=config.decoder_heads,
        )  # fmt: skip
        self.prediction_head = nn.Linear(config.decoder_width, config.patch_values)

    def forward(self, image: Tensor, keep: Tensor, restore: Tensor) -> Tensor:
        utils = _module("lightly.models.utils")
        idx_keep = torch.cat([torch.zeros(len(keep), 1, dtype=torch.int64), keep + 1], dim=1)
        latent = self.decoder_embed(self.backbone.encode(image, idx_keep=idx_keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(keep), restore.shape[1] + 1))
        tokens = utils.set_at_index(tokens, idx_keep, latent)
        tokens = self.decoder.decode(self.decoder.add_pos_embed(tokens))
        prediction: Tensor = self.prediction_head(tokens)[:, 1:]
        return prediction


class OpenMMLab(nn.Module):
    """mmpretrain's MAE: backbone and neck."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        arch = {
            "embed_dims": config.width, "num_layers": config.depth, "num_heads": config.heads,
            "feedforward_channels": config.width * 4,
        }  # fmt: skip
        self.backbone: Any = _module("mmpretrain.models.selfsup.mae").MAEViT(
            arch=arch, img_size=config.image_size, patch_size=config.patch_size
        )
        self.neck: Any = _module("mmpretrain.models.necks.mae_neck").MAEPretrainDecoder(
            num_patches=config.patches, patch_size=config.patch_size, embed_dim=config.width,
            decoder_embed_dim=config.decoder_width, decoder_depth=config.decoder_depth,
            decoder_num_heads=config.decoder_heads,
        )  # fmt: skip

    def forward(self, image: Tensor, keep: Tensor, restore: Tensor) -> Tensor:
        def masking(tokens: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
            return tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1])), restore, restore

        self.backbone.random_masking = masking
        prediction: Tensor = self.neck(self.backbone(image)[0], restore)
        return prediction


class Transformers(nn.Module):
    """``ViTMAEForPreTraining`` of whichever version runs, names as in its saved files."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        transformers = _module("transformers")
        settings = transformers.ViTMAEConfig(
            image_size=config.image_size, patch_size=config.patch_size, hidden_size=config.width,
            num_hidden_layers=config.depth, num_attention_heads=config.heads, intermediate_size=config.width * 4,
            decoder_hidden_size=config.decoder_width, decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_heads, decoder_intermediate_size=config.decoder_width * 4,
            layer_norm_eps=1e-6, mask_ratio=0.75,
        )  # fmt: skip
        model = transformers.ViTMAEForPreTraining(settings).eval()
        self._model: Callable[[], Any] = lambda: model  # hidden, so that its names get no prefix

    def state_dict(self, *args: Any, **more: Any) -> Any:
        return self._model().state_dict()

    def forward(self, image: Tensor, keep: Tensor, restore: Tensor) -> Tensor:
        prediction: Tensor = self._model()(image, noise=restore.float()).logits
        return prediction


class StablePretraining(nn.Module):
    """stable-pretraining's MAE, under the masks it is given; names as in its saved files."""

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        vit = _module("timm.models.vision_transformer").VisionTransformer(
            img_size=config.image_size, patch_size=config.patch_size, embed_dim=config.width, depth=config.depth,
            num_heads=config.heads, num_classes=0,
        )  # fmt: skip
        self.config = replace(config, decoder="patches")
        self._keep: Tensor | None = None
        model = _module("stable_pretraining.methods.mae").MAE(
            vit, decoder_embed_dim=config.decoder_width, decoder_depth=config.decoder_depth,
            decoder_num_heads=config.decoder_heads, norm_pix_loss=False, masking=self._mask,
        )  # fmt: skip
        model.train()  # it masks in training alone; nothing in it is drawn
        self._model: Callable[[], Any] = lambda: model  # hidden, so that its names get no prefix

    def _mask(self, tokens: Tensor, rows: int, columns: int) -> Any:
        keep = self._keep
        assert keep is not None
        visible = tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))
        mask = torch.ones(len(keep), rows * columns).scatter(1, keep, 0)
        return types.SimpleNamespace(visible=visible, mask=mask, ids_keep=keep)

    def state_dict(self, *args: Any, **more: Any) -> Any:
        return self._model().state_dict()

    def forward(self, image: Tensor, keep: Tensor, restore: Tensor) -> Tensor:
        self._keep = keep
        prediction: Tensor = self._model()(image).predictions
        return prediction[..., self._order(image[:1])]

    def _order(self, image: Tensor) -> Tensor:
        """Where in one of its patches our values stand, by what its own loss compares."""
        counted = torch.arange(image.numel(), dtype=torch.float32).reshape(image.shape)
        theirs, ours = self._model().loss_fn.patchify(counted)[0, 0], MAE(self.config).patchify(counted)[0, 0]
        where: Tensor = theirs.argsort()[ours.argsort().argsort()]
        return where


#: Program, the package whose version is recorded, and how to build its model.
ORIGINS: dict[str, tuple[str, Callable[[MAEConfig], nn.Module]]] = {
    "lightly-1.5": ("lightly", LightlyOld),
    "lightly": ("lightly", LightlyNew),
    "openmmlab": ("mmpretrain", OpenMMLab),
    "stable-pretraining": ("stable-pretraining", StablePretraining),
    "transformers-4": ("transformers", Transformers),
}


def main(names: list[str]) -> None:
    """Record the named programs."""
    for name in names:
        package, build = ORIGINS[name]
        for size, config in CONFIGS.items():
            model = build(config).eval()
            _fill(model)
            with torch.inference_mode():
                prediction = sampled(model(*question(config)))
            record = {
                "origin": f"{package} {version(package)}",
                "config": getattr(model, "config", config).to_dict(),
                "shapes": {key: list(tensor.shape) for key, tensor in model.state_dict().items()},
                "prediction": [float(f"{value:.7g}") for value in prediction.flatten().tolist()],
            }
            (HERE / f"{name}-{size}.json").write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
