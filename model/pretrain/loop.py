"""The training loop, read top to bottom.

    batch -> normalise -> forward on the visible patches -> loss on the hidden ones
          -> backward -> clip -> optimiser at the step's learning rate -> log, validation, picture, checkpoint

Nothing in a step makes the host wait for a GPU (in float16 one number does, whether gradients overflowed): losses are
read when a report or a state is due.
Source: arXiv 2111.06377, appendix A.1. Muon for the block matrices: docs/log.md says what it brought.
"""

from __future__ import annotations

import copy
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from model.checkpoints.files import write_json
from model.errors import DataError, RecipeError
from model.network import MAE, in_decoder, unfuse_on_cpu
from model.pretrain import feed, resume, sharded, targets
from model.pretrain.adversarial import Adversary
from model.pretrain.beginning import Beginning
from model.pretrain.data import Photos
from model.pretrain.muon import Muon
from model.pretrain.pace import Pace
from model.pretrain.recipe import Recipe
from model.pretrain.resume import Training
from model.pretrain.samples import Batch, batch_record, refuse_too_many_broken
from model.pretrain.validation import Validation
from model.pretrain.watch import Progress
from model.pretrain.world import ALONE, World

#: Below it gradients overflow for another reason than their scale, which is 65536 at first and halved each time.
_LEAST_SCALE = 1.0


class Objective(nn.Module):
    """What is minimised, as one module: compiled as a whole, and its gradients shared between processes."""

    def __init__(
        self, network: MAE, dtype: torch.dtype, adversary: Adversary | None = None, *, on_all: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        if dtype is torch.bfloat16:
            unfuse_on_cpu(network)
        self.dtype = dtype
        self.adversary = adversary
        self.on_all = on_all

    def forward(self, images: Tensor, ids_keep: Tensor, ids_restore: Tensor, hidden: Tensor) -> Tensor:
        """Loss of ``images [B, 3, H, W] uint8`` under a mask given in its three forms."""
        image = self.network.normalise(images.float() / 255)
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            pred = self.network(image, ids_keep, ids_restore)
        loss = self.network.loss(image, pred, torch.ones_like(hidden) if self.on_all else hidden)
        if self.adversary is not None:
            loss = loss + self.adversary.terms(self.network, image, pred, hidden, loss)
        return loss


def learning_rate(recipe: Recipe, step: int) -> float:
    """Share of the top rate in step 0, 1, ...: linear warm-up, then the recipe's schedule down to 0."""
    warmup = recipe.warmup_steps
    if step < warmup:
        return step / warmup
    if recipe.steps == 0:
        return 1.0
    if recipe.schedule == "cosine":
        done = (step - warmup) / max(recipe.steps - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1)))
    # Trapezoid: flat, then 1 - sqrt, which ends lower than a straight line at equal length.
    decay = max(round(recipe.steps * recipe.decay_share), 1)
    return 1 - math.sqrt(min(max(step - (recipe.steps - decay), 0) / decay, 1))


def build_optimisers(network: MAE, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices inside the blocks and AdamW for the rest.

    One-dimensional parameters (norms, biases) are not decayed, as in the public code.
    """
    matrices: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        if recipe.optimiser == "muon" and parameter.ndim == 2 and "blocks." in name:
            matrices.append(parameter)
        else:
            (plain if parameter.ndim == 1 else decayed).append(parameter)
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.lr,
        betas=recipe.betas,
        fused=True,
    )
    if not matrices:
        return [adamw]
    dtype = recipe.arithmetic(matrices[0].device)
    if dtype is torch.float16:  # it has digits enough, but not the range
        dtype = torch.float32
    return [adamw, Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, dtype=dtype)]


def step(objective: Objective | DistributedDataParallel, batch: Batch, training: Training) -> Tensor:
    """One optimiser step at the schedule's learning rate. Returns this process's loss, detached."""
    recipe = training.recipe
    device = training.network.pos_embed.device
    images = batch.images.to(device, non_blocking=True)
    hidden = batch.hidden.to(device, non_blocking=True)
    ids_keep, ids_restore = mask_orders(hidden, int((~batch.hidden[0]).sum()))
    total = torch.zeros((), device=device)
    parts = [of.chunk(recipe.accumulate) for of in (images, ids_keep, ids_restore, hidden)]
    low, high = recipe.ratio_range
    if recipe.compile and low < high:
        # Compiled once for any number of visible patches, and everything else for the size it has. A mark is the
        # tensor's own: a part does not have that of the whole.
        for ids in parts[1]:
            torch._dynamo.maybe_mark_dynamic(ids, 1)
    for number, part in enumerate(zip(*parts, strict=True), 1):
        # Gradients travel between processes once a step, with the last part.
        held_back = number < recipe.accumulate
        sharded.hold_back(training.network, held_back)
        copied = isinstance(objective, DistributedDataParallel)
        with objective.no_sync() if copied and held_back else nullcontext():  # type: ignore[operator]
            loss = objective(*part) / recipe.accumulate
            training.scaler.scale(loss).backward()
            if training.adversary is not None:
                training.adversary.judge(1 / recipe.accumulate)
        total += loss.detach()
    _update(training)
    return total


def _update(training: Training) -> None:
    """Move the weights by their gradients, and the average after them.

    In float16 neither moves where gradients overflowed; schedule and samples go on as after any other step.
    """
    recipe, scaler = training.recipe, training.scaler
    for optimiser in training.optimisers:
        scaler.unscale_(optimiser)
    if recipe.clip_norm is not None:
        nn.utils.clip_grad_norm_(training.network.parameters(), recipe.clip_norm)
    scale = learning_rate(recipe, training.step)
    if training.adversary is not None:
        training.adversary.step(scale)
    # One answer for all optimisers: ``scaler.step`` would let the one move whose own gradients are finite. And in every
    # process: gradients are shared by now, and what overflowed in one did so in the sum (``unscale_`` makes parts of
    # FSDP2 tell each other).
    loss_scale = scaler.get_scale()
    scaler.update()
    overflowed = scaler.get_scale() < loss_scale
    for optimiser, top in zip(training.optimisers, (recipe.lr, recipe.muon_lr), strict=False):
        for group in optimiser.param_groups:
            group["lr"] = top * scale
        if not overflowed:
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    if training.average is not None and recipe.ema is not None and not overflowed:
        # At first the average follows quickly, so that the random start is soon forgotten.
        kept = min(recipe.ema, (1 + training.step) / (10 + training.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(training.average.parameters()), list(training.network.parameters()), 1 - kept
            )


@torch.no_grad()
def validate(training: Training, batches: Sequence[Batch]) -> float:
    """Loss on held-out photos of what the run would leave now; among several processes the same in each."""
    recipe, network = training.recipe, training.result.eval()
    device = network.pos_embed.device
    objective = Objective(network, recipe.arithmetic(device), on_all=recipe.loss_on == "all")
    losses = []
    for batch in batches:
        images, hidden = batch.images.to(device), batch.hidden.to(device)
        orders = mask_orders(hidden, int((~batch.hidden[0]).sum()))
        losses.append(len(images) * objective(images, *orders, hidden))
    network.train()
    sharded.part(network)
    return float(torch.stack(losses).sum()) / sum(len(batch.images) for batch in batches)


def mask_orders(hidden: Tensor, visible: int) -> tuple[Tensor, Tensor]:
    """``ids_keep [B, K]`` and ``ids_restore [B, L]`` of ``hidden [B, L] bool`` with ``visible`` = K."""
    order = hidden.int().argsort(dim=1, stable=True)  # visible ascending, then hidden ascending
    return order[:, :visible], order.argsort(dim=1)


def run(
    recipe: Recipe,
    photos: Photos,
    out: Path,
    *,
    device: torch.device,
    workers: int = 1,
    resumed: bool = False,
    init: Beginning | None = None,
    validation: Validation | None = None,
    world: World = ALONE,
    begin: Callable[[int, MAE, float | None], None] | None = None,
    report: Callable[[Progress, MAE], None] | None = None,
) -> Training:
    """Train to the recipe's last step, or until SIGTERM or Ctrl-C, saving the state either way.

    Only Python's main thread hears of signals: a run in another one goes on to its last step.

    Args:
        recipe: What to do.
        photos: On what.
        out: The run's folder, for states.
        device: Where the network lives.
        workers: Decoding threads.
        resumed: Go on from the state in ``out``.
        init: Begin with these weights instead of random ones.
        validation: Held-out photos to measure the loss on, before step 0 and at every state that is due.
        world: The processes that train together; every one calls this function.
        begin: Called once with the steps already made, before the next one, and the loss on held-out photos if these
            are none.
        report: Called every ``log_every`` steps and before every state; watching and evaluating happen there.

    Raises:
        DataError: Too many photos are broken, or the loss is no longer finite (the last state on disk is
            from before that).
        RecipeError: The photos do not fit the device's memory, where they are to be kept; or processes compute in
            different numbers.
    """
    began = time.monotonic()
    with _stop_signals() as stop:
        training = _begin(recipe, photos, out, device, resumed, init, workers, world, validation)
        objective = _objective(training, device, world)
        if begin:
            val_loss = training.best if validation and training.step == 0 else None
            begin(training.step, training.result, val_loss)
        pace = Pace(training.step, began, training.minutes)
        stream = feed.batches(
            photos, training.recipe, training.step, device=device, workers=workers, world=world
        )
        since_state: list[Tensor] = []
        stopped = False
        while not (stopped or training.finished):
            batch = next(stream)
            training.broken |= batch.broken
            refuse_too_many_broken(training.broken, photos, recipe)
            scale = learning_rate(training.recipe, training.step)
            loss = step(objective, batch, training)
            training.step += 1
            training.losses.append(loss)
            since_state.append(loss)
            if training.recipe.steps == 0:
                training.recipe = pace.plan(training, device, world)
            # Several processes must stop after the same step. They ask each other after every one, which is a number on
            # the host's side: torchrun kills those that take 30 seconds, and a step may take some.
            stopped = world.any(bool(stop) or pace.over)
            regular = training.step % recipe.checkpoint_every == 0 or training.finished
            saving = regular or stopped
            if saving or training.step % recipe.log_every == 0:
                _share(training, world)
                _refuse_not_finite(training, photos, out, world, saving)
                progress = _progress(training, scale, pace)
                # Not where a run is stopped in between: whoever stops it may not wait for long.
                if validation and regular:
                    progress = replace(progress, val_loss=validate(training, validation.batches))
                if report:
                    report(progress, training.result)
                training.losses = []
                pace.reported(training.step)
            if saving:
                judged = progress.val_loss if validation else _mean(since_state, training, world)
                since_state = []
                resume.save(out, training, judged, world)
    return training


def _begin(
    recipe: Recipe,
    photos: Photos,
    out: Path,
    device: torch.device,
    resumed: bool,
    init: Beginning | None,
    workers: int,
    world: World = ALONE,
    validation: Validation | None = None,
) -> Training:
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)  # noqa: TID251 (weights of a fresh network only; nothing else draws from it)
    parted = recipe.sharding == "fsdp2" and world.size > 1
    network = MAE(recipe.config).train()
    if not parted:  # else each process takes its share only: the whole may not fit into the device's memory
        network.to(device)
    if init is not None and not resumed:
        init.fill(network)
    if not resumed and (init is None or init.target != recipe.target):
        targets.learn(network, photos, recipe, workers)
    network.recompute = recipe.recompute
    average = copy.deepcopy(network) if recipe.ema is not None else None
    adversary = _adversary(recipe, network, warn=init is None and not resumed and world.first)
    if parted:
        sharded.shard(network, device)
    optimisers = build_optimisers(network, recipe)
    training = Training(
        recipe, network, optimisers, photos.digest, recipe.minutes, average, adversary,
        held_out=validation.digest if validation else None, origin=init.origin if init else {},
    )  # fmt: skip
    scaled = training.scaler.is_enabled()
    if world.any(scaled) and world.any(not scaled):  # their gradients are of different sizes
        raise RecipeError(
            f"precision: {recipe.precision} is float16 in some processes and not in others, whose GPUs are of another "
            "kind.",
            code="recipe",
            hint='Write precision = "fp16" or "fp32" into the recipe, which all of them can do.',
            field="precision",
        )
    if resumed:
        resume.restore(out, training)
    elif validation:  # what the best state must be better than
        training.best = validate(training, validation.batches)
    return training


def _adversary(recipe: Recipe, network: MAE, warn: bool) -> Adversary | None:
    """The other side of an adversarial stage; of the network only what the stage trains then learns."""
    if recipe.adversarial is None:
        return None
    if warn:
        tqdm.write(
            "The adversarial stage begins with random weights. It is meant for those of a first stage: give them "
            "with --init.",
            file=sys.stderr,
        )
    adversary = Adversary(recipe.adversarial, network, recipe.seed)
    if recipe.adversarial.trained == "decoder":
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(in_decoder(name))
    return adversary


def _objective(training: Training, device: torch.device, world: World) -> Objective | DistributedDataParallel:
    recipe = training.recipe
    objective = Objective(
        training.network, recipe.arithmetic(device), training.adversary, on_all=recipe.loss_on == "all"
    )
    if recipe.compile:
        objective.compile()
    if world.size == 1 or sharded.is_sharded(training.network):
        return objective
    return DistributedDataParallel(objective, forward_sync_buffers=False, gradient_as_bucket_view=True)


def _mean(losses: list[Tensor], training: Training, world: World) -> float | None:
    """Of the losses since the last state that this process knows; None where those few would decide by chance."""
    few = 2 * len(losses) < min(training.recipe.checkpoint_every, training.step)
    return None if few else float(torch.stack(world.means(losses)).mean())


def _share(training: Training, world: World) -> None:
    """Make what was noted since the last report everyone's: a state holds it, and all judge by the same."""
    training.broken = world.union(training.broken)
    training.losses = world.means(training.losses)
    if training.adversary is not None:
        training.adversary.share(world)


def _progress(training: Training, scale: float, pace: Pace) -> Progress:
    """What there is to say since the last report; the host waits for the device here."""
    extra = training.adversary.report() if training.adversary else {}
    if training.scaler.is_enabled():
        extra["loss_scale"] = training.scaler.get_scale()
    return Progress(
        training.step,
        training.recipe.steps,
        float(torch.stack(training.losses).mean()),
        scale,
        training.recipe.batch_size * pace.since_report(training.step),
        frozenset(training.broken),
        extra,
    )


def _refuse_not_finite(training: Training, photos: Photos, out: Path, world: World, saving: bool) -> None:
    """Stop when a loss since the last report is no longer finite, and say on which photos.

    In float16 too: there gradients overflow now and then, which a smaller scale cures; the loss, which is not scaled,
    where the network's own values do. Before a state is written also when the last update lost the weights, which the
    next loss alone would tell.
    """
    losses = [float(loss) for loss in training.losses]
    bad = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if bad is not None:
        raise _not_finite(losses[bad], training.step - len(losses) + bad, training, photos, out, world)
    if training.scaler.get_scale() < _LEAST_SCALE:
        raise DataError(
            f"Gradients are not finite in step after step, last in step {training.step - 1}: the network has left "
            "float16's range.",
            code="loss",
            hint='Resume from the last state with precision = "fp32" in the recipe, or with a lower learning rate.',
        )
    if saving:
        parameters = [sharded.own(parameter) for parameter in training.network.parameters()]
        finite = bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())
        if world.any(not finite):
            raise _not_finite(math.nan, training.step - 1, training, photos, out, world)


def _not_finite(
    loss: float, step: int, training: Training, photos: Photos, out: Path, world: World
) -> DataError:
    """With a record of the step's photos beside it."""
    record = out / f"not-finite-{step:07d}.json"
    if world.first:
        write_json(record, {"loss": str(loss), **batch_record(photos, training.recipe, step)})
    return DataError(
        f"The loss is {loss} in step {step}, or after it. Its photos and the keys of their crops and masks are in "
        f"{record}.",
        code="loss",
        hint="Inspect these photos; resume from the last state with a lower learning rate, or set clip_norm"
        + (', or precision = "fp32".' if training.scaler.is_enabled() else "."),
    )


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when SIGTERM or SIGINT arrives: the loop ends after its step, with its state saved.

    Afterwards they do again what they did before. Off the main thread Python lets nobody listen: it stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda got, _: received.append(got)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            # None: set by other than Python, which cannot set it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
