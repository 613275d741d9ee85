"""Photos with outlined things in COCO's format, and the measure of finding them.

A folder holds ``annotations.json`` (``images``, ``annotations`` with polygons, ``categories``) and the pictures it
names, beside it or in ``images``. Crowds and things without polygons are left out, and counted.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from model.errors import DataError
from model.evaluate.labelled import refuse_unknown
from model.pretrain.data import Entry, Photos

#: IoU a find needs, of which COCO's AP is the mean.
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
#: Of a polygon, at least: annotation tools leave empty ones, and lines, behind.
_CORNERS = 3


class Scene(NamedTuple):
    """A photo at its aspect in the upper left of a square, with its things.

    Attributes:
        image: ``[3, S, S] float32`` in 0..1; black outside the photo.
        classes: ``[N] int64``, from 1.
        masks: ``[N, S, S] uint8``.
        size: Height and width of the photo in the square; the rest is padding.
    """

    image: Tensor
    classes: Tensor
    masks: Tensor
    size: tuple[int, int]


@dataclass(frozen=True)
class Scenes:
    """Photos and what is in them.

    Attributes:
        photos: In the order of the file.
        things: For each photo its things: class number from 1, and polygons in its pixels.
        sizes: Height and width of each photo, where the file says them: the outlines are for these.
        classes: Names, of class 1 and on.
        digest: Of the annotations.
        crowds: Annotations left out because they outline many things at once.
        unlined: Things left out because they have no polygons: a mask as run lengths, or a box alone.
    """

    photos: Photos
    things: tuple[tuple[tuple[int, list[NDArray[np.float32]]], ...], ...]
    sizes: tuple[tuple[int, int] | None, ...]
    classes: tuple[str, ...]
    digest: str
    crowds: int = 0
    unlined: int = 0

    @classmethod
    def open(cls, folder: Path, classes: tuple[str, ...] | None = None) -> Scenes:
        """Read a folder.

        Args:
            folder: With ``annotations.json``.
            classes: Those of the training part, for photos that judge a model trained on them: classes are numbered by
                name, whatever their order in the file.

        Raises:
            DataError: It is not such a folder, a picture is missing, no thing has polygons, or a class is not among
                ``classes``.
        """
        file = folder / "annotations.json"
        try:
            text = file.read_bytes()
            facts: dict[str, Any] = json.loads(text)
            named = {one["id"]: str(one["name"]) for one in facts["categories"]}
            known = tuple(dict.fromkeys(named.values())) if classes is None else classes
            refuse_unknown(named.values(), known)
            order = {key: known.index(name) + 1 for key, name in named.items()}
            found: dict[int, list[tuple[int, list[NDArray[np.float32]]]]] = defaultdict(list)
            crowds = unlined = 0
            for one in facts["annotations"]:
                outline = one.get("segmentation")
                parts = outline if isinstance(outline, list) else []
                polygons = [np.asarray(part, dtype=np.float32).reshape(-1, 2) for part in parts]
                polygons = [polygon for polygon in polygons if len(polygon) >= _CORNERS]
                if one.get("iscrowd"):
                    crowds += 1
                elif not polygons:
                    unlined += 1
                else:
                    found[one["image_id"]].append((order[one["category_id"]], polygons))
            entries = tuple(_entry(folder, one["file_name"]) for one in facts["images"])
            things = tuple(tuple(found[one["id"]]) for one in facts["images"])
            sizes = tuple(
                (int(one["height"]), int(one["width"])) if one.keys() >= {"height", "width"} else None
                for one in facts["images"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file} cannot be read as COCO annotations: {error!r:.100}.",
                code="coco",
                hint="Give a folder with annotations.json (images, annotations, categories) and its pictures.",
                field="data",
            ) from error
        scenes = cls(Photos(entries), things, sizes, known, hashlib.sha256(text).hexdigest(), crowds, unlined)
        if not any(things):
            raise DataError(
                f"{file} outlines nothing on its pictures: {scenes.told}.",
                code="coco",
                hint="Give every thing its outline as polygons; masks as run lengths (RLE) are not read.",
                field="data",
            )
        return scenes

    @property
    def told(self) -> str:
        """How much there is, and what was not taken: ``6 photos, 12 things; left out: 2 crowds``."""
        left_out = [
            f"{what} ({count})"
            for count, what in ((self.unlined, "things without polygons"), (self.crowds, "crowds"))
            if count
        ]
        told = f"{len(self)} photos, {sum(map(len, self.things))} things"
        return f"{told}; left out: {', '.join(left_out)}" if left_out else told

    def __len__(self) -> int:
        """Number of photos."""
        return len(self.things)

    def scene(self, number: int, side: int, flip: bool = False) -> Scene:
        """A photo in a square of a side; ``flip``: mirrored left to right, its things too."""
        photo = self.photos.decode(number)
        told, found = self.sizes[number], tuple(photo.shape[1:])
        if told is not None and told != found:
            raise DataError(
                f"{self.photos.entries[number].name} is {found[1]} x {found[0]} pixels upright; its annotations are "
                f"for {told[1]} x {told[0]}.",
                code="coco",
                hint="Give the pictures that were annotated, or scale the outlines with them.",
                field="data",
            )
        scale = side / max(photo.shape[1:])
        height, width = (max(round(length * scale), 1) for length in photo.shape[1:])
        square = torch.zeros(3, side, side)
        scaled = resize(photo, [height, width], InterpolationMode.BICUBIC, antialias=True)
        square[:, :height, :width] = scaled.float() / 255
        classes, masks = [], []
        for class_, polygons in self.things[number]:
            mask = np.zeros((side, side), dtype=np.uint8)
            for polygon in polygons:  # one by one: together their overlaps would be holes
                cv2.fillPoly(mask, [(polygon * scale).round().astype(np.int32)], 1)
            if mask.any(axis=0).sum() > 1 and mask.any(axis=1).sum() > 1:
                classes.append(class_)
                masks.append(torch.from_numpy(mask))
        stacked = torch.stack(masks) if masks else torch.zeros(0, side, side, dtype=torch.uint8)
        if flip:  # the photo inside the square; padding stays on the right
            for whole in (square, stacked):
                whole[..., :width] = whole[..., :width].flip(-1)
        return Scene(square, torch.tensor(classes, dtype=torch.int64), stacked, (height, width))


def _entry(folder: Path, name: str) -> Entry:
    path = next((place / name for place in (folder, folder / "images") if (place / name).is_file()), None)
    if path is None:
        raise OSError(f"{name} is neither in {folder} nor in its images")
    return Entry(path, 0, path.stat().st_size, folder.name, name)


class Finds(NamedTuple):
    """What was found on one photo, beside what is there.

    Attributes:
        scores: ``[M]``.
        labels: ``[M]``, classes from 1.
        overlaps: ``[M, N]``, intersection over union of every find with every true thing: of boxes or of masks.
        truth: ``[N]``, classes of the true things.
    """

    scores: Tensor
    labels: Tensor
    overlaps: NDArray[np.float64]
    truth: Tensor


def average_precision(photos: list[Finds], classes: int) -> dict[str, float]:
    """AP in percent as COCO defines it (mean over classes, 101 recall levels), without its sizes and crowds.

    Args:
        photos: One each.
        classes: How many.

    Returns:
        ``ap`` over all ``THRESHOLDS``, and ``ap50``.
    """
    table = []
    for class_ in range(1, classes + 1):
        wanted = sum(int((photo.truth == class_).sum()) for photo in photos)
        if wanted:
            table.append([_precision(photos, class_, wanted, at) for at in THRESHOLDS])
    means = 100 * np.mean(table, axis=0) if table else np.zeros(len(THRESHOLDS))
    return {"ap": float(means.mean()), "ap50": float(means[0])}


def mask_overlaps(masks: Tensor, true: Tensor) -> NDArray[np.float64]:
    """Intersection over union of every pair of masks ``[M, S, S]`` and ``[N, S, S]``: ``[M, N]``."""
    ours, theirs = (of.flatten(1).float() for of in (masks, true))  # exact: sums of ones below 2^24
    shared = (ours @ theirs.T).double()
    union = ours.sum(dim=1).double()[:, None] + theirs.sum(dim=1).double()[None] - shared
    return (shared / union.clamp(min=1)).numpy()


def _precision(photos: list[Finds], class_: int, wanted: int, at: float) -> float:
    """Average precision of one class at one threshold."""
    hits: list[tuple[float, bool]] = []
    for scores, labels, overlap, truth in photos:
        own = np.flatnonzero(labels.numpy() == class_)
        if not len(own):  # as for most classes on most photos
            continue
        free = set(np.flatnonzero((truth == class_).numpy()).tolist())
        for number in own[np.argsort(-scores.numpy()[own], kind="stable")].tolist():
            best = max(free, key=overlap[number].__getitem__, default=-1)
            hit = best >= 0 and bool(overlap[number, best] >= at)
            if hit:
                free.remove(best)
            hits.append((float(scores[number]), hit))
    hits.sort(key=lambda pair: -pair[0])
    right = np.cumsum([hit for _, hit in hits])
    precision = right / np.arange(1, len(hits) + 1)
    recall = right / wanted
    best_after = np.maximum.accumulate(precision[::-1])[::-1]
    levels = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.mean([best_after[level] if level < len(hits) else 0.0 for level in levels]))
