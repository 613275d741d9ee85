"""What a weight file is, for a person who must decide whether it is the right one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model import images
from model.checkpoints import layouts, shapes, store
from model.checkpoints.files import RawFile, refuse
from model.checkpoints.header import read_header
from model.checkpoints.layouts import Content, Tensors
from model.checkpoints.shapes import Given
from model.config import PICTURE_TARGETS, SIZES, MAEConfig, Target
from model.errors import CheckpointError, listed
from model.masking import hidden_count, sample_mask

#: Photos that a target is measured on: four masks settle what differs by a factor of several.
_PHOTOS = 4
#: A target is only named when the prediction explains a tenth of it.
_CONVINCING = 0.9
_HEAD_ONLY = "Only names and shapes were read, not the values."
_ASK_THERE = "Inspect the whole file locally: python -m model inspect FILE."
#: Of one tensor, in a stranger's head: the largest of ViT-22B's have a third of it.
_MOST_NUMBERS = 2**30
#: Numbers in a table of positions, and blocks, of a network that is made only to name what is missing.
_MOST_POSITIONS, _MOST_BLOCKS = 2**23, 256
_UNSOUND = "Do not use this file here before the points above are settled."
_FULL = "mae_visualize_vit_*.pth or mae_pretrain_vit_*_full.pth"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything ``inspect`` says.

    Attributes:
        path: As given.
        size_bytes: Of all parts.
        digest: SHA-256 hex, as in ``Checkpoint``; empty where only the head was looked at.
        layout: Title of the layout.
        proved_against: What its map was proved against; None where it was only read in its origin's code.
        content: ``full``, ``encoder`` or ``classifier``.
        size: Named size the shapes fit, if any.
        config: The shape; None where a part of it is unknown.
        target: As in ``MAEConfig``; None where unknown or meaningless (no decoder).
        target_source: Who says so.
        parameters: Numbers in the file, positions included.
        usable_for: What it can be used for here.
        missing: Names the network needs and the file lacks.
        left_over: Names in the file that the network does not have.
        notes: What else should be known.
        advice: One sentence.
    """

    path: str
    size_bytes: int
    digest: str
    layout: str
    proved_against: str | None
    content: str
    size: str | None
    config: dict[str, Any] | None
    target: Target | None
    target_source: str | None
    parameters: int
    usable_for: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    notes: tuple[str, ...]
    advice: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For a terminal."""
        proof = f"proved against {self.proved_against}" if self.proved_against else "not proved by its origin"
        rows: list[tuple[str, str]] = [
            ("file", f"{self.path} ({self.size_bytes / 1e6:.1f} MB)"),
            ("sha256", self.digest),
            ("layout", f"{self.layout} ({proof})"),
            ("content", self.content),
            ("size", self.size or "no named one"),
            ("shape", ", ".join(f"{k} {v}" for k, v in (self.config or {}).items()) or "unknown"),
            ("target", f"{self.target} ({self.target_source})" if self.target else self._no_target()),
            ("parameters", f"{self.parameters:,}"),
            ("usable for", ", ".join(self.usable_for) or "nothing here"),
            ("missing", listed(self.missing, 6)),
            ("left over", listed(self.left_over, 6)),
        ]
        rows += [("note", note) for note in self.notes] + [("advice", self.advice)]
        return [f"{title:11s} {text}" for title, text in rows]

    def _no_target(self) -> str:
        return "unknown" if self.content == "full" else "none: there is no decoder"


def inspect(path: Path, given: Given | None = None, photos: Path | None = None) -> Report:
    """Look at a weight file without running anything it brings along.

    Args:
        path: A file, a folder or a name of the registry.
        given: What the file may leave out.
        photos: A folder of pictures; with it an unknown target is measured on up to four of them.

    Raises:
        CheckpointError: The file cannot be opened, belongs to another family of model, or says otherwise than the
            caller; or the folder holds no photos.
    """
    chosen = _chosen(photos) if photos else ()
    raw, given, _ = store.open_known(path, given)
    return _look(raw, given, str(path), chosen)


def inspect_header(data: bytes, name: str, size_bytes: int | None = None) -> Report:
    """The same from the head of a safetensors file alone, whoever sent it: no weight is looked at.

    Args:
        data: The first bytes of the file, the whole head among them.
        name: The file's.
        size_bytes: The file's, where it is known.

    Raises:
        CheckpointError: It is not such a head, contradicts itself, or belongs to another family of model.
    """
    raw = read_header(data, name, size_bytes)
    if absurd := next((key for key, value in raw.tensors.items() if value.numel() > _MOST_NUMBERS), None):
        raise refuse(f"{name}: {absurd:.80} is larger than any part of a known model", _ASK_THERE, "shape")
    try:
        report = _look(raw, Given(), name)
    except (IndexError, TypeError, RuntimeError, ZeroDivisionError, OverflowError) as error:
        # Readers trust that a tensor has the axes which its name promises; a head may promise anything.
        raise refuse(f"{name}: its names and shapes contradict each other", _ASK_THERE, "shape") from error
    return replace(report, notes=(*report.notes, _HEAD_ONLY))


def _chosen(folder: Path) -> tuple[Path, ...]:
    """The first photos of a folder, by name."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    photos = [
        file
        for file in inside
        if file.suffix.lower() in images.SUFFIXES and file.is_file() and file.name[0] != "."
    ]
    if not photos:
        raise refuse(
            f"{folder} is not a folder with photos",
            f"Give one that holds {', '.join(images.SUFFIXES)}.",
            "photos",
        )
    return tuple(photos[:_PHOTOS])


def _look(raw: RawFile, given: Given, path: str, photos: tuple[Path, ...] = ()) -> Report:
    layout = layouts.recognise(raw)
    house = layout.to_house(raw.tensors)
    kind = layouts.content(house)
    told, source = shapes.find_target(raw, given)
    target = told if kind == "full" else None
    notes = store.doubts(layout) + store.of_classes(raw, kind)
    missing: list[str] = []
    left_over: list[str] = []
    config: MAEConfig | None = None
    sound = False
    try:
        config, assumed = shapes.infer_config(raw, house, given, told or "pixel")
        notes += assumed + store.alarms(raw, house)
        positions = config.patches * max(config.width, config.decoder_width)
        if positions > _MOST_POSITIONS or config.depth + config.decoder_depth > _MOST_BLOCKS:
            raise refuse(f"{raw.path.name} is larger than any known model", "Give another file.", "shape")
        skeleton = store.skeleton(config)
        missing, left_over = store.misfits(skeleton, house, kind)
        notes += store.check_config(raw, config)
        if not missing and not left_over:
            notes += store.check(skeleton, house, raw.path.name, kind)
            sound = True
        if sound and kind == "full" and photos and target in (None, "pixel", "norm_pixel"):
            measured, how = _measure(house, config, photos, raw.path.name)
            if target is None:
                target, source = measured, how
                notes += () if target else (f"The target is undecided, {how}.",)
            elif measured not in (None, target):
                notes += (f"Not what was measured: {measured}, {how}.",)
    except CheckpointError as error:
        notes = (*notes, f"{error} {error.hint}")
    channels = config.channels if config else 0
    names = "classes" in raw.header  # what ``evaluate finetune`` leaves
    return Report(
        path=path,
        size_bytes=raw.size_bytes,
        digest=raw.digest,
        layout=layout.title,
        proved_against=layout.proof or None,
        content=kind,
        size=_size_name(config, kind) if config else None,
        config=_shape(config, kind) if config else None,
        target=target,
        target_source=source if target else None,
        parameters=sum(value.numel() for value in house.values()),
        usable_for=_uses(kind, target, channels, names) if sound else (),
        missing=tuple(missing),
        left_over=tuple(left_over),
        notes=notes,
        advice=_advice(kind, target, channels, names) if sound else _UNSOUND,
    )


def _size_name(config: MAEConfig, kind: Content) -> str | None:
    """The named size of the same shape, whatever its target."""
    ours = _shape(config, kind)
    return next((name for name, size in SIZES.items() if _shape(size, kind) == ours), None)


def _shape(config: MAEConfig, kind: Content) -> dict[str, Any]:
    """The config without its target, and without a decoder where there is none."""
    values = config.to_dict()
    del values["target"]
    return {key: value for key, value in values.items() if kind == "full" or not key.startswith("decoder")}


def _uses(kind: Content, target: Target | None, channels: int, names: bool) -> tuple[str, ...]:
    if kind == "classifier":
        return ("classify",) if names else ()
    if kind == "encoder" or target not in PICTURE_TARGETS:
        return ("evaluate", "convert") if channels in (1, 3) else ("convert",)  # its features
    return (
        ("reconstruct", "evaluate", "serve", "convert") if channels in (1, 3) else ("reconstruct", "convert")
    )


def _advice(kind: Content, target: Target | None, channels: int, names: bool) -> str:
    """One sentence."""
    if kind == "encoder":
        return f"No decoder: it cannot reconstruct; for pictures use {_FULL}, for features it is fine."
    if kind == "classifier" and names:
        return f"A fine-tuned classifier: python -m model classify names photos with it; for pictures use {_FULL}."
    if kind == "classifier":
        return f"A fine-tuned classifier: it cannot reconstruct; for pictures use {_FULL}."
    if target is None:
        return (
            "Nothing says whether it predicts raw or normalised pixels: measure it with --photos, then say it once "
            "with convert --to unmask --target."
        )
    if target not in PICTURE_TARGETS:
        return f"It predicts {target} of each patch, not pixels, so it has no picture to show; for features it is fine."
    if channels not in (1, 3):
        return (
            f"It looks at {channels} channels, which no picture file has: give arrays to "
            "python -m model reconstruct ARRAY.npy --weights FILE, or to model.arrays.repaint."
        )
    if target == "norm_pixel":
        return (
            "It predicts each patch without its brightness and contrast, so pictures need these from elsewhere; "
            "for pictures a pixel model (mae_visualize_vit_*.pth) is the better choice."
        )
    return "Ready to reconstruct pictures."


@torch.inference_mode()
def _measure(
    house: Tensors, config: MAEConfig, photos: tuple[Path, ...], name: str
) -> tuple[Target | None, str]:
    """Guess the target, of which a prediction explains more than predicting zero does; and say how it came out."""
    if config.channels not in (1, 3):
        return None, f"for photos do not have its {config.channels} channels"
    network = store.unfilled(config).eval()
    store.fill(network, house, name)
    mask = sample_mask("random", config.grid, hidden_count("0.75", config.patches), 0)
    hidden = torch.from_numpy(mask.hidden)[None]
    left: dict[Target, list[float]] = {"pixel": [], "norm_pixel": []}  # share of the target not explained
    for file in photos:
        square = images.load_square(file.read_bytes(), config.image_size)
        pixels = torch.from_numpy((images.grey(square) if config.channels == 1 else square).copy())
        image = network.normalise(pixels.permute(2, 0, 1)[None, : config.channels].float() / 255)
        ids_keep, ids_restore = (torch.from_numpy(ids)[None] for ids in (mask.ids_keep, mask.ids_restore))
        pred = network(image, ids_keep, ids_restore)
        for target, shares in left.items():
            network.config = replace(config, target=target)  # decides what ``loss`` compares with
            loss, zero = (float(network.loss(image, p, hidden)) for p in (pred, torch.zeros_like(pred)))
            shares.append(loss / max(zero, 1e-9))
    means = {target: float(np.mean(shares)) for target, shares in left.items()}
    best: Target = "pixel" if means["pixel"] <= means["norm_pixel"] else "norm_pixel"
    told = ", ".join(f"{target} leaves {share:.0%}" for target, share in means.items())
    told = f"measured on {len(photos)} photos: {told} unexplained"
    return (best, f"a guess, {told}") if means[best] <= _CONVINCING else (None, told)
