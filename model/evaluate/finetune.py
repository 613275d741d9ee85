"""Fine-tuning the encoder, all of it or its last blocks, and the same network from random weights.

    photos -> RandAugment, mixup, cutmix -> timm's ViT -> AdamW, cosine, layer-wise decay -> accuracy of the last step

Source: arXiv 2111.06377, tables 9 (with what its public code uses for ViT-B) and 11, fig. 9. Warm-up is a share
of the run here, so that short runs have one too. Budgets are epochs or minutes; the test photos are looked at once,
after the last step (before the first one they are decoded, so that a broken one is found then, and nothing more).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor
from tqdm import tqdm

from model.devices import has_bf16
from model.evaluate import bounds, classifier, pages, plots, state
from model.evaluate.accuracy import Accuracy
from model.evaluate.augment import DRAWS, Augmented, Samples, batches, seeded
from model.evaluate.features import whole
from model.evaluate.labelled import Labelled, Labels
from model.evaluate.task import Task
from model.network import unfuse_on_cpu

#: Steps that are timed, after one that is not, to turn minutes into steps.
_TIMED = 3
#: Photos judged at once.
_JUDGED = 32
#: Of the curve of the training loss, at most twice as many.
_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a classifier is trained.

    Attributes:
        kind: ``finetune``, ``partial`` or ``scratch``.
        blocks: Last blocks that learn, for ``partial``; a half is an MLP half.
        epochs: Passes over the training photos; may be a fraction.
        minutes: Instead: as many steps as fit.
        batch_size: Photos per step; an even number.
        base_lr: Learning rate at 256 photos per step.
        warmup_share: Of the steps.
        layer_decay: Rate of a layer over the rate of the next one.
        weight_decay: AdamW's.
        betas: AdamW's.
        drop_path: Stochastic depth of the last block, growing from 0.
        mixup: Alpha, 0 for none.
        cutmix: Alpha, 0 for none.
        smoothing: Of the labels.
        auto_augment: timm's text for RandAugment.
        erasing: Probability of a patch of noise.
        ema: Decay of an average of the weights, which is then judged; None to judge the last step.
        seed: Decides every draw.
    """

    kind: str = "finetune"
    blocks: float | None = None
    epochs: float = 100
    minutes: float | None = None
    batch_size: int = 128
    base_lr: float = 5e-4
    warmup_share: float = 0.05
    layer_decay: float = 0.65
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    drop_path: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    erasing: float = 0.25
    ema: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Reject numbers with which a figure would mean nothing."""
        bounds.check(**vars(self))


#: What the paper changes when nothing was pre-trained (table 11).
SCRATCH: dict[str, Any] = {
    "kind": "scratch", "epochs": 300, "base_lr": 1e-4, "warmup_share": 20 / 300, "layer_decay": 1.0,
    "weight_decay": 0.3, "betas": (0.9, 0.95), "ema": 0.9999,
}  # fmt: skip

#: What its public code takes for wider encoders than ViT-B, whose values are the defaults: ViT-L and ViT-H.
_FINETUNED_WIDE: dict[int, dict[str, Any]] = {
    width: {
        "epochs": 50,
        "warmup_share": 5 / 50,
        "base_lr": 1e-3,
        "layer_decay": 0.75,
        "drop_path": drop_path,
    }
    for width, drop_path in ((1024, 0.2), (1280, 0.3))
}
#: The same from random weights (table 11).
_SCRATCH_WIDE: dict[int, dict[str, Any]] = {
    width: {"epochs": 200, "warmup_share": 20 / 200, "drop_path": 0.2} for width in (1024, 1280)
}

#: For runs of minutes, in which nothing overfits: batches of 16, a rate that these bear (1e-3; the paper's rule would
#: leave 3e-5 of it), and no mixed or erased photos, with which nothing is learned in hundreds of steps (docs/log.md).
SHORT: dict[str, Any] = {
    "batch_size": 16, "base_lr": 16e-3, "mixup": 0.0, "cutmix": 0.0, "erasing": 0.0, "drop_path": 0.0,
}  # fmt: skip


class _Run:
    """A classifier in training: what a state file holds, and one step of it."""

    def __init__(self, task: Task, settings: Settings) -> None:
        self.task, self.settings, self.device = task, settings, task.device
        self.batch_size = task.batch(settings.batch_size) // 2 * 2  # mixup pairs photos
        side = task.encoder.config.image_size
        self._data = Augmented(task.train, side, settings.auto_augment, settings.erasing)
        self._samples = Samples(len(task.train), self.batch_size, settings.seed)
        classes = len(task.train.classes)
        vit = classifier.build(task.encoder, classes, drop_path=settings.drop_path, seed=settings.seed)
        if settings.blocks is not None:
            classifier.freeze(vit, settings.blocks)
        self.vit: VisionTransformer = vit.to(task.device)
        self._bf16 = has_bf16(task.device)
        if self._bf16:
            unfuse_on_cpu(self.vit)
        # Rates fall from layer to layer towards the input (BEiT); vectors, positions and class token do not decay.
        groups = param_groups_layer_decay(
            self.vit, settings.weight_decay, self.vit.no_weight_decay(), layer_decay=settings.layer_decay
        )
        rate = settings.base_lr * self.batch_size / 256
        self.optimiser: Any = create_optimizer_v2(groups, opt="adamw", lr=rate, betas=settings.betas)
        self.ema: Any = averaged(self.vit, settings.ema) if settings.ema is not None else None
        mixed = settings.mixup > 0 or settings.cutmix > 0
        self._mix: Any = (
            Mixup(settings.mixup, settings.cutmix, label_smoothing=settings.smoothing, num_classes=classes)
            if mixed
            else None
        )
        self._loss: Any = (
            SoftTargetCrossEntropy() if mixed else LabelSmoothingCrossEntropy(settings.smoothing)
        )
        self.step, self.steps = 0, 0
        self.curve: list[dict[str, float]] = []
        self.losses: list[Tensor] = []  # since the curve's last point

    def schedule(self) -> Any:
        """Learning rate over all steps: linear warm-up, cosine to 1e-6, each layer its share."""
        warmup = round(self.settings.warmup_share * self.steps)
        # A cosine of one step, timm warns, is none.
        return CosineLRScheduler(
            self.optimiser, t_initial=max(self.steps - warmup, 2), lr_min=1e-6, warmup_t=warmup,
            warmup_prefix=True, t_in_epochs=False,
        )  # fmt: skip

    def batches(self, first: int, last: int) -> Iterator[Any]:
        """Images and labels of the steps ``first`` to ``last`` - 1."""
        return batches(self._data, self._samples, first, last, self.task.workers)

    def backward(self, images: Tensor, labels: Tensor, step: int) -> Tensor:
        """Loss and gradients of one batch; its draws follow from the seed and the step."""
        images, target = images.to(self.device), labels.to(self.device)
        with seeded(self.settings.seed, step, device=self.device):
            if self._mix is not None:
                images, target = self._mix(images, target)
            classifier.train_mode(self.vit)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
                loss = self._loss(self.vit(images).float(), target)
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        """One step of the optimiser and of the average."""
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.vit, step=self.step)

    def to_state(self) -> dict[str, Any]:
        return {
            "step": self.step, "steps": self.steps, "curve": self.curve, "vit": self.vit.state_dict(),
            "optimiser": self.optimiser.state_dict(), "ema": self.ema.state_dict() if self.ema else None,
            "losses": [float(loss) for loss in self.losses],
        }  # fmt: skip

    def restore(self, saved: dict[str, Any]) -> None:
        self.step, self.steps, self.curve = saved["step"], saved["steps"], saved["curve"]
        self.vit.load_state_dict(saved["vit"])
        self.optimiser.load_state_dict(saved["optimiser"])
        if self.ema is not None:
            self.ema.load_state_dict(saved["ema"])
        # States of before these were kept were written with the curve's points alone.
        self.losses = [torch.tensor(loss, device=self.device) for loss in saved.get("losses", [])]

    @property
    def result(self) -> VisionTransformer:
        """What is judged."""
        return self.ema.module if self.ema is not None else self.vit


def averaged(vit: VisionTransformer, decay: float) -> Any:
    """An average of the weights whose decay follows t / (9 + t) up to ``decay``, as in pre-training.

    It reaches 0.9999 at step 90,000 of the paper's 94,000 (ViT-B); timm's own ramp ends at 0.9995 there.
    """
    return ModelEmaV3(vit, decay=decay, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)


def answer(task: Task, settings: Settings) -> dict[str, Any]:
    """What ``evaluate`` says, from the folder where it was asked before."""
    return task.answered(name_of(task, settings), _asked(settings), lambda: evaluate(task, settings))


def _asked(settings: Settings) -> dict[str, Any]:
    """What decides an answer beside the task."""
    return asdict(settings) | {"draws": DRAWS}


def evaluate(task: Task, settings: Settings, *, save_every_s: float = 120) -> dict[str, Any]:
    """Train a classifier on the training photos and judge it on the others; all goes to ``task.out``.

    Args:
        task: The model (trained or random), its photos, the folder. Processes that augment: ``workers``; 0 for none.
        settings: How.
        save_every_s: Seconds between two states on disk; the same call goes on from the last one.

    Returns:
        JSON-ready: setting, steps, curve, and accuracy as ``answer``.

    Raises:
        DataError: The loss is not finite, or a photo cannot be decoded.
    """
    name = name_of(task, settings)
    keep = state.Keeper(task.out / f"{name}.state", task.facts(_asked(settings)))
    run = _Run(task, settings)
    if saved := keep.load():
        run.restore(saved)
    else:
        _refuse_broken(task.test)
    if run.steps == 0:
        run.steps = _planned(run)
    began = time.monotonic()
    _train(run, keep, save_every_s)
    minutes = (time.monotonic() - began) / 60
    named = answers(run.result, task.test, task.encoder.config.image_size, task.device)
    found = Accuracy.of(named, task.test.labels, task.train.classes)
    samples = run.steps * run.batch_size
    facts = {
        **task.facts(_asked(settings)), "question": settings.kind, "settings": asdict(settings),
        "batch_size": run.batch_size, "steps": run.steps, "samples": samples,
        "epochs": round(samples / len(task.train), 3),
        "minutes_of_last_call": round(minutes, 2), "answer": found.to_dict(), "curve": run.curve,
    }  # fmt: skip
    classifier.write(
        task.out / f"{name}.safetensors", run.result, name, task.encoder.config, task.train.classes
    )
    pages.write(
        task.out, name, f"{settings.kind}: {task.encoder.name}", facts, _blocks(task, name, found, facts)
    )
    keep.forget()
    return facts


def _refuse_broken(test: Labelled) -> None:
    """Refuse broken test photos before the first step: after the last one it is all lost.

    The state is that of a run with these photos, and would be refused without the broken one.
    """
    for number in tqdm(range(len(test)), desc="check", unit="photo"):
        test.photos.decode(number)


def name_of(task: Task, settings: Settings) -> str:
    """Name of an answer's files."""
    blocks = f"-{settings.blocks:g}" if settings.blocks is not None else ""
    return task.named(f"{settings.kind}{blocks}", settings.seed)


def epochs_in(task: Task, settings: Settings) -> float:
    """Epochs that fit into ``settings.minutes`` here, without training anything."""
    run = _Run(task, settings)
    return _planned(run) * run.batch_size / len(task.train)


def _planned(run: _Run) -> int:
    """Steps in all: from the epochs, or from the time a few of them take (their gradients are thrown away)."""
    settings, task = run.settings, run.task
    if settings.minutes is None:
        return max(math.ceil(settings.epochs * len(task.train) / run.batch_size - 1e-9), 1)
    # Other processes have made some batches before the clock starts: those are not typical.
    ahead = 1 + 2 * task.workers
    timed = _TIMED + 4 * task.workers
    for number, (images, labels) in enumerate(run.batches(0, ahead + timed)):
        if number == ahead:
            began = time.monotonic()
        run.backward(images, labels, number)
        run.optimiser.zero_grad(set_to_none=True)
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)
    return max(int(settings.minutes * 60 * timed / (time.monotonic() - began)), 1)


def _train(run: _Run, keep: state.Keeper, save_every_s: float) -> None:
    schedule = run.schedule()
    every = max(run.steps // _POINTS, 1)
    saved_at = time.monotonic()
    bar = tqdm(total=run.steps, initial=run.step, desc=run.settings.kind, unit="step")
    for images, labels in run.batches(run.step, run.steps):
        schedule.step_update(run.step)
        run.losses.append(run.backward(images, labels, run.step))
        run.update()
        bar.update()
        drawn = run.step % every == 0 or run.step == run.steps
        due = time.monotonic() - saved_at >= save_every_s
        if drawn or due:
            loss = float(torch.stack(run.losses).mean())
            state.refuse_not_finite(loss, f"after step {run.step}", "base_lr")
        if drawn:
            rate = max(group["lr"] for group in run.optimiser.param_groups)
            run.curve.append({"step": run.step, "loss": round(loss, 5), "lr": rate})
            run.losses = []
            bar.set_postfix(loss=f"{loss:.3f}")
        if due:
            keep.save(run.to_state())
            saved_at = time.monotonic()
    bar.close()
    keep.save(run.to_state())


@torch.inference_mode()
def answers(vit: VisionTransformer, test: Labelled, side: int, device: torch.device) -> Labels:
    """Classes ``[N]`` of whole photos."""
    vit.eval()
    named = []
    for start in tqdm(range(0, len(test), _JUDGED), desc="judge", unit="batch"):
        numbers = range(start, min(start + _JUDGED, len(test)))
        images = torch.stack([whole(test.photos.decode(number), side) for number in numbers]).to(device)
        named.append(classifier.logits(vit, images).argmax(dim=1).cpu())
    return torch.cat(named).numpy()


def _blocks(task: Task, name: str, found: Accuracy, facts: dict[str, Any]) -> list[pages.Block]:
    curve, settings = facts["curve"], facts["settings"]
    mixed = "mixed photos and " * bool(settings["mixup"] or settings["cutmix"])
    return [
        f"{task.words()} {facts['steps']} steps of {facts['batch_size']} photos ({facts['epochs']:g} epochs); "
        + ("the last step is judged." if settings["ema"] is None else "an average of the weights is judged."),
        pages.Table(
            ("", "right %", "95 % from", "to"),
            [(facts["question"], *found.cells)],
        ),
        pages.Figure(
            f"{name}-curve",
            plots.lines(
                "Training loss", "step", "loss",
                {"loss": ([line["step"] for line in curve], [line["loss"] for line in curve])},
            ),
            f"Training loss, with {mixed}smoothed labels",
        ),
        found.figure(name),
    ]  # fmt: skip


def load_settings(kind: str, given: dict[str, Any], width: int = 768) -> Settings:
    """The paper's settings for a question, with what was given on top; None means unchanged.

    Args:
        kind: ``finetune``, ``partial`` or ``scratch``.
        given: Fields of ``Settings``.
        width: Of the encoder: ViT-L (1024) and ViT-H (1280) have settings of their own.
    """
    preset: dict[str, Any] = {"kind": kind} | _FINETUNED_WIDE.get(width, {})
    if kind == "scratch":
        preset = SCRATCH | _SCRATCH_WIDE.get(width, {})
    return Settings(**preset | {key: value for key, value in given.items() if value is not None})
