"""A training recipe: one TOML file per experiment, every key known, every default the paper's.

Recipes live in ``model/pretrain/recipes``; each file's header says hardware, cost, command and result.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from model import presets
from model.config import SIZES, MAEConfig, Target, choices
from model.devices import has_bf16
from model.errors import CheckpointError, RecipeError
from model.masking import MAX_SEED, SAMPLERS

if TYPE_CHECKING:
    import torch

#: What a run's length may be given as.
_LENGTHS = {"steps", "epochs", "minutes"}
_BASE = 256  # photos per step that a base learning rate is meant for
#: What of a size's encoder a recipe may change.
NETWORK = ("image_size", "patch_size", "width", "depth", "heads")
#: And of the colours that pixels are normalised by.
COLOURS = ("pixel_mean", "pixel_std")
#: Plain types as a person calls them.
_PLAIN: dict[type, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """The second stage, in which a discriminator judges the pasted pictures (``adversarial.py``)."""

    trained: Literal["decoder", "all"] = "decoder"  # what of the MAE still learns
    weight: float = 0.5  # of the adversarial terms, once they pull as hard as the pixel loss
    matching_weight: float = 10.0  # of the distance in the discriminator's features, beside its judgement
    perceptual_weight: float = 0.0  # of the distance in the features of the encoder the stage began with
    lr: float = 2e-4  # of the discriminator
    channels: int = 32  # of its first layer, a multiple of 4
    scales: int = 2  # discriminators, each at half the size of the one before
    window: int = 0  # side in pixels of the part of each picture that is judged in a step; 0: the whole
    warmup_steps: int = 100  # in which the discriminator learns alone

    def __post_init__(self) -> None:
        """Reject what cannot be trained, by name and with the reason."""
        _require_types(self)
        _require_choices(self)
        for name in ("weight", "matching_weight", "perceptual_weight", "warmup_steps", "window"):
            _require(getattr(self, name) >= 0, name, f"{getattr(self, name)} must be at least 0")
        _require(1 <= self.scales <= 8, "scales", f"{self.scales} must be 1 to 8")
        _require(
            4 <= self.channels <= 512 and self.channels % 4 == 0,
            "channels",
            f"{self.channels} must be a multiple of 4 up to 512",
        )
        _require(self.lr > 0, "lr", f"{self.lr} must be above 0")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a training run, but not where its data lies.

    Source of the defaults: arXiv 2111.06377, table 8, unless a comment says otherwise.
    """

    name: str  # the model's name in its weight file
    size: str = "vit_base"  # a key of model.config.SIZES
    # instead of the size's: image_size, patch_size, width, depth, heads, and the colours pixel_mean, pixel_std
    network: dict[str, Any] = field(default_factory=dict)
    target: Target = "pixel"  # what is predicted of a hidden patch
    decoder_depth: int | None = None  # blocks, instead of the size's
    decoder_width: int | None = None  # instead of the size's; a multiple of 4 and of the decoder's heads
    decoder_heads: int | None = None  # instead of the size's
    mask_tokens: Literal["decoder", "encoder"] = "decoder"  # encoder: it works on all places (table 1c)
    loss_on: Literal["hidden", "all"] = "hidden"  # patches that count
    seed: int = 0  # decides every sample, crop, flip and mask

    steps: int = 0  # optimiser steps in all
    epochs: float | None = None  # instead of steps: how often every photo comes
    minutes: float | None = None  # instead of steps: they are derived from the speed of the first ones
    batch_size: int = 4096  # photos per step
    accumulate: int = 1  # parts in which a step's photos go through the network, to save memory
    mask_ratio: float | tuple[float, float] = 0.75  # a pair: drawn uniformly for every batch
    # share of the samples masked by each strategy
    masking: dict[str, float] = field(default_factory=lambda: {"random": 1.0})
    augment: Literal["none", "fixed", "random", "colour"] = "random"  # see augment.py
    crops: int = 1  # of a photo each time it comes, in a row: decoded once, each with its own mask
    crop_scale: tuple[float, float] = (0.2, 1.0)  # random, colour: share of the photo's area in a crop
    # share of a source's photos that an epoch holds, 0..1, default 1
    source_weights: dict[str, float] = field(default_factory=dict)
    max_broken_share: float = 0.01  # photos that may be undecodable (and replaced); above 0 at least three
    data_path: Literal["auto", "host", "device"] = "auto"  # device: all photos decoded into its memory

    optimiser: Literal["adamw", "muon"] = "adamw"  # muon: block matrices by Muon, the rest by AdamW at `lr`
    lr: float = 2.4e-3  # real learning rate at the top; a file may give base_lr instead, see load_recipe
    muon_lr: float = 0.02  # learning rate of the block matrices, matched to AdamW's rms
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_steps: int = 0
    warmup_epochs: float | None = None  # instead of warmup_steps
    schedule: Literal["cosine", "trapezoid"] = "cosine"  # trapezoid: flat, then down; can be lengthened later
    decay_share: float = 0.3  # trapezoid: share of the steps in which the rate falls to zero
    clip_norm: float | None = None  # the paper does not clip
    ema: float | None = None  # decay of an average of the weights, which is then what a run leaves

    adversarial: Adversarial | None = None  # a second stage, begun from the weights of a first with --init

    # bf16, fp16: autocast, weights stay float32; auto: see ``arithmetic``
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    # fsdp2: processes share weights and optimiser; ddp: each holds all
    sharding: Literal["ddp", "fsdp2"] = "ddp"
    compile: bool = False  # torch.compile network and loss, for one shape
    # forget activations inside blocks, compute them again: less memory, a third more time
    recompute: bool = False
    log_every: int = 20
    picture_every: int = 500
    checkpoint_every: int = 250  # steps from state to state, and from validation to validation
    keep: int = 2  # newest states that stay on disk; the best one stays too
    val_photos: int = 256  # of those given to validate on, at most

    def __post_init__(self) -> None:
        """Reject what cannot be trained, by name and with the reason."""
        _require_types(self)
        for name in (
            "batch_size",
            "accumulate",
            "crops",
            "log_every",
            "picture_every",
            "checkpoint_every",
            "keep",
            "val_photos",
        ):
            _require(getattr(self, name) >= 1, name, f"{getattr(self, name)} must be at least 1")
        _require(self.size in SIZES, "size", f"{self.size!r} is unknown; take one of {', '.join(SIZES)}")
        _require_choices(self)
        _require(
            self.adversarial is None or (self.target == "pixel" and not self.compile),
            "adversarial",
            "it works on pictures (target = 'pixel') and without compile",
        )
        _require(
            self.adversarial is None or self.precision != "fp16",
            "precision",
            "fp16 does not work in an adversarial stage, whose gradients are too small for it; take auto, bf16 or fp32",
        )
        plain = (
            self.optimiser == "adamw" and self.ema is None and self.adversarial is None and not self.compile
        )
        _require(
            self.sharding == "ddp" or (plain and self.target in ("pixel", "norm_pixel")),
            "sharding",
            "fsdp2 works with adamw, on pixels, without ema, compile and an adversarial stage",
        )
        lengths = (self.steps != 0) + (self.epochs is not None) + (self.minutes is not None)
        _require(lengths == 1, "steps", "give one of steps, epochs and minutes")
        pair = not isinstance(self.mask_ratio, tuple) or len(self.mask_ratio) == 2
        _require(pair, "mask_ratio", f"{self.mask_ratio} must hold two numbers, the lowest and the highest")
        low, high = self.ratio_range
        given = self.network.keys()
        for name, inside, bounds in (
            ("seed", 0 <= self.seed <= MAX_SEED, f"0 to {MAX_SEED}"),
            ("steps", self.steps >= 0, "at least 1"),
            ("epochs", self.epochs is None or self.epochs > 0, "above 0"),
            ("minutes", self.minutes is None or self.minutes > 0, "above 0"),
            ("warmup_steps", self.warmup_steps >= 0, "at least 0"),
            (
                "warmup_epochs",
                self.warmup_epochs is None or self.warmup_epochs >= 0 == self.warmup_steps,
                "at least 0, and warmup_steps not given",
            ),
            ("mask_ratio", 0 < low <= high < 1, "above 0 and below 1, a pair rising"),
            (
                "masking",
                set(self.masking) <= set(SAMPLERS)
                and min(self.masking.values(), default=-1.0) >= 0
                and abs(sum(self.masking.values()) - 1) < 1e-6,
                f"shares of {', '.join(SAMPLERS)} that add up to 1",
            ),
            ("crop_scale", 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1, "rising within 0..1"),
            ("source_weights", all(0 < w <= 1 for w in self.source_weights.values()), "above 0, at most 1"),
            ("max_broken_share", 0 <= self.max_broken_share < 1, "at least 0 and below 1"),
            ("ema", self.ema is None or 0 < self.ema < 1, "above 0 and below 1"),
            ("lr", self.lr > 0, "above 0"),
            ("muon_lr", self.muon_lr > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("betas", [0 <= beta < 1 for beta in self.betas] == [True, True], "two within 0..1"),
            ("decay_share", 0 <= self.decay_share <= 1, "within 0..1"),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "above 0"),
            ("decoder_depth", self.decoder_depth is None or self.decoder_depth >= 1, "at least 1"),
            ("decoder_width", self.decoder_width is None or self.decoder_width >= 1, "at least 1"),
            ("decoder_heads", self.decoder_heads is None or self.decoder_heads >= 1, "at least 1"),
            (
                "network",
                self.network.keys() <= {*NETWORK, *COLOURS}
                and all(
                    type(self.network[name]) is int and self.network[name] >= 1 for name in given & {*NETWORK}
                )
                and all(_is_colour(self.network[name]) for name in given & {*COLOURS}),
                f"whole numbers, at least 1, called {', '.join(NETWORK)}; or {' and '.join(COLOURS)}, lists of one "
                "number per channel",
            ),
            ("name", bool(self.name) and Path(self.name).name == self.name, "a file's name, without folders"),
        ):
            _require(inside, name, f"{getattr(self, name)} must be {bounds}")
        try:
            _ = self.config
        except CheckpointError as error:
            raise _bad("network" if self.network else "decoder_width", str(error).rstrip(".")) from error

    @property
    def ratio_range(self) -> tuple[float, float]:
        """Lowest and highest share hidden; equal where it is one number."""
        ratio = self.mask_ratio
        return (ratio[0], ratio[1]) if isinstance(ratio, tuple) else (ratio, ratio)

    def in_steps(self, samples: int) -> Recipe:
        """The same run, its epochs turned into steps.

        Args:
            samples: Of one epoch, ``Sampler.mean_length``.
        """

        def steps(epochs: float | None, otherwise: int) -> int:
            return otherwise if epochs is None else math.ceil(epochs * samples / self.batch_size)

        return replace(
            self,
            steps=steps(self.epochs, self.steps),
            epochs=None,
            warmup_steps=steps(self.warmup_epochs, self.warmup_steps),
            warmup_epochs=None,
        )

    def check_warmup(self) -> None:
        """Refuse a run, in steps, that ends before it has warmed up.

        Raises:
            RecipeError: It does.
        """
        _require(
            self.warmup_steps <= self.steps,
            "warmup_steps",
            f"{self.warmup_steps} must be at most the {self.steps} steps of the run",
        )

    def with_short_warmup(self) -> Recipe:
        """The same run, warming up in a tenth of its steps at most: it reaches its rate though it was shortened."""
        return replace(self, warmup_steps=min(self.warmup_steps, self.steps // 10))

    def with_colours(self, colours: dict[str, list[float]]) -> Recipe:
        """The same run with pixels normalised by these, unless it says itself by which."""
        own = self.network.keys() & {*COLOURS}
        return self if own or not colours else replace(self, network={**self.network, **colours})

    @property
    def config(self) -> MAEConfig:
        """The network this recipe trains."""
        values = SIZES[self.size].to_dict() | {"target": self.target, "mask_tokens": self.mask_tokens}
        given = {name: getattr(self, name) for name in ("decoder_depth", "decoder_width", "decoder_heads")}
        return MAEConfig.from_dict(
            values | self.network | {name: value for name, value in given.items() if value is not None}
        )

    def arithmetic(self, device: torch.device) -> torch.dtype:
        """Numbers that the network computes in on a device; weights, loss and optimisers stay float32.

        With ``auto`` those that are fast: bfloat16 where there is arithmetic for it, else float16 on a GPU. The
        adversarial stage weighs its terms by gradients of its own, which nothing scales: there float32.
        """
        import torch

        if self.precision != "auto":
            return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.precision]
        if has_bf16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" and self.adversarial is None else torch.float32

    @property
    def masks(self) -> str:
        """The masks in words, as a weight file's card tells them and the page reads them: ``random 75 %``."""
        low, high = (f"{100 * ratio:g}" for ratio in self.ratio_range)
        hidden = f"{low} %" if low == high else f"{low} to {high} %"
        shares = {name: share for name, share in self.masking.items() if share > 0}
        if len(shares) == 1:
            return f"{next(iter(shares))} {hidden}"
        return f"{hidden} hidden: " + ", ".join(f"{name} {100 * share:g} %" for name, share in shares.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as kept in checkpoints."""
        return asdict(self)


#: What a recipe's file may hold.
KEYS = frozenset(entry.name for entry in fields(Recipe)) | {"base_lr"}


def load_recipe(name_or_path: str, **changes: Any) -> Recipe:
    """Read a recipe by file or by name, with command-line changes on top.

    Args:
        name_or_path: A TOML file, or the name of one in ``model/pretrain/recipes``. Besides the fields of ``Recipe``
            it may hold ``base_lr``, the learning rate of 256 photos per step: ``lr`` is then in proportion to the
            batch (the paper's rule).
        changes: Fields to replace; ``None`` means unchanged.

    Raises:
        RecipeError: No such recipe, a key is unknown or missing, or a value is out of range.
    """
    values = presets.read(name_or_path, "model.pretrain", "recipes", "recipe")
    changes = {key: value for key, value in changes.items() if value is not None}
    if changes.keys() & _LENGTHS:  # one takes the other's place
        values = {key: value for key, value in values.items() if key not in _LENGTHS}
    if "size" in changes:  # with all that belongs to it
        values.pop("network", None)
    values |= changes
    if unknown := sorted(set(values) - KEYS):
        raise _bad(unknown[0], f"unknown key in {name_or_path}; known are {', '.join(sorted(KEYS))}")
    if "name" not in values:
        raise _bad("name", f'{name_or_path} has none; write name = "..." in it')
    for key in ("crop_scale", "betas", "mask_ratio"):
        if isinstance(values.get(key), list):
            values[key] = tuple(values[key])
    try:
        if "base_lr" in values:
            _require("lr" not in values, "base_lr", "lr is given too; leave one out")
            _require(_is(values["base_lr"], float), "base_lr", f"{values['base_lr']!r} must be a number")
            values["lr"] = values.pop("base_lr") * values.get("batch_size", Recipe.batch_size) / _BASE
        if "adversarial" in values:
            values["adversarial"] = Adversarial(**values["adversarial"])
        return Recipe(**values)
    except (TypeError, CheckpointError) as error:
        raise _bad("recipe", f"{name_or_path}: {error}") from error


def _require_types(settings: Recipe | Adversarial) -> None:
    """Refuse a plain value of another type, which would stop the run in its middle."""
    for name, hint in get_type_hints(type(settings)).items():
        plain, *others = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        value = getattr(settings, name)
        if plain in _PLAIN and type(value) not in {get_origin(other) or other for other in others}:
            _require(_is(value, plain), name, f"{value!r} must be {_PLAIN[plain]}")
        _require(get_origin(hint) is not dict or isinstance(value, dict), name, f"{value!r} must be a table")
        pair = get_origin(hint) is not tuple or (isinstance(value, tuple) and len(value) == 2)
        _require(pair, name, f"{value!r} must hold two numbers")
        _require(not isinstance(value, float) or math.isfinite(value), name, f"{value} must be finite")


def _is(value: object, kind: type) -> bool:
    """Whether it is of this plain type; a whole number is a number too, and true is not."""
    return type(value) in ((int, float) if kind is float else (kind,))


def _is_colour(value: object) -> bool:
    return isinstance(value, list) and all(_is(number, float) for number in value)


def _require_choices(settings: Recipe | Adversarial) -> None:
    for name, allowed in choices(type(settings)).items():
        value = getattr(settings, name)
        _require(value in allowed, name, f"{value!r} is unknown; take one of {', '.join(allowed)}")


def _require(fulfilled: bool, field_name: str, message: str) -> None:
    if not fulfilled:
        raise _bad(field_name, message)


def _bad(field_name: str, message: str) -> RecipeError:
    return RecipeError(
        f"{field_name}: {message}.",
        code="recipe",
        hint="Correct it in the recipe, or where the command line overrides it.",
        field=field_name,
    )
