"""What a run shows while it trains: a bar, one JSON line a report, and the same photos repainted again and again."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model.checkpoints import store
from model.errors import ImageError
from model.images import encode_png, load_square
from model.network import MAE
from model.pretrain.data import Photos
from model.pretrain.recipe import Recipe
from model.reconstruct import Options, Reconstructor
from model.views import side_by_side

_LOGGER = logging.getLogger(__name__)

#: Photos in the picture of progress, evenly spaced over the set.
SHOWN = 6


@dataclass(frozen=True)
class Progress:
    """What the loop tells whoever watches."""

    step: int  # steps made
    steps: int  # in all; 0 while not yet known
    loss: float  # mean over the steps since the last report, squared target units
    lr: float  # share of the top learning rate, 0..1
    images_per_second: float  # since the last report
    broken: frozenset[int]  # numbers of the photos found undecodable so far


class Watch:
    """Reports of one run into its folder.

    Args:
        recipe: What is trained.
        photos: Where the shown photos come from.
        out: The run's folder: ``metrics.jsonl`` and ``pictures/step-*.png`` appear there.
        device: Where the network lives.
        start: Steps already made; lines a killed process wrote after them are taken back.
    """

    def __init__(
        self, recipe: Recipe, photos: Photos, out: Path, device: torch.device, start: int = 0
    ) -> None:
        self._recipe = recipe
        self._photos = photos
        self._out = out
        self._device = device
        self._bar = tqdm(total=recipe.steps or None, initial=start, unit="step", desc=recipe.name)
        self._shown = _readable(photos)
        self._named: frozenset[int] = frozenset()
        (out / "pictures").mkdir(parents=True, exist_ok=True)
        self._log = out / "metrics.jsonl"
        _take_back(self._log, start)

    def report(self, progress: Progress, network: MAE) -> None:
        """Record one report; draw the photos when their step has come.

        Args:
            progress: What the loop says.
            network: As it stands.
        """
        step, speed = progress.step, progress.images_per_second
        self._bar.total = progress.steps or None
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix(loss=f"{progress.loss:.4f}", images_per_second=f"{speed:.1f}")
        self._name_broken(progress.broken)
        line = {
            "step": step,
            "samples": step * self._recipe.batch_size,
            "loss": round(progress.loss, 6),
            "lr": round(progress.lr, 6),
            "images_per_second": round(speed, 2),
            "broken": len(progress.broken),
        }
        with self._log.open("a") as log:
            log.write(json.dumps(line) + "\n")
        if (
            self._shown
            and self._recipe.target == "pixel"
            and step // self._recipe.picture_every > self._drawn(step)
        ):
            self._draw(step, network)

    def _name_broken(self, broken: frozenset[int]) -> None:
        """Say once which photos cannot be decoded."""
        for number in sorted(broken - self._named):
            entry = self._photos.entries[number]
            _LOGGER.warning("%s in %s cannot be decoded; another photo stands in", entry.name, entry.path)
        self._named |= broken

    def _drawn(self, step: int) -> int:
        """How many pictures of earlier reports there are, at most one for each ``picture_every`` steps."""
        done = [int(path.stem.removeprefix("step-")) for path in (self._out / "pictures").glob("step-*.png")]
        return max((at for at in done if at <= step), default=0) // self._recipe.picture_every

    def _draw(self, step: int, network: MAE) -> None:
        """The fixed photos with fixed masks, by the same code that serves pictures."""
        reconstructor = Reconstructor(store.Checkpoint(network, self._recipe.name, "", {}), self._device)
        rows = []
        ratio = str(sum(self._recipe.ratio_range) / 2)
        for seed, photo in enumerate(self._shown):
            result = reconstructor(photo, Options(ratio=ratio, seed=seed))
            rows.append(side_by_side([result.panel(name) for name in ("masked", "pasted", "original")]))
        network.train()
        sheet = np.concatenate(rows, axis=0)
        (self._out / "pictures" / f"step-{step:07d}.png").write_bytes(encode_png(sheet))

    def close(self) -> None:
        """End the bar."""
        self._bar.close()


def _readable(photos: Photos) -> list[bytes]:
    """The shown photos' files, evenly spaced over the set; what cannot be decoded is left out."""
    shown = []
    for number in np.linspace(0, len(photos) - 1, min(SHOWN, len(photos))).astype(int).tolist():
        data = photos.read(number)
        try:
            load_square(data, 16)
        except ImageError:
            continue
        shown.append(data)
    return shown


def _take_back(log: Path, start: int) -> None:
    """Drop lines of steps after ``start``, which will be made anew, and a line cut off by a kill."""
    if not log.is_file():
        return
    kept = []
    for line in log.read_text().splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= start:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    part = log.with_name(log.name + ".part")
    part.write_text("".join(kept))
    part.replace(log)
