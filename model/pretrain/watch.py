"""What a run shows while it trains: a bar, a JSON line per report, sheets of the same photos, TensorBoard's events."""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from model.checkpoints.files import replacing
from model.errors import listed, unwritten
from model.network import MAE
from model.pretrain.board import Board
from model.pretrain.data import Photos
from model.pretrain.pictures import Pictures
from model.pretrain.recipe import Recipe
from model.pretrain.samples import Sampler


@dataclass(frozen=True)
class Progress:
    """What the loop tells whoever watches."""

    step: int  # steps made
    steps: int  # in all; 0 while not yet known
    loss: float  # mean over the steps since the last report, squared target units
    lr: float  # share of the top learning rate, 0..1
    images_per_second: float  # since the last report
    broken: frozenset[int]  # numbers of the photos found undecodable so far
    extra: dict[str, float] = field(default_factory=dict)  # of an adversarial stage, of float16
    val_loss: float | None = None  # on held-out photos, where it was measured


class Watch:
    """Reports of one run into its folder.

    Args:
        recipe: What is trained.
        photos: What it is trained on.
        out: The run's folder: ``metrics.jsonl``, ``pictures`` and ``tensorboard`` appear there.
        device: Where the network lives.
        start: Steps already made; lines a killed process wrote after them are taken back.
    """

    def __init__(
        self, recipe: Recipe, photos: Photos, out: Path, device: torch.device, start: int = 0
    ) -> None:
        self._recipe = recipe
        self._photos = photos
        self._device = device
        tqdm.write(f"training: {photos.told}.", file=sys.stderr)
        sources = {entry.source for entry in photos.entries}
        if strange := sorted(recipe.source_weights.keys() - sources):
            tqdm.write(
                f"source_weights names {', '.join(strange)}, which no photo comes from; the sources are "
                f"{listed(sorted(sources), 10)}.",
                file=sys.stderr,
            )
        self._epoch = Sampler(photos, recipe).mean_length
        self._bar = tqdm(total=recipe.steps or None, initial=start, unit="step", desc=recipe.name)
        self._named: frozenset[int] = frozenset()
        self._val: dict[str, str] = {}
        self._pictures = Pictures(recipe, out, device, start)
        self._board = Board(out, start)
        self._log = out / "metrics.jsonl"
        _take_back(self._log, start)

    def begin(self, step: int, network: MAE, val_loss: float | None = None) -> None:
        """Record what the run begins with.

        Args:
            step: Steps already made.
            network: As it stands before the next one.
            val_loss: Its loss on held-out photos, where it was measured.
        """
        if val_loss is not None:
            self._record(step, self._validated(val_loss))
        if step == 0:
            self._draw(step, 0, network)

    def report(self, progress: Progress, network: MAE) -> None:
        """Record one report; draw the photos when their step has come.

        Args:
            progress: What the loop says.
            network: As it stands.
        """
        step, speed = progress.step, progress.images_per_second
        rate = progress.lr * self._recipe.lr
        validated = self._validated(progress.val_loss)
        self._bar.total = progress.steps or None
        self._bar.update(step - self._bar.n)
        shown = {
            "epoch": f"{step * self._recipe.batch_size / self._epoch:.2f}",
            "loss": f"{progress.loss:.4f}",
            **self._val,
            "lr": f"{rate:.2e}",
            "images_per_second": f"{speed:.1f}",
            "memory": f"{_memory_gib(self._device):.1f}G",
        }
        self._bar.set_postfix(shown)
        self._name_broken(progress.broken)
        values = {
            "loss": round(progress.loss, 6),
            **validated,
            "lr": float(f"{rate:.6g}"),
            "images_per_second": round(speed, 2),
            "broken": len(progress.broken),
            **progress.extra,
        }
        self._record(step, values)
        self._draw(step, progress.steps, network)

    def _validated(self, loss: float | None) -> dict[str, float]:
        """A loss on held-out photos, for the log; the bar shows the last one."""
        if loss is None:
            return {}
        self._val = {"val_loss": f"{loss:.4f}"}
        return {"val_loss": round(loss, 6)}

    def _record(self, step: int, values: dict[str, float]) -> None:
        samples = step * self._recipe.batch_size
        try:
            with self._log.open("a") as log:
                log.write(json.dumps({"step": step, "samples": samples, **values}) + "\n")
        except OSError as error:
            raise unwritten(f"{self._log} cannot be written ({error.strerror}).") from error
        self._board.scalars(step, values)

    def _name_broken(self, broken: frozenset[int]) -> None:
        """Say once which photos cannot be decoded."""
        for number in sorted(broken - self._named):
            tqdm.write(f"{self._photos.fault(number)}; another photo stands in.", file=sys.stderr)
        self._named |= broken

    def _draw(self, step: int, steps: int, network: MAE) -> None:
        if self._pictures.due(step, steps):
            self._board.sheet(step, self._pictures.draw(step, network))

    def close(self) -> None:
        """End the bar, and write what is still held back."""
        self._bar.close()
        self._board.close()


def _memory_gib(device: torch.device) -> float:
    """Most memory taken so far: the GPU's, or this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    # In bytes on macOS, in KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def _take_back(log: Path, start: int) -> None:
    """Drop lines of steps after ``start``, which will be made anew, and a line cut off by a kill; at 0 all."""
    if not log.is_file():
        return
    kept = []
    for line in log.read_text().splitlines(keepends=True):
        try:
            if line.endswith("\n") and start > 0 and json.loads(line)["step"] <= start:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    with replacing(log) as part:
        part.write_text("".join(kept))
