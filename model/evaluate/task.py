"""One model, training photos, test photos, and the folder of the answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.errors import DataError
from model.evaluate import bounds, state
from model.evaluate.features import Encoder, extract
from model.evaluate.labelled import Labelled
from model.pretrain.data import places, refuse_shared


@dataclass(frozen=True)
class Task:
    """What every question about a representation starts from.

    Attributes:
        encoder: The model.
        train: Labelled training photos.
        test: Test photos, never learned from and never looked at to choose anything.
        out: Folder of the answers; features are kept below it.
        device: Where to compute.
        workers: Decoding threads; for fine-tuning processes that augment, 0 for none.
        label_share: Share of the labels of ``train`` that was given.

    Raises:
        DataError: A photo is among both.
        RecipeError: A number is out of its bounds.
    """

    encoder: Encoder
    train: Labelled
    test: Labelled
    out: Path
    device: torch.device
    workers: int = 1
    label_share: float = 1.0

    def __post_init__(self) -> None:
        bounds.check(workers=self.workers)
        refuse_shared(self.train.photos, self.test.photos)

    @property
    def tag(self) -> str:
        """Part of the names of the answers' files: the model's name and share of labels."""
        return f"{state.stem(self.encoder.name)}-{self.label_share:g}"

    def named(self, question: str, seed: int) -> str:
        """Name of an answer's files: one of another seed than 0 lies beside the first."""
        return f"{question}-{self.tag}" + state.of_seed(seed)

    def batch(self, size: int) -> int:
        """Training photos per step: as many as were asked for, or all where there are fewer.

        Raises:
            DataError: That is fewer than two, of which no norm and no mixture can be made.
        """
        if (taken := min(size, len(self.train))) >= 2:
            return taken
        raise DataError(
            f"batch_size {size} with {len(self.train)} photos leaves fewer than two photos per batch.",
            code="batch-size",
            hint="Give at least two photos and a batch of at least two.",
            field="batch_size",
        )

    def features(self) -> tuple[Tensor, Tensor]:
        """Of the training and the test photos, ``[N, 2, D]`` each."""
        threads = max(self.workers, 1)
        train, test = (
            extract(self.encoder, of.photos, self.out / "features", device=self.device, workers=threads)
            for of in (self.train, self.test)
        )
        return train, test

    def facts(self, settings: dict[str, Any]) -> dict[str, Any]:
        """What an answer needs to be repeated; ``settings`` are the question's own."""
        return {
            "model": self.encoder.name,
            "digest": self.encoder.digest,
            "asked": self.asked(settings),
            "train_photos": len(self.train),
            "test_photos": len(self.test),
            "label_share": self.label_share,
            "classes": list(self.train.classes),
        }

    def asked(self, settings: dict[str, Any]) -> str:
        """Digest of what decides an answer: weights, photos, their classes, and the question's own settings."""
        photos = [
            [places(of.photos.entries), of.labels.tolist(), of.classes] for of in (self.train, self.test)
        ]
        return state.digest(self.encoder.digest, self.encoder.config.to_dict(), photos, settings)

    def answered(
        self, name: str, settings: dict[str, Any], ask: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The answer that lies in the folder under this name, or a new one, which ``ask`` leaves there.

        Raises:
            DataError: The folder holds the answer to another question under this name.
        """
        return state.answered(self.out / f"{name}.json", self.asked(settings), ask)

    def words(self) -> str:
        """Model and photos, for people."""
        return (
            f"{self.encoder.name} (weights {self.encoder.digest[:12]}): {len(self.train)} training photos of "
            f"{len(self.train.classes)} classes ({self.label_share:.0%} of the labels), "
            f"{len(self.test)} test photos."
        )
