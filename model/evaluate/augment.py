"""Augmented photos for training a classifier: timm's transforms and mixtures, each draw a function of its number.

timm draws from the global generators of Python, numpy and torch. Here they are set from (seed, epoch, photo) or
(seed, step) around each use and put back after it: a run goes on at any step as if it had not stopped, with any
number of processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.transforms.v2.functional import to_pil_image

from model.config import IMAGE_MEAN, IMAGE_STD
from model.errors import DataError
from model.evaluate.labelled import Labelled
from model.masking import Ints, noise

#: How keys become draws. Another number: runs and answers from before are not taken for those of today.
DRAWS = 2


@contextmanager
def seeded(seed: int, step: int = 0, *, device: torch.device | None = None) -> Iterator[None]:
    """Global generators set from seed and step inside the block, and as they were after it.

    Both are hashed together first: numpy's generator, and torch's on a CPU, take 32 bits of a key and drop the rest.
    """
    hashed = noise(np.array([seed], dtype=np.uint64), 1)[0] ^ np.uint64(step)
    key = int(noise(hashed, 1)[0, 0])
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        random.seed(key)
        np.random.seed(key % 2**32)
        # torch.manual_seed would reseed GPUs too, whose generators are kept only where one is asked for.
        set_torch: Any = torch.manual_seed if devices else torch.default_generator.manual_seed  # noqa: TID251
        set_torch(key % 2**63)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class Augmented(Dataset[tuple[Tensor, int]]):
    """Photos as they are trained on: crop, flip, RandAugment, erasing; ImageNet-normalised.

    Args:
        data: Which.
        side: Of the square crop, pixels.
        auto_augment: timm's text for it, or None.
        erasing: Probability of a random patch of noise.
    """

    def __init__(self, data: Labelled, side: int, auto_augment: str | None, erasing: float) -> None:
        self._data = data
        self._transform: Any = create_transform(
            side, is_training=True, auto_augment=auto_augment, interpolation="bicubic", color_jitter=0.0,
            re_prob=erasing, re_mode="pixel", re_count=1, mean=IMAGE_MEAN, std=IMAGE_STD,
        )  # fmt: skip

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, int]:
        """Photo ``[3, S, S]`` and label of a sample: (photo's number, key of its draws)."""
        number, key = sample
        picture = to_pil_image(self._data.photos.decode(number))
        with seeded(key):
            return self._transform(picture), int(self._data.labels[number])

    def __getitems__(self, samples: list[tuple[int, int]]) -> list[tuple[Tensor, int]] | DataError:
        """Many of them; an error is handed over, since torch makes a traceback of one that another process raises."""
        try:
            return [self[sample] for sample in samples]
        except DataError as error:
            return error


class Samples:
    """Which photos a step takes: every photo once an epoch, in an order of its own.

    Args:
        photos: How many there are.
        batch_size: Photos per step.
        seed: Decides everything.
    """

    def __init__(self, photos: int, batch_size: int, seed: int) -> None:
        self._photos, self._size, self._seed = photos, batch_size, seed
        self._epoch = lru_cache(maxsize=2)(self._draw)

    def __call__(self, step: int) -> list[tuple[int, int]]:
        """Samples of a step: (photo, key)."""
        places = [divmod(step * self._size + place, self._photos) for place in range(self._size)]
        return [self._epoch(epoch)[place] for epoch, place in places]

    def _draw(self, epoch: int) -> list[tuple[int, int]]:
        keys, order = shuffled(self._seed, epoch, self._photos)
        return [(int(number), int(keys[number] >> np.uint64(1))) for number in order]


def shuffled(seed: int, epoch: int, photos: int) -> tuple[NDArray[np.uint64], Ints]:
    """A key for each photo in this epoch, and the photos in the order of their keys; both ``[N]``."""
    keys = noise(np.array([(seed << 20) + epoch], dtype=np.uint64), photos)[0]
    return keys, np.argsort(keys, kind="stable")


def batches(data: Augmented, samples: Samples, first: int, last: int, workers: int) -> Iterator[Any]:
    """Images and labels of the steps ``first`` to ``last`` - 1, made by ``workers`` processes (0: by this one).

    Raises:
        DataError: A photo cannot be decoded; named.
    """
    loader: DataLoader[tuple[Tensor, int]] = DataLoader(
        data,
        batch_sampler=(samples(step) for step in range(first, last)),
        num_workers=workers,
        collate_fn=_collated,
        # Forking a process that has threads may hang.
        multiprocessing_context="spawn" if workers else None,
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _collated(made: list[tuple[Tensor, int]] | DataError) -> Any:
    return made if isinstance(made, DataError) else default_collate(made)
