"""How well a model repaints photos it has never seen, beside classical fills of the same holes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model import scores, views
from model.pretrain.data import Photos
from model.reconstruct import Job, Options, Prediction, Reconstructor
from model.scores import Floats, Score

#: Fills without a model, computed on the same masks.
BASELINES = ("plain_fill", "interpolation", "telea")


def evaluate(
    reconstructor: Reconstructor,
    photos: Photos,
    *,
    strategy: str,
    ratio: str,
    limit: int | None = None,
    batch: int = 8,
) -> dict[str, Any]:
    """Mean scores over the hidden pixels of many photos.

    Args:
        reconstructor: The model.
        photos: Centre crops are taken of each.
        strategy: A sampled strategy; photo number n is masked with seed n, so every model sees equal masks.
        ratio: Share hidden.
        limit: Take only this many photos, evenly spaced.
        batch: Photos in one forward pass.

    Returns:
        JSON-ready: the setting, ``scores`` (model and baselines, means of the metrics of ``Score``), and the
        share of photos on which the model beats linear interpolation.
    """
    count = min(limit or len(photos), len(photos))
    numbers = np.linspace(0, len(photos) - 1, count).astype(int).tolist()
    table: dict[str, list[Score]] = {"model": [], **{name: [] for name in BASELINES}}
    for job, prediction in tqdm(
        _predict(reconstructor, photos, numbers, strategy, ratio, batch), total=count
    ):
        original = job.pixels.astype(np.float32) / np.float32(255)
        hidden = views.pixel_mask(job.mask.hidden, job.mask.grid, reconstructor.patch_size)
        candidates = [
            views.paste(original, prediction.pixels, hidden),
            scores.plain_fill(original, hidden),
            scores.interpolate(original, hidden),
            _telea(job.pixels, hidden),
        ]
        for name, score in zip(table, scores.score(original, candidates, hidden), strict=True):
            table[name].append(score)
    pairs = list(zip(table["model"], table["interpolation"], strict=True))
    return {
        "model": reconstructor.name,
        "digest": reconstructor.digest,
        "photos": count,
        "strategy": strategy,
        "ratio": float(ratio),
        "scores": {name: _mean(rows) for name, rows in table.items()},
        "share_psnr_1db_above_interpolation": _share([a.psnr_db >= b.psnr_db + 1 for a, b in pairs]),
        "share_ssim_above_interpolation": _share([a.ssim > b.ssim for a, b in pairs]),
    }


def _predict(
    reconstructor: Reconstructor, photos: Photos, numbers: list[int], strategy: str, ratio: str, batch: int
) -> Iterator[tuple[Job, Prediction]]:
    for start in range(0, len(numbers), batch):
        jobs = [
            reconstructor.prepare(photos.read(number), Options(strategy=strategy, ratio=ratio, seed=number))
            for number in numbers[start : start + batch]
        ]
        yield from zip(jobs, reconstructor.run(jobs), strict=True)


def _telea(pixels: NDArray[np.uint8], hidden: NDArray[np.bool_]) -> Floats:
    """OpenCV's inpainting after Telea 2004, radius 3 pixels."""
    filled = cv2.inpaint(pixels, hidden.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    return filled.astype(np.float32) / np.float32(255)


def _mean(rows: list[Score]) -> dict[str, float]:
    return {name: round(float(np.mean([getattr(row, name) for row in rows])), 4) for name in vars(rows[0])}


def _share(flags: list[bool]) -> float:
    return round(float(np.mean(flags)), 4)
