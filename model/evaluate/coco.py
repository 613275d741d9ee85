"""Photos with outlined things in COCO's format, and the measure of finding them.

A folder holds ``annotations.json`` (``images``, ``annotations`` with polygons, ``categories``) and the pictures it
names, beside it or in ``images``. Crowds and things without polygons are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from model.errors import DataError
from model.pretrain.data import Entry, Photos

#: IoU a find needs, of which COCO's AP is the mean.
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


@dataclass(frozen=True)
class Scenes:
    """Photos and what is in them.

    Attributes:
        photos: In the order of the file.
        things: For each photo its things: class number from 1, and polygons in its pixels.
        classes: Names, of class 1 and on.
        digest: Of the annotations.
    """

    photos: Photos
    things: tuple[tuple[tuple[int, list[NDArray[np.float32]]], ...], ...]
    classes: tuple[str, ...]
    digest: str

    @classmethod
    def open(cls, folder: Path) -> Scenes:
        """Read a folder.

        Raises:
            DataError: It is no such folder, or a picture is missing.
        """
        file = folder / "annotations.json"
        try:
            text = file.read_bytes()
            facts: dict[str, Any] = json.loads(text)
            order = {one["id"]: number for number, one in enumerate(facts["categories"], 1)}
            found: dict[int, list[tuple[int, list[NDArray[np.float32]]]]] = defaultdict(list)
            for one in facts["annotations"]:
                outline = one.get("segmentation")
                if isinstance(outline, list) and outline and not one.get("iscrowd"):
                    polygons = [np.asarray(part, dtype=np.float32).reshape(-1, 2) for part in outline]
                    found[one["image_id"]].append((order[one["category_id"]], polygons))
            entries = tuple(_entry(folder, one["file_name"]) for one in facts["images"])
            things = tuple(tuple(found[one["id"]]) for one in facts["images"])
            names = tuple(str(one["name"]) for one in facts["categories"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file} cannot be read as COCO annotations: {error!r:.100}.",
                code="coco",
                hint="Give a folder with annotations.json (images, annotations, categories) and its pictures.",
                field="data",
            ) from error
        return cls(Photos(entries), things, names, hashlib.sha256(text).hexdigest())

    def __len__(self) -> int:
        """Number of photos."""
        return len(self.things)

    def scene(self, number: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """A photo at its aspect in the upper left of a square, with its things.

        Returns:
            ``[3, S, S] float32`` in 0..1, classes ``[N] int64``, masks ``[N, S, S] uint8``.
        """
        photo = self.photos.decode(number)
        scale = side / max(photo.shape[1:])
        size = [max(round(length * scale), 1) for length in photo.shape[1:]]
        square = torch.zeros(3, side, side)
        scaled = resize(photo, size, InterpolationMode.BICUBIC, antialias=True)
        square[:, : size[0], : size[1]] = scaled.float() / 255
        classes, masks = [], []
        for class_, polygons in self.things[number]:
            mask = np.zeros((side, side), dtype=np.uint8)
            cv2.fillPoly(mask, [(polygon * scale).round().astype(np.int32) for polygon in polygons], 1)
            if mask.any(axis=0).sum() > 1 and mask.any(axis=1).sum() > 1:
                classes.append(class_)
                masks.append(torch.from_numpy(mask))
        stacked = torch.stack(masks) if masks else torch.zeros(0, side, side, dtype=torch.uint8)
        return square, torch.tensor(classes, dtype=torch.int64), stacked


def _entry(folder: Path, name: str) -> Entry:
    path = next((place / name for place in (folder, folder / "images") if (place / name).is_file()), None)
    if path is None:
        raise OSError(f"{name} is neither in {folder} nor in its images")
    return Entry(path, 0, path.stat().st_size, folder.name, name)


def average_precision(
    found: list[tuple[Tensor, Tensor, Tensor]], truth: list[tuple[Tensor, Tensor]], classes: int
) -> dict[str, float]:
    """Mask AP in percent as COCO defines it (mean over classes, 101 recall levels), without its sizes and crowds.

    Args:
        found: A photo each: scores ``[M]``, classes ``[M]``, masks ``[M, S, S]``.
        truth: A photo each: classes ``[N]``, masks ``[N, S, S]``.
        classes: How many.

    Returns:
        ``ap`` over all ``THRESHOLDS``, and ``ap50``.
    """
    overlaps = [_overlap(masks, true) for (_, _, masks), (_, true) in zip(found, truth, strict=True)]
    table = []
    for class_ in range(1, classes + 1):
        wanted = sum(int((labels == class_).sum()) for labels, _ in truth)
        if wanted:
            table.append([_precision(found, truth, overlaps, class_, wanted, at) for at in THRESHOLDS])
    means = 100 * np.mean(table, axis=0) if table else np.zeros(len(THRESHOLDS))
    return {"ap": float(means.mean()), "ap50": float(means[0])}


def _overlap(masks: Tensor, true: Tensor) -> NDArray[np.float64]:
    """Intersection over union of every pair ``[M, N]``."""
    ours, theirs = (of.flatten(1).double() for of in (masks, true))
    shared = ours @ theirs.T
    union = ours.sum(dim=1)[:, None] + theirs.sum(dim=1)[None] - shared
    return (shared / union.clamp(min=1)).numpy()


def _precision(
    found: list[tuple[Tensor, Tensor, Tensor]], truth: list[tuple[Tensor, Tensor]],
    overlaps: list[NDArray[np.float64]], class_: int, wanted: int, at: float,
) -> float:  # fmt: skip
    """Average precision of one class at one threshold."""
    hits: list[tuple[float, bool]] = []
    for (scores, labels, _), (true, _), overlap in zip(found, truth, overlaps, strict=True):
        free = set(np.flatnonzero((true == class_).numpy()).tolist())
        own = [number for number in scores.argsort(descending=True).tolist() if int(labels[number]) == class_]
        for number in own:
            best = max(free, key=lambda place, row=number: overlap[row, place], default=None)  # type: ignore[misc]
            hit = False
            if best is not None and overlap[number, best] >= at:
                hit = True
                free.remove(best)
            hits.append((float(scores[number]), hit))
    hits.sort(key=lambda pair: -pair[0])
    right = np.cumsum([hit for _, hit in hits])
    precision = right / np.arange(1, len(hits) + 1)
    recall = right / wanted
    best_after = np.maximum.accumulate(precision[::-1])[::-1]
    levels = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.mean([best_after[level] if level < len(hits) else 0.0 for level in levels]))
