"""Held-out photos that judge a run while it goes on: the same ones, whole, under the same masks every time.

Nothing is drawn for it: a run with validation ends in the same weights as one without. Every process computes all of
it, little beside the steps in between: so the figure is the same for any number of them, and known to all.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.errors import DataError
from model.pretrain.augment import one_by_one
from model.pretrain.data import Photos, in_order
from model.pretrain.host import scaled
from model.pretrain.recipe import Recipe
from model.pretrain.samples import Batch, Sample, masks

#: Photos in one pass.
AT_ONCE = 32


@dataclass(frozen=True)
class Validation:
    """Photos to judge by, decoded and cropped.

    Attributes:
        batches: At most ``AT_ONCE`` photos each, with their masks.
        digest: Which photos; a loss can be compared with another of the same ones.
        told: The same in words, and a line for each photo that cannot be decoded.
    """

    batches: tuple[Batch, ...]
    digest: str
    told: tuple[str, ...]

    @classmethod
    def load(cls, photos: Photos, recipe: Recipe, workers: int) -> Validation:
        """The centre square of ``recipe.val_photos`` photos at most, evenly spread, under the recipe's masks.

        The recipe's seed has no part in it, so that runs of several seeds are judged alike.

        Raises:
            DataError: None can be decoded.
        """
        numbers = np.linspace(0, len(photos) - 1, min(recipe.val_photos, len(photos))).astype(int).tolist()
        taken = Photos(tuple(photos.entries[number] for number in numbers))
        square = one_by_one(np.arange(len(taken), dtype=np.uint64), replace(recipe, augment="none"))

        def crop(n: int) -> Tensor | None:
            photo = taken.decode_or_none(n)
            return (
                None
                if photo is None
                else scaled(photo, square(n, *photo.shape[1:]), recipe.config.image_size)
            )

        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as threads:
            crops = list(enumerate(in_order(crop, range(len(taken)), threads, AT_ONCE)))
        whole = [(n, image) for n, image in crops if image is not None]
        if not whole:
            raise DataError(
                f"None of the {len(taken)} photos to validate on can be decoded.",
                code="data-broken",
                hint="Give others with --val.",
                field="val",
            )
        batches = []
        for start in range(0, len(whole), AT_ONCE):
            part = whole[start : start + AT_ONCE]
            hidden = masks([Sample(n, np.uint64(n)) for n, _ in part], replace(recipe, seed=0), start)
            batches.append(Batch(torch.stack([image for _, image in part]), torch.from_numpy(hidden)))
        some = f"{len(taken)} photos, evenly spread over " if len(taken) < len(photos) else ""
        faults = (f"{taken.fault(n)}; left out of validation." for n, image in crops if image is None)
        return cls(tuple(batches), taken.digest, (f"validation: {some}{photos.told}.", *faults))
