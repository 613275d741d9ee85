"""Nearest neighbours: what the features say with nothing trained on top.

A photo is named by its 20 nearest training photos by cosine (all of them where there are fewer), each with the weight
exp(cosine / 0.07).
Source of the protocol: arXiv 1805.01978, sec. 3.4, with k = 20 as self-supervised tables have it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.errors import DataError
from model.evaluate import bounds, pages
from model.evaluate.accuracy import Accuracy
from model.evaluate.features import POOLS
from model.evaluate.task import Task

TEMPERATURE = 0.07
#: Neighbours, where there are as many photos and no other number is asked for.
_NEIGHBOURS = 20
#: Photos judged at once, at most; and cosines, of which there are as many as training photos for each (256 MB).
_BLOCK, _COSINES = 512, 2**26


def classify(train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int) -> Tensor:
    """Name photos by their neighbours.

    Args:
        train: ``[N, D]`` features.
        labels: ``[N] int64``.
        test: ``[M, D]`` features.
        classes: How many there are.
        k: Neighbours, at most N.

    Returns:
        ``[M] int64``.
    """
    train = torch.nn.functional.normalize(train, dim=1)
    named = []
    test = torch.nn.functional.normalize(test, dim=1)
    block = min(_BLOCK, max(_COSINES // len(train), 1))
    for start in range(0, len(test), block):
        part = test[start : start + block]
        cosine, nearest = (part @ train.T).topk(k, dim=1)
        weight = ((cosine - 1) / TEMPERATURE).exp()  # less one: never overflows, names the same
        votes = weight.new_zeros(len(part), classes).scatter_add_(1, labels[nearest], weight)
        named.append(votes.argmax(dim=1))
    return torch.cat(named)


def answer(task: Task, k: int | None = None, seed: int = 0) -> dict[str, Any]:
    """What ``evaluate`` says, from the folder where it was asked before."""
    k = _checked(k, len(task.train))
    return task.answered(task.named("knn", seed), {"k": k}, lambda: evaluate(task, k, seed))


def evaluate(task: Task, k: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Name the test photos by their neighbours among the training photos; the report goes to ``task.out``.

    Args:
        task: The model, its photos, the folder.
        k: Neighbours; None for 20, or all training photos where they are fewer.
        seed: That drew the share of the labels; part of the report's name.

    Returns:
        JSON-ready: setting, and accuracy by class token and by the mean of the patches.

    Raises:
        RecipeError: There are no neighbours to ask.
        DataError: There are fewer training photos than neighbours.
    """
    k = _checked(k, len(task.train))
    name = task.named("knn", seed)
    train, test = (features.to(task.device) for features in task.features())
    labels = torch.from_numpy(task.train.labels).to(task.device)
    found = {}
    for place, pool in enumerate(POOLS):
        answers = classify(train[:, place], labels, test[:, place], len(task.train.classes), k)
        found[pool] = Accuracy.of(answers.cpu().numpy(), task.test.labels, task.train.classes)
    facts = {
        **task.facts({"k": k}), "question": "knn", "k": k, **{pool: of.to_dict() for pool, of in found.items()},
    }  # fmt: skip
    blocks: list[pages.Block] = [
        f"{k} nearest neighbours by cosine, weighted. {task.words()}",
        pages.Table(
            ("feature", "right %", "95 % from", "to"),
            [(pool, *of.cells) for pool, of in found.items()],
        ),
        found["cls"].figure(name, "Class token: truth (rows), answer"),
    ]
    pages.write(task.out, name, f"{k}-NN: {task.encoder.name}", facts, blocks)
    return facts


def _checked(k: int | None, photos: int) -> int:
    """Neighbours to ask, which a report then names truly."""
    bounds.check(k=k)
    if k is not None and k > photos:
        raise DataError(
            f"k is {k}, but there are {photos} training photos.",
            code="settings",
            hint=f"Give at most {photos} with --k, or more photos.",
            field="k",
        )
    return k or min(_NEIGHBOURS, photos)
