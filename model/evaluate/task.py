"""One model, photos to learn from, photos to judge by, and the folder of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.errors import CheckpointError, DataError
from model.evaluate.features import Encoder, Features, extract
from model.evaluate.labelled import Labelled


@dataclass(frozen=True)
class Task:
    """What every question about a representation starts from.

    Attributes:
        encoder: The model.
        train: Photos with labels to learn from.
        test: Photos to judge by, never learned from and never looked at to choose anything.
        out: Folder of the answers; features are kept below it.
        device: Where to compute.
        workers: Decoding threads; for fine-tuning processes that augment, 0 for none.
        label_share: Share of the labels of ``train`` that was given.
    """

    encoder: Encoder
    train: Labelled
    test: Labelled
    out: Path
    device: torch.device
    workers: int = 1
    label_share: float = 1.0

    @property
    def tag(self) -> str:
        """Part of the answers' names: the model's name and share of labels."""
        return f"{self.encoder.name}-{self.label_share:g}"

    def features(self) -> tuple[Features, Features]:
        """Of the photos to learn from and to judge by."""
        threads = max(self.workers, 1)
        train, test = (
            extract(self.encoder, of.photos, self.out / "features", device=self.device, workers=threads)
            for of in (self.train, self.test)
        )
        return train, test

    def facts(self) -> dict[str, Any]:
        """What an answer needs to be repeated."""
        return {
            "model": self.encoder.name,
            "digest": self.encoder.digest,
            "train_photos": len(self.train),
            "test_photos": len(self.test),
            "label_share": self.label_share,
            "classes": list(self.train.classes),
        }

    def answered(self, name: str, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The answer that lies in the folder under this name, or a new one, which ``ask`` leaves there.

        Raises:
            DataError: The folder holds the answer for other weights or photos under this name.
        """
        file = self.out / f"{name}.json"
        if not file.is_file():
            return dict(ask())
        facts: dict[str, Any] = json.loads(file.read_text())
        if facts["digest"] != self.encoder.digest or facts["train_photos"] != len(self.train):
            raise DataError(
                f"{file} is about other weights or photos.",
                code="judged",
                hint="Give another folder with --out.",
                field="out",
            )
        return facts

    def words(self) -> str:
        """The same for people."""
        return (
            f"{self.encoder.name} (weights {self.encoder.digest[:12]}): {len(self.train)} photos of "
            f"{len(self.train.classes)} classes to learn from ({self.label_share:.0%} of the labels), "
            f"{len(self.test)} to judge by."
        )


def find_device(wanted: str | None) -> torch.device:
    """The device asked for, or the GPU where there is one.

    Raises:
        CheckpointError: A GPU was asked for and none is usable.
    """
    usable = torch.cuda.is_available()
    if wanted and wanted.startswith("cuda") and not usable:
        raise CheckpointError(
            f"Device {wanted!r} was asked for, and no usable GPU is here.",
            code="device",
            hint="Leave the device out to run on the CPU, or check the GPU's driver.",
            field="device",
        )
    return torch.device(wanted or ("cuda" if usable else "cpu"))
