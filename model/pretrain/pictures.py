"""The same photos under the same masks, repainted again and again while a run goes on.

A sheet has one row per photo: masked, pasted, original, without gaps. ``index.json`` beside the sheets lists them
for the page; the folder is copied as it stands to ``weights/NAME-training`` when the weights are shipped.
Drawn by the code that serves pictures, so that what is seen here is what a visitor would see.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model import samples
from model.checkpoints import store
from model.checkpoints.files import replacing, write_json
from model.config import PICTURE_TARGETS
from model.loading import with_torch
from model.network import MAE
from model.options import Options
from model.pretrain.recipe import Recipe
from model.reconstruct import Reconstructor

#: Photos in a sheet: of the samples, for a record made of them can be shown to anyone.
SHOWN = 6
PANELS = ("masked", "pasted", "original")


class Pictures:
    """Sheets of one run in ``out/pictures``.

    Args:
        recipe: What is trained.
        out: The run's folder.
        device: Where the network lives.
        start: Steps already made; sheets of later steps will be made anew.
    """

    def __init__(self, recipe: Recipe, out: Path, device: torch.device, start: int) -> None:
        self._recipe = recipe
        self._device = device
        self._folder = out / "pictures"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._shown = sorted(samples.load(), key=lambda sample: sample.name)[:SHOWN]
        self._drawn = [step for step in self._earlier() if step <= start]

    def _earlier(self) -> list[int]:
        """Steps of the sheets that a process before this one listed."""
        index = self._folder / "index.json"
        return (
            [entry["step"] for entry in json.loads(index.read_text())["pictures"]] if index.is_file() else []
        )

    def due(self, step: int, steps: int = 0) -> bool:
        """Whether a sheet is to be drawn: at step 0, at most one for each ``picture_every`` steps, and at the end.

        Args:
            step: Steps made.
            steps: In all; 0 while not yet known.
        """
        # A network that is shared out among processes cannot be run by one of them.
        if self._recipe.target not in PICTURE_TARGETS or self._recipe.sharding == "fsdp2":
            return False
        every = self._recipe.picture_every
        return step in (0, steps) or step // every > max(self._drawn, default=0) // every

    def draw(self, step: int, network: MAE) -> NDArray[np.uint8]:
        """Draw the sheet of this step and list it; returns it as ``[H, W, 3] uint8``."""
        checkpoint = store.Checkpoint(network, self._recipe.name, "", {})
        reconstructor = Reconstructor(with_torch(checkpoint, str(self._device)))
        # Written as a decimal: half of a sum may have more digits than a person would give.
        ratio = f"{sum(self._recipe.ratio_range) / 2:.4g}"
        rows = []
        for seed, sample in enumerate(self._shown):
            result = reconstructor(sample.photo, Options(ratio=ratio, seed=seed))
            rows.append(np.concatenate([result.panel(name) for name in PANELS], axis=1))
        network.train()
        sheet = np.concatenate(rows, axis=0)
        with replacing(self._folder / _file(step)) as part:
            Image.fromarray(sheet).save(part, "WEBP", quality=88, method=4)
        self._drawn = [*(earlier for earlier in self._drawn if earlier < step), step]
        self._list()
        return sheet

    def _list(self) -> None:
        pictures = [
            {"step": step, "samples": step * self._recipe.batch_size, "file": _file(step)}
            for step in self._drawn
        ]
        index = {"photos": [sample.name for sample in self._shown], "pictures": pictures}
        write_json(self._folder / "index.json", index)


def _file(step: int) -> str:
    return f"step-{step:07d}.webp"
