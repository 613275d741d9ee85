"""What a run shows while it trains: a bar, one JSON line a report, and the same photos repainted again and again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model.checkpoints import store
from model.images import encode_png
from model.network import MAE
from model.pretrain.data import Photos
from model.pretrain.recipe import Recipe
from model.reconstruct import Options, Reconstructor
from model.views import side_by_side

#: Photos in the picture of progress, evenly spaced over the set.
SHOWN = 6


class Watch:
    """Reports of one run into its folder.

    Args:
        recipe: What is trained.
        photos: Where the shown photos come from.
        out: The run's folder: ``metrics.jsonl`` and ``pictures/step-*.png`` appear there.
        device: Where the network lives.
        start: Steps already made.
    """

    def __init__(
        self, recipe: Recipe, photos: Photos, out: Path, device: torch.device, start: int = 0
    ) -> None:
        self._recipe = recipe
        self._out = out
        self._device = device
        self._bar = tqdm(total=recipe.steps, initial=start, unit="step", desc=recipe.name)
        numbers = np.linspace(0, len(photos) - 1, min(SHOWN, len(photos))).astype(int)
        self._shown = [photos.read(int(number)) for number in numbers]
        (out / "pictures").mkdir(parents=True, exist_ok=True)

    def report(self, step: int, loss: float, lr: float, images_per_second: float, network: MAE) -> None:
        """Record one report; draw the photos when their step has come.

        Args:
            step: Steps made.
            loss: Mean since the last report, squared target units.
            lr: Share of the top learning rate.
            images_per_second: Since the last report.
            network: As it stands.
        """
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix(loss=f"{loss:.4f}", images_per_second=f"{images_per_second:.1f}")
        line = {
            "step": step,
            "samples": step * self._recipe.batch_size,
            "loss": round(loss, 6),
            "lr": round(lr, 6),
            "images_per_second": round(images_per_second, 2),
        }
        with (self._out / "metrics.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        if self._recipe.target == "pixel" and step // self._recipe.picture_every > self._drawn(step):
            self._draw(step, network)

    def _drawn(self, step: int) -> int:
        """How many pictures of earlier reports there are, at most one for each ``picture_every`` steps."""
        done = [int(path.stem.removeprefix("step-")) for path in (self._out / "pictures").glob("step-*.png")]
        return max((at for at in done if at <= step), default=0) // self._recipe.picture_every

    def _draw(self, step: int, network: MAE) -> None:
        """The fixed photos with fixed masks, by the same code that serves pictures."""
        reconstructor = Reconstructor(store.Checkpoint(network, self._recipe.name, "", {}), self._device)
        rows = []
        for seed, photo in enumerate(self._shown):
            result = reconstructor(photo, Options(ratio=str(self._recipe.mask_ratio), seed=seed))
            rows.append(side_by_side([result.panel(name) for name in ("masked", "pasted", "original")]))
        network.train()
        sheet = np.concatenate(rows, axis=0)
        (self._out / "pictures" / f"step-{step:07d}.png").write_bytes(encode_png(sheet))

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
