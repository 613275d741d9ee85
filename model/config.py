"""The shape of a masked autoencoder, and the sizes that have names.

Knows numbers only: no tensors, no files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from math import inf, isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

from model.errors import CheckpointError

#: What ``decoder_pred`` may predict for each patch: ImageNet-normalised pixels, per-patch z-scores, the largest
#: principal components of the pixels, or which word of a discrete VAE's vocabulary the patch is (table 1d).
#: ``norm_pixel_stats`` tells with the z-scores the mean and the logarithm of the deviation that a picture needs and the
#: paper's target leaves out.
Target = Literal["pixel", "norm_pixel", "norm_pixel_stats", "pca", "tokens"]
#: Those that can be shown as pictures.
PICTURE_TARGETS: tuple[Target, ...] = ("pixel", "norm_pixel", "norm_pixel_stats")
PCA_VALUES = 96  # coefficients a patch, as in the paper
MAX_CHANNELS = 1024  # hyperspectral cameras have some hundreds
VOCABULARY = 512  # words of our discrete VAE; the paper borrows one of 8,192
TOKENIZER_WIDTH = 256  # hidden units of its encoder

#: Mean and deviation of ImageNet's colours, per channel, for pixels in 0..1.
#: Source: facebookresearch/mae and every public MAE checkpoint.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def choices(kind: type) -> dict[str, tuple[str, ...]]:
    """By field of a dataclass, the words that its ``Literal`` permits."""
    hints = get_type_hints(kind)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


@dataclass(frozen=True, kw_only=True)
class MAEConfig:
    """Everything that decides the shape of an MAE and the meaning of its output.

    Source: arXiv 2111.06377, sec. 3 and appendix A; head counts from the public code.
    """

    image_size: int = 224  # side of the square picture, pixels
    patch_size: int = 16  # side of one patch, pixels
    channels: int = 3  # values of a pixel: 3 colours, 1 grey, or what a model was trained on
    width: int = 768  # encoder token width D
    depth: int = 12  # encoder blocks
    heads: int = 12  # encoder attention heads
    decoder_width: int = 512  # decoder token width d
    decoder_depth: int = 8  # decoder blocks
    decoder_heads: int = 16  # decoder attention heads
    mlp_ratio: float = 4.0  # hidden width of every MLP / token width
    target: Target = "pixel"  # what decoder_pred predicts
    # where they join; encoder: it sees every place (table 1c)
    mask_tokens: Literal["decoder", "encoder"] = "decoder"
    # patches: as stable-pretraining builds it, the class token left out before it and 1e-5 in its norms
    decoder: Literal["paper", "patches"] = "paper"
    # what pixels in 0..1 are normalised by, of every channel; None: by ImageNet's colours
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Reject shapes that cannot exist, before a tensor is made."""
        whole = [name for name, kind in get_type_hints(type(self)).items() if kind is int]
        if other := [name for name in whole if type(getattr(self, name)) is not int]:
            raise _bad(f"{other[0]} {getattr(self, other[0])!r:.60} must be a whole number")
        if low := [name for name, value in vars(self).items() if type(value) is int and value < 1]:
            raise _bad(f"{low[0]} {getattr(self, low[0])} must be at least 1")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise _bad(f"channels {self.channels} must lie between 1 and {MAX_CHANNELS}")
        if self.image_size % self.patch_size:
            raise _bad(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        for width, heads, name in (
            (self.width, self.heads, "width"),
            (self.decoder_width, self.decoder_heads, "decoder_width"),
        ):
            if width % 4 or width % heads:
                raise _bad(f"{name} {width} must be a multiple of 4 and of its {heads} heads")
        for name, allowed in choices(type(self)).items():
            if getattr(self, name) not in allowed:
                raise _bad(f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if self.target == "pca" and self.patch_values < PCA_VALUES:
            raise _bad(f"patches of {self.patch_values} numbers have no {PCA_VALUES} components (target pca)")
        self._check_colours()

    def _check_colours(self) -> None:
        if not len(self.image_mean) == len(self.image_std) == self.channels:
            raise _bad(f"pixel_mean and pixel_std must hold one number for each of {self.channels} channels")
        if not all(map(isfinite, self.image_mean)) or not all(0 < value < inf for value in self.image_std):
            raise _bad("pixel_mean must be finite, and pixel_std finite and above 0")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def patches(self) -> int:
        """Number of patches L."""
        rows, columns = self.grid
        return rows * columns

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: P * P * C."""
        return self.patch_size**2 * self.channels

    @property
    def target_values(self) -> int:
        """Numbers predicted for one patch."""
        others = {"norm_pixel_stats": self.patch_values + 2, "pca": PCA_VALUES, "tokens": VOCABULARY}
        return others.get(self.target, self.patch_values)

    @property
    def image_mean(self) -> tuple[float, ...]:
        """Mean of every channel, for values in 0..1: its own, else ImageNet's; for other than three channels the
        mean of these three, as timm takes it for greys.
        """  # noqa: D205 (one thought)
        return self.pixel_mean or imagenet(IMAGE_MEAN, self.channels)

    @property
    def image_std(self) -> tuple[float, ...]:
        """Deviation of every channel, likewise."""
        return self.pixel_std or imagenet(IMAGE_STD, self.channels)

    def to_dict(self) -> dict[str, Any]:
        """The config as plain values, as stored in a weight file; colours only where they are not ImageNet's."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MAEConfig:
        """Build a config from stored values.

        Raises:
            CheckpointError: A key is unknown or a shape is impossible (missing keys take their defaults).
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise _bad(f"unknown config keys {unknown}")
        # JSON makes lists of tuples.
        ready: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**ready)


def imagenet(colours: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """``IMAGE_MEAN`` or ``IMAGE_STD`` for so many channels."""
    return colours if channels == 3 else (round(sum(colours) / 3, 6),) * channels


def _bad(message: str) -> CheckpointError:
    return CheckpointError(
        f"This model shape cannot be built: {message}.",
        code="config",
        hint="Use one of the named sizes (model.config.SIZES) or correct the value.",
    )


#: Named sizes. The three public ones follow the paper and its code; ``mini`` is the default that we
#: ship (docs/log.md says how it was chosen), ``small`` three times its weights; ``tiny`` has mini's encoder on
#: 64 patches, for ablations of many runs; ``debug`` is for tests and runs in milliseconds.
SIZES: dict[str, MAEConfig] = {
    "vit_base": MAEConfig(),
    "vit_large": MAEConfig(width=1024, depth=24, heads=16),
    "vit_huge": MAEConfig(patch_size=14, width=1280, depth=32, heads=16),
    "small": MAEConfig(width=256, depth=12, heads=4, decoder_width=192, decoder_depth=4, decoder_heads=6),
    "mini": MAEConfig(width=192, depth=6, heads=3, decoder_width=128, decoder_depth=4, decoder_heads=4),
    "tiny": MAEConfig(
        image_size=128, width=192, depth=6, heads=3, decoder_width=96, decoder_depth=4, decoder_heads=3
    ),
    "debug": MAEConfig(
        image_size=64, width=32, depth=2, heads=2, decoder_width=32, decoder_depth=1, decoder_heads=2
    ),
}
