"""Photos with labels: folders with one subfolder per class, or tar shards whose sidecars name one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import DataError, listed
from model.masking import noise
from model.pretrain.data import Entry, Photos

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Labelled:
    """Photos and what each shows.

    Attributes:
        photos: In a fixed order.
        labels: ``[N] int64``, numbers into ``classes``.
        classes: Names of the classes.
    """

    photos: Photos
    labels: Labels
    classes: tuple[str, ...]

    @classmethod
    def open(cls, paths: Sequence[Path | str], classes: tuple[str, ...] | None = None) -> Labelled:
        """Index folders and shards; photos without a label are left out and counted (``photos.told``).

        Args:
            paths: As ``Photos.open`` takes them. A folder's classes are its subfolders; a shard's sidecar has
                ``label`` (a number) and may have ``class`` (its name).
            classes: Classes of the training part, for photos that judge a model trained on them.

        Raises:
            DataError: There are no photos, no labels or one class alone to learn, a sidecar's label is not a whole
                number or has two names, a class's name is not UTF-8, or one photo's class is not among ``classes``.
        """
        sidecars: dict[tuple[Path, str], tuple[int, str]] = {}

        def heed(shard: Path, key: str, facts: dict[str, Any]) -> None:
            if "label" in facts:
                sidecars[shard, key] = _label(facts, key, shard)

        photos = Photos.open(paths, heed=heed)
        named: list[tuple[Entry, tuple[int, str]]] = []
        for entry in photos.entries:
            if entry.path.suffix == ".tar":
                label = sidecars.get((entry.path, entry.name.rpartition(".")[0]))
            else:
                label = (0, entry.subfolder) if entry.subfolder else None
            if label is not None:
                named.append((entry, label))
        if not named:
            raise DataError(
                f"No photo under {', '.join(map(str, paths))} has a label.",
                code="data-labels",
                hint="Give folders with one subfolder per class, or shards whose .json sidecars have 'label'.",
                field="data",
            )
        _refuse_two_names(sidecars)
        found = tuple(dict.fromkeys(name for _, name in sorted({label for _, label in named})))
        _refuse_no_utf8(found)
        known = found if classes is None else classes
        if len(known) == 1:
            raise DataError(
                f"All {len(named)} photos with a label are of one class, {known[0]!r}: there is nothing to tell apart.",
                code="data-labels",
                hint="Give the folder whose subfolders are the classes, or shards of several.",
                field="data",
            )
        refuse_unknown(found, known)
        number = {name: place for place, name in enumerate(known)}
        labels = np.array([number[name] for _, (_, name) in named], dtype=np.int64)
        left_out = photos.left_out + Counter({"without a label": len(photos) - len(named)})
        return cls(Photos(tuple(entry for entry, _ in named), left_out), labels, known)

    def __len__(self) -> int:
        """Number of photos."""
        return len(self.labels)

    def take(self, numbers: NDArray[np.intp]) -> Labelled:
        """Some of the photos, in the given order; the classes stay."""
        entries = tuple(self.photos.entries[number] for number in numbers.tolist())
        return Labelled(Photos(entries), self.labels[numbers], self.classes)

    def split(self, share: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Numbers of two parts: ``share`` of every class (at least one photo of each), and the rest.

        Which photos is a function of the seed; a smaller share is a part of a larger one.
        """
        order = noise(np.array([seed], dtype=np.uint64), len(self))[0]
        part: list[int] = []
        for label in range(len(self.classes)):
            members = np.flatnonzero(self.labels == label)
            members = members[np.argsort(order[members], kind="stable")]
            part += members[: math.ceil(share * members.size - 1e-9)].tolist()
        chosen = np.array(sorted(part), dtype=np.intp)
        return chosen, np.setdiff1d(np.arange(len(self)), chosen)

    def share(self, share: float, seed: int = 0) -> Labelled:
        """``share`` of every class.

        Raises:
            DataError: The share is not above 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise DataError(
                f"label_share is {share}; it must be above 0 and at most 1.",
                code="label-share",
                hint="Give 0.1 for a tenth of the labels.",
                field="label_share",
            )
        return self if share == 1 else self.take(self.split(share, seed)[0])


def refuse_unknown(found: Iterable[str], known: Sequence[str]) -> None:
    """Refuse to judge by classes that were not learned.

    Raises:
        DataError: A class that was found is not among the known ones; named.
    """
    if unknown := sorted(set(found) - set(known)):
        raise DataError(
            f"Class {unknown[0]!r} occurs in the test photos but not in the training photos "
            f"({listed(known, 5)}).",
            code="data-labels",
            hint="Give both parts the same classes.",
            field="test",
        )


def _label(facts: dict[str, Any], key: str, shard: Path) -> tuple[int, str]:
    """Number and name of the class."""
    label = facts["label"]
    if type(label) is not int:
        raise DataError(
            f"The label in {key}.json of {shard} is {label!r}; it must be a whole number.",
            code="data-labels",
            hint="Write the number as 'label' and its name as 'class'; without 'label' the photo is left out.",
            field="data",
        )
    return label, str(facts.get("class", label))


def _refuse_two_names(sidecars: dict[tuple[Path, str], tuple[int, str]]) -> None:
    """Refuse labels that would silently become two classes, where some sidecars have the name and others do not."""
    names: dict[int, tuple[str, str]] = {}
    for (shard, key), (label, name) in sidecars.items():
        other, where = names.setdefault(label, (name, f"{key}.json of {shard}"))
        if other != name:
            raise DataError(
                f"Label {label} is class {other!r} in {where} and {name!r} in {key}.json of {shard}.",
                code="data-labels",
                hint="Give each label one class, in all sidecars or in none.",
                field="data",
            )


def _refuse_no_utf8(classes: Iterable[str]) -> None:
    """Refuse names that no report can hold, before anything is computed."""
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"The name of class {name!r} is not UTF-8.",
                code="data-labels",
                hint="Rename its folder, or its 'class' in the sidecars.",
                field="data",
            ) from error
