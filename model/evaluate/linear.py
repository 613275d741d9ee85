"""Linear probing: frozen features, batch norm without affine, one linear layer, trained with LARS.

Source: arXiv 2111.06377, appendix A.1 and table 10: momentum 0.9, no decay, cosine over 90 epochs of which 10
warm up, random resized crop and flip. Two things are ours, and both stand in the answer: batches of 256 instead
of 16,384 (which would be one step an epoch on ten thousand photos), and therefore the learning rate, chosen on
photos held out of the training part. The test photos are looked at once, after the last epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from timm.optim.lars import Lars
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn
from tqdm import tqdm

from model.evaluate import bounds, pages, plots, state
from model.evaluate.accuracy import Accuracy
from model.evaluate.augment import shuffled
from model.evaluate.features import POOLS, pooled
from model.evaluate.labelled import Labelled
from model.evaluate.task import Task
from model.pretrain.augment import Box, crop_boxes
from model.pretrain.data import in_order
from model.pretrain.host import scaled

#: Learning rates tried on held-out photos, and the one taken where there are too few to hold any out.
RATES, PLAIN_RATE = (0.4, 1.6, 6.4, 25.6, 102.4), 6.4
HELD_OUT = 0.1
#: Photos of the rarest class below which none are held out.
_FEWEST = 5
#: Crops in one pass of the encoder, at most: the paper's batch of 16,384 may not fit into a GPU's memory.
_ENCODED = 256

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a probe is trained.

    Attributes:
        form: ``cached``: on the features of whole photos, seconds. ``augmented``: the paper's random crops and
            flips, one pass of the encoder an epoch.
        epochs: In all; the last one is judged, never the best.
        warmup_epochs: Of them.
        batch_size: Photos per step.
        lr: Real learning rate; None to choose it on held-out training photos.
        seed: Of order, crops and first weights.
    """

    form: Literal["cached", "augmented"] = "cached"
    epochs: int = 90
    warmup_epochs: int = 10
    batch_size: int = 256
    lr: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Reject numbers with which a figure would mean nothing."""
        bounds.check(**vars(self))


class Probe(nn.Module):
    """Batch norm without affine, then a linear layer, on one of the two features."""

    def __init__(self, pool: str, width: int, classes: int, lr: float, generator: torch.Generator) -> None:
        super().__init__()
        self.pool, self.lr = pool, lr
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Scores ``[B, C]`` of both features ``[B, 2, D]``."""
        return self.head(self.norm(features[:, POOLS.index(self.pool)]))


@dataclass(frozen=True)
class Fitted:
    """Trained probes and the way there.

    Attributes:
        probes: As asked for.
        curve: An epoch each: ``epoch``, ``loss`` and ``right`` (percent of the training photos, as seen) of every
            probe.
    """

    probes: nn.ModuleList
    curve: list[dict[str, Any]]

    @torch.inference_mode()
    def answers(self, features: Tensor) -> list[Tensor]:
        """Classes ``[N]`` by every probe, of ``features [N, 2, D]``."""
        self.probes.eval()
        return [probe(features).argmax(dim=1).cpu() for probe in self.probes]


def fit(
    batches: Batches, width: int, classes: int, wanted: Sequence[tuple[str, float]], protocol: Protocol,
    steps_an_epoch: int, device: torch.device, keep: state.Keeper | None = None,
) -> Fitted:  # fmt: skip
    """Train several probes side by side on the same batches.

    Args:
        batches: Of an epoch: features ``[B, 2, D]`` and labels ``[B]``, on ``device``.
        width: D.
        classes: How many.
        wanted: Feature and learning rate of every probe.
        protocol: Epochs and seed.
        steps_an_epoch: Batches an epoch.
        device: Where.
        keep: Where the state after every epoch goes and comes from.
    """
    generator = torch.Generator().manual_seed(protocol.seed)
    probes = nn.ModuleList(Probe(pool, width, classes, lr, generator) for pool, lr in wanted).to(device)
    # LARS scales the matrix to its own size; the bias moves plainly, as in the paper's code.
    groups = [
        {"params": [parameter], "lr": probe.lr, "always_adapt": parameter.ndim > 1}
        for probe in probes
        for parameter in probe.parameters()
    ]
    optimiser: Any = Lars(groups, lr=1.0, momentum=0.9, weight_decay=0.0, trust_coeff=0.001)
    warmup = min(protocol.warmup_epochs, protocol.epochs // 2) * steps_an_epoch
    schedule = CosineLRScheduler(
        optimiser, t_initial=max(protocol.epochs * steps_an_epoch - warmup, 2), warmup_t=warmup,
        warmup_prefix=True, t_in_epochs=False,
    )  # fmt: skip
    curve: list[dict[str, Any]] = []
    saved = keep.load() if keep else None
    if saved:
        probes.load_state_dict(saved["probes"])
        optimiser.load_state_dict(saved["optimiser"])
        curve = saved["curve"]
    for epoch in tqdm(range(len(curve), protocol.epochs), desc="probe", unit="epoch", disable=keep is None):
        curve.append(_epoch(probes, optimiser, schedule, batches(epoch), epoch, steps_an_epoch))
        if keep:
            keep.save({"probes": probes.state_dict(), "optimiser": optimiser.state_dict(), "curve": curve})
    return Fitted(probes, curve)


def _epoch(
    probes: nn.ModuleList, optimiser: Lars, schedule: CosineLRScheduler,
    batches: Iterator[tuple[Tensor, Tensor]], epoch: int, steps_an_epoch: int,
) -> dict[str, Any]:  # fmt: skip
    probes.train()
    losses, right, seen = torch.zeros(len(probes)), torch.zeros(len(probes)), 0
    for step, (features, labels) in enumerate(batches):
        schedule.step_update(epoch * steps_an_epoch + step)
        scores = [probe(features) for probe in probes]
        each = torch.stack([nn.functional.cross_entropy(score, labels) for score in scores])
        optimiser.zero_grad()
        total: Any = each.sum()  # torch does not say the type of backward
        total.backward()
        optimiser.step()
        losses += each.detach().cpu() * len(labels)
        right += torch.stack([(score.argmax(dim=1) == labels).sum() for score in scores]).cpu()
        seen += len(labels)
    return {
        "epoch": epoch + 1,
        "loss": [round(value, 5) for value in (losses / seen).tolist()],
        "right": [round(100 * value, 3) for value in (right / seen).tolist()],
    }


def cached(features: Tensor, labels: Tensor, batch_size: int, seed: int) -> Batches:
    """Batches of kept features in an order of their own for every epoch; what would be a batch of 1 is left out."""

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.from_numpy(shuffled(seed, epoch, len(labels))[1]).to(labels.device)
        for start in range(0, len(order) - 1, batch_size):
            part = order[start : start + batch_size]
            yield features[part], labels[part]

    return batches


def augmented(task: Task, batch_size: int, seed: int) -> Batches:
    """Features of random crops (scale 0.08 to 1) and flips, another one of each photo every epoch.

    They are float32 on every device, as those by which the probe is judged are.
    """
    encoder = task.encoder.to(task.device).eval()
    side = encoder.config.image_size

    def encode(crops: list[Tensor]) -> Tensor:
        with torch.no_grad():
            return pooled(encoder(torch.stack(crops).to(task.device).float() / 255))

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        keys, order = shuffled(seed, epoch, len(task.train))

        def load(number: int) -> Tensor:
            photo = task.train.photos.decode(number)
            boxes = crop_boxes(keys[[number]], [photo.shape[1]], [photo.shape[2]], (0.08, 1.0))
            return scaled(photo, Box(*(of[0].item() for of in boxes)), side)

        with ThreadPoolExecutor(max(task.workers, 1), thread_name_prefix="decode") as pool:
            loaded = in_order(load, order.tolist(), pool, ahead=2 * min(batch_size, _ENCODED))
            for start in range(0, len(order) - 1, batch_size):
                part = order[start : start + batch_size]
                sizes = [min(_ENCODED, len(part) - done) for done in range(0, len(part), _ENCODED)]
                features = torch.cat([encode(list(islice(loaded, size))) for size in sizes])
                yield features, torch.from_numpy(task.train.labels[part]).to(task.device)

    return batches


def answer(task: Task, protocol: Protocol) -> dict[str, Any]:
    """What ``evaluate`` says, from the folder where it was asked before."""
    return task.answered(name_of(task, protocol), asdict(protocol), lambda: evaluate(task, protocol))


def name_of(task: Task, protocol: Protocol) -> str:
    """Name of an answer's files."""
    return task.named("linear" if protocol.form == "cached" else f"linear-{protocol.form}", protocol.seed)


def evaluate(task: Task, protocol: Protocol) -> dict[str, Any]:
    """Train probes on the training photos, judge them on the others; the report goes to ``task.out``.

    Args:
        task: The model, its photos, the folder.
        protocol: How.

    Returns:
        JSON-ready: setting, chosen rates, curve, accuracy by class token (the paper's) and by mean of the patches.

    Raises:
        DataError: There are not two photos per step, one cannot be decoded, or the loss is not finite.
    """
    size = task.batch(protocol.batch_size)
    name = name_of(task, protocol)
    train, test = task.features()
    features = train.to(task.device)
    labels = torch.from_numpy(task.train.labels).to(task.device)
    width, classes = features.shape[-1], len(task.train.classes)
    rates, tried = _rates(features, task.train, protocol, task.device)
    steps = len(range(0, len(labels) - 1, size))
    keep = None
    if protocol.form == "augmented":
        batches = augmented(task, size, protocol.seed)
        keep = state.Keeper(task.out / f"{name}.state", {**task.facts(asdict(protocol)), "rates": rates})
    else:
        batches = cached(features, labels, size, protocol.seed)
    wanted = list(zip(POOLS, rates, strict=True))
    fitted = fit(batches, width, classes, wanted, protocol, steps, task.device, keep)
    for loss in fitted.curve[-1]["loss"]:
        state.refuse_not_finite(loss, "after the last epoch")
    answers = fitted.answers(test.to(task.device))
    found = {
        pool: Accuracy.of(answer.numpy(), task.test.labels, task.train.classes)
        for pool, answer in zip(POOLS, answers, strict=True)
    }
    facts = {
        **task.facts(asdict(protocol)), "question": "linear", "protocol": asdict(protocol), "rates": dict(wanted),
        "tried": tried, **{pool: of.to_dict() for pool, of in found.items()}, "curve": fitted.curve,
    }  # fmt: skip
    pages.write(
        task.out,
        name,
        f"Linear probe: {task.encoder.name}",
        facts,
        _blocks(task, name, protocol, rates, found, fitted),
    )
    if keep:
        keep.forget()
    return facts


def _rates(
    features: Tensor, train: Labelled, protocol: Protocol, device: torch.device
) -> tuple[list[float], dict[str, Any]]:
    """The learning rate of each pool, and what was tried: percent right on photos held out of ``train``."""
    if protocol.lr is not None:
        return [protocol.lr] * len(POOLS), {}
    if np.bincount(train.labels, minlength=len(train.classes)).min() < _FEWEST:
        return [PLAIN_RATE] * len(POOLS), {}
    held, rest = (torch.from_numpy(part) for part in train.split(HELD_OUT, protocol.seed + 1))
    labels = torch.from_numpy(train.labels)
    size = min(protocol.batch_size, len(rest))
    steps = len(range(0, len(rest) - 1, size))
    wanted = [(pool, rate) for pool in POOLS for rate in RATES]
    fitted = fit(
        cached(features[rest], labels[rest].to(device), size, protocol.seed),
        features.shape[-1], len(train.classes), wanted, protocol, steps, device,
    )  # fmt: skip
    right = [
        float((answer == labels[held]).double().mean() * 100) for answer in fitted.answers(features[held])
    ]
    tried = {
        pool: {
            f"{rate:g}": round(value, 2)
            for (of, rate), value in zip(wanted, right, strict=True)
            if of == pool
        }
        for pool in POOLS
    }
    return [max(RATES, key=lambda rate: tried[pool][f"{rate:g}"]) for pool in POOLS], tried


def _blocks(
    task: Task, name: str, protocol: Protocol, rates: list[float], found: dict[str, Accuracy], fitted: Fitted
) -> list[pages.Block]:
    epochs = [line["epoch"] for line in fitted.curve]
    return [
        f"Linear layer on frozen features ({protocol.form}), {protocol.epochs} epochs of LARS, the last one judged. "
        f"{task.words()}",
        pages.Table(
            ("feature", "right %", "95 % from", "to", "learning rate"),
            [
                (pool, *of.cells, rate)
                for (pool, of), rate in zip(found.items(), rates, strict=True)
            ],
        ),
        pages.Figure(
            f"{name}-curve",
            plots.lines(
                "Training photos named correctly", "epoch", "percent",
                {pool: (epochs, [line["right"][place] for line in fitted.curve]) for place, pool in enumerate(POOLS)},
            ),
            "Share of the training photos named correctly, epoch by epoch",
        ),
        found["cls"].figure(name, "Class token: truth (rows), answer"),
    ]  # fmt: skip
