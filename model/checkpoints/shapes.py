"""What network a file's tensors make: its shape and its target.

A head count stands in no tensor's shape, and nothing in a public file says raw or normalised pixels: both come
from a config, from what is known of the files, or from the caller; what is assumed beyond that is said in a note.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.checkpoints.files import CONFIGS, RawFile, refuse
from model.checkpoints.layouts import Tensors, content, recognise
from model.config import IMAGE_MEAN, IMAGE_STD, SIZES, MAEConfig, Target, imagenet
from model.errors import CheckpointError

#: Patches a side at most: a number in a config, or in a file's head, decides how large a table is made.
_MOST_CELLS = 128

#: Encoder heads by width, as in the paper's code; huge has heads of 80.
_HEADS = {768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS = {512: 16}  # the one decoder of the paper's code
#: DeiT's small ones, of which other programs (MAE-Lite's tiny, MoCo's small) have another number.
_ASSUMED_HEADS = {192: 3, 384: 6}
#: Side in pixels of what the paper trained on, for a file without positions and settings.
_ASSUMED_SIZE = 224
#: Names of the picture's side among training options: the authors', timm's.
_SIZE_OPTIONS = ("input_size", "img_size")
#: What may differ between a file and a named size without changing its heads.
_FREE = ("image_size", "target", "heads", "decoder_heads")
#: The authors' released files, whose names alone say what they predict (nothing inside does).
_RELEASED: tuple[tuple[str, Target], ...] = (
    (r"mae_visualize_vit_(base|large|huge)(_ganloss)?\.\w+", "pixel"),
    (r"mae_pretrain_vit_(base|large|huge)(_full)?\.\w+", "norm_pixel"),
)


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the caller knows and the file may leave out.

    It overrules what another program wrote, and says so; what contradicts our own config is refused.

    Attributes:
        heads: Encoder attention heads.
        decoder_heads: Decoder attention heads.
        target: What the decoder predicts.
        source: Who says so, for reports.
        weights_key: Where in a pickle the weights lie, of several.
    """

    heads: int | None = None
    decoder_heads: int | None = None
    target: Target | None = None
    source: str = "you"
    weights_key: str | None = None


def find_target(raw: RawFile, given: Given) -> tuple[Target | None, str]:
    """What the decoder predicts, and who says so; ``(None, "")`` where nobody does.

    Raises:
        CheckpointError: The caller contradicts our own config.
    """
    told, source = _told_target(raw)
    if given.target is None or given.target == told:
        return told, source
    if raw.own.config is not None:
        raise _contradicted(raw, "target", told, given.target)
    return given.target, f"{given.source}, though {source} says {told}" if told else given.source


def _told_target(raw: RawFile) -> tuple[Target | None, str]:
    if raw.own.config is not None:
        return raw.own.config.target, "the file's own config"
    if isinstance(raw.options.get("norm_pix_loss"), bool):
        return _target(raw.options["norm_pix_loss"]), "the training options stored in the file"
    if raw.config.get("model_type") == "vit_mae":
        told = raw.config.get("norm_pix_loss", False)
        if isinstance(told, bool):
            return _target(told), "config.json"
    released = _released_target(raw)
    return released, "the file's name" if released else ""


def _contradicted(raw: RawFile, what: str, stored: object, given: object) -> CheckpointError:
    return refuse(
        f"{raw.path.name}: its own config says {what} {stored}, but {given} was given",
        f"Leave --{what.replace('_', '-')} out; if the config is wrong, convert the original file again.",
        "contradiction",
    )


def is_released(raw: RawFile) -> bool:
    """Whether the file bears the name of one that the authors released, and has that one's shape."""
    return _released_target(raw) is not None


def _released_target(raw: RawFile) -> Target | None:
    for pattern, target in _RELEASED:
        if name := re.fullmatch(pattern, raw.path.name):
            size, token = SIZES[f"vit_{name[1]}"], raw.tensors.get("cls_token")
            depth = len({key.split(".")[1] for key in raw.tensors if key.startswith("blocks.")})
            same = token is not None and (token.shape[-1], depth) == (size.width, size.depth)
            return target if same else None
    return None


def _target(normalised: bool) -> Target:
    return "norm_pixel" if normalised else "pixel"


def infer_config(
    raw: RawFile, house: Tensors, given: Given, target: Target
) -> tuple[MAEConfig, tuple[str, ...]]:
    """The shape of the network, from tensors, config and caller.

    Args:
        raw: The file.
        house: Its tensors under house names.
        given: What the caller adds.
        target: What was found out about it (shapes do not tell).

    Returns:
        The shape, and notes: what was assumed for want of anybody's word, or taken against somebody's.

    Raises:
        CheckpointError: A needed tensor is missing, a head count is nowhere to be had, or the caller contradicts our
            own config.
    """
    name = raw.path.name
    needed = ["cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"]
    if content(house) == "full":
        needed += ["decoder_embed.weight", "decoder_pred.weight", "decoder_blocks.0.mlp.fc1.weight"]
    if absent := [key for key in needed if key not in house]:
        raise refuse(
            f"{name} lacks {', '.join(absent)}",
            "It is not a complete vision transformer of the paper's kind; give a complete file.",
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
    size, note = _image_size(raw, house, side)
    notes = [note]
    values: dict[str, Any] = {
        "image_size": size,
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
    if raw.own.config is not None:
        _check_own(raw, raw.own.config, values, given)
        return raw.own.config, ()
    for decoder in (True, False) if "decoder_width" in values else (False,):
        values["decoder_heads" if decoder else "heads"], note = _heads(raw, values, given, decoder=decoder)
        notes.append(note)
    colours, note = _colours(raw, values["channels"])
    config = MAEConfig(**values, **colours, decoder=recognise(raw).decoder)
    return config, tuple(filter(None, [*notes, note]))


def _check_own(raw: RawFile, own: MAEConfig, values: dict[str, Any], given: Given) -> None:
    """Refuse tensors, or a caller, that contradict our own config."""
    # Shapes first: a header that promises another network than the file holds builds nothing.
    for key, value in values.items():
        if getattr(own, key) != value:
            raise refuse(
                f"{raw.path.name}: its config says {key} {getattr(own, key)}, its tensors {value}",
                "The file was changed or written by another version; nothing was loaded.",
                "tensors",
            )
    for key in ("heads", "decoder_heads"):
        asked, told = getattr(given, key), getattr(own, key)
        if asked not in (None, told):
            raise _contradicted(raw, key, told, asked)


def _image_size(raw: RawFile, house: Tensors, patch_size: int) -> tuple[int, str]:
    """Side of the picture, from stored positions, a config or training options; and a note where it is assumed."""
    if "pos_embed" in house:
        cells = house["pos_embed"].shape[1] - 1
        side = round(cells**0.5)
        if side * side != cells:
            raise refuse(
                f"{raw.path.name} has positions for {cells} patches, which is not a square grid",
                "Only square grids are read.",
                "shape",
            )
        if side > _MOST_CELLS:
            raise _too_many_cells(raw, side * patch_size)
        return side * patch_size, ""
    told = (
        raw.own.config.image_size if raw.own.config else None,
        raw.config.get("image_size"),
        *map(raw.options.get, _SIZE_OPTIONS),
    )
    size: Any = next((size for size in told if size), None)
    size = size[0] if isinstance(size, list | tuple) and size else size
    if size is None:
        note = f"Pictures of {_ASSUMED_SIZE} pixels are assumed: no positions are stored, nor a size."
        return _ASSUMED_SIZE, note
    try:
        side = int(size)
    except (TypeError, ValueError, OverflowError):
        raise refuse(
            f"{raw.path.name} says that its pictures have {size!r:.60} pixels per side",
            "Correct its config or training options: a whole number is needed.",
            "shape",
        ) from None
    if not 0 < side <= _MOST_CELLS * patch_size:
        raise _too_many_cells(raw, side)
    return side, ""


def _too_many_cells(raw: RawFile, size: int) -> CheckpointError:
    return refuse(
        f"{raw.path.name} asks for pictures of {size} pixels per side",
        f"At most {_MOST_CELLS} patches per side are read.",
        "shape",
    )


def _heads(raw: RawFile, values: dict[str, Any], given: Given, *, decoder: bool) -> tuple[int, str]:
    """A head count, from the caller, the config or the known sizes; and a note where it is doubtful.

    Raises:
        CheckpointError: Nobody knows it.
    """
    part = "decoder" if decoder else "encoder"
    width = values["decoder_width" if decoder else "width"]
    field = "decoder_heads" if decoder else "heads"
    stored = raw.config.get("decoder_num_attention_heads" if decoder else "num_attention_heads")
    asked = getattr(given, field)
    if asked is not None:
        against = f"config.json says {stored} heads in the {part}; the {asked} that were given are used."
        return asked, "" if stored in (None, asked) else against
    if stored is not None:
        if type(stored) is not int or stored < 1:
            raise refuse(
                f"{raw.path.name}: config.json says {stored!r:.40} heads in the {part}",
                f"Correct it there, or give --{field.replace('_', '-')}.",
                "shape",
            )
        return stored, ""
    for size in SIZES.values():
        if all(getattr(size, key) == value for key, value in values.items() if key not in _FREE):
            return int(getattr(size, field)), ""
    to = "unmask" if "decoder_width" in values else "timm"
    say = f"python -m model convert IN OUT --to {to} --{field.replace('_', '-')} N"
    if known := (_DECODER_HEADS if decoder else _HEADS).get(width):
        return known, ""
    if not decoder and (known := _ASSUMED_HEADS.get(width)):
        return known, (
            f"{known} heads are assumed in the encoder from its width {width} alone; other programs use 12. "
            f"If this one did, pictures and features are wrong until you say so: {say}."
        )
    raise refuse(
        f"{raw.path.name}: the number of heads of its {width}-wide {part} is unknown; no tensor shape reveals it",
        f"Give it: {say}.",
        "heads",
    )


def _colours(raw: RawFile, channels: int) -> tuple[dict[str, Any], str]:
    """``pixel_mean`` and ``pixel_std`` of a Hugging Face folder, where they are not ImageNet's; and a note."""
    if not raw.config:
        return {}, ""
    if not raw.processor:
        return {}, f"No {CONFIGS[1]} lies beside it: ImageNet's mean and deviation of colours are assumed."
    said = raw.processor
    try:
        # Its pixels are 0 to 255, times a factor; ours 0 to 1.
        scale = 255 * (float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 1.0)
        found: dict[str, Any] = {}
        for name, key, without in (("pixel_mean", "image_mean", 0.0), ("pixel_std", "image_std", 1.0)):
            # What ViTImageProcessor takes where its file is silent is 0.5.
            told = said.get(key, 0.5) if said.get("do_normalize", True) else without
            values = told if isinstance(told, list) else [told] * channels
            found[name] = tuple(float(value) / scale for value in values)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise refuse(f"{CONFIGS[1]} cannot be read ({error})", "Fetch it again.", "unreadable") from error
    usual = imagenet(IMAGE_MEAN, channels) + imagenet(IMAGE_STD, channels)
    own = found["pixel_mean"] + found["pixel_std"]
    if len(own) == len(usual) and np.allclose(own, usual, rtol=0, atol=1e-6):
        return {}, ""
    return found, ""


def _depth(house: Tensors, stem: str, file_name: str) -> int:
    numbers = {key.split(".")[1] for key in house if key.startswith(stem + ".")}
    if absent := {str(number) for number in range(len(numbers))} - numbers:
        raise refuse(
            f"{file_name} lacks {stem}.{min(absent, key=int)}: its blocks are not numbered without a gap",
            "Give a complete file.",
            "tensors",
        )
    return len(numbers)
