"""The training loop, read top to bottom.

    batch -> normalise -> forward on the visible patches -> loss on the hidden ones
          -> backward -> clip -> optimiser at the step's learning rate -> log, picture, checkpoint

Source: arXiv 2111.06377, appendix A.1. Muon for the block matrices: docs/log.md says what it brought.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.errors import DataError
from model.network import MAE
from model.pretrain import resume
from model.pretrain.data import Batch, Photos, batches
from model.pretrain.muon import Muon
from model.pretrain.recipe import Recipe


@dataclass(frozen=True)
class Progress:
    """What one step tells whoever watches."""

    step: int  # steps made, this one included
    loss: float  # mean over the steps since the last report, squared target units
    lr: float  # share of the top learning rate, 0..1
    images_per_second: float
    seconds: float  # since this process began to train


def learning_rate(recipe: Recipe, step: int) -> float:
    """Share of the top rate in step 0, 1, ...: linear warm-up, then the recipe's schedule down to 0."""
    if step < recipe.warmup_steps:
        return step / recipe.warmup_steps
    if recipe.schedule == "cosine":
        done = (step - recipe.warmup_steps) / max(recipe.steps - recipe.warmup_steps, 1)
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
    return [adamw, Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay)]


def wants_bf16(recipe: Recipe, device: torch.device) -> bool:
    """Whether to compute in bfloat16: as the recipe says, or where the device has arithmetic for it."""
    if recipe.precision == "auto":
        if device.type == "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        # torch emulates bfloat16 on older CPUs, ten times slower than float32.
        return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return recipe.precision == "bf16"


def step(
    network: MAE, batch: Batch, optimisers: list[torch.optim.Optimizer], recipe: Recipe, scale: float
) -> Tensor:
    """One optimiser step; ``scale`` is the share of the top learning rate. Returns the loss, detached."""
    device = network.pos_embed.device
    image = network.normalise(batch.images.to(device, non_blocking=True).float() / 255)
    hidden = batch.hidden.to(device, non_blocking=True)
    order = hidden.int().argsort(dim=1, stable=True)  # visible ascending, then hidden ascending
    ids_keep = order[:, : int((~batch.hidden[0]).sum())]
    with torch.autocast(device.type, torch.bfloat16, enabled=wants_bf16(recipe, device)):
        pred = network(image, ids_keep, order.argsort(dim=1))
    loss = network.loss(image, pred, hidden)
    loss.backward()  # type: ignore[no-untyped-call]
    if recipe.clip_norm is not None:
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
    for optimiser, top in zip(optimisers, (recipe.lr, recipe.muon_lr), strict=False):
        for group in optimiser.param_groups:
            group["lr"] = top * scale
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return loss.detach()


def run(
    recipe: Recipe,
    photos: Photos,
    out: Path,
    *,
    device: torch.device,
    workers: int = 1,
    resumed: bool = False,
    report: Callable[[Progress, MAE], None],
) -> MAE:
    """Train to the recipe's last step, or until SIGTERM or Ctrl-C, saving the state either way.

    Args:
        recipe: What to do.
        photos: On what.
        out: The run's folder, for states.
        device: Where the network lives.
        workers: Decoding threads.
        resumed: Go on from the state in ``out``.
        report: Called every ``log_every`` steps and at the end; watching and evaluating happen there.

    Raises:
        DataError: The loss is no longer finite; the last state on disk is the one before.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)  # noqa: TID251 (weights of a fresh network only; nothing else draws from it)
    network = MAE(recipe.config).to(device).train()
    optimisers = build_optimisers(network, recipe)
    start = resume.restore(out, network, optimisers, recipe) if resumed else 0
    if recipe.compile:
        for block in (*network.blocks, *network.decoder_blocks):
            block.compile()
    stop = _stop_signals()
    began = last = time.monotonic()
    losses: list[Tensor] = []
    done = start
    for done, batch in enumerate(batches(photos, recipe, start, workers), start + 1):
        if done > recipe.steps:
            done = recipe.steps
            break
        scale = learning_rate(recipe, done - 1)
        losses.append(step(network, batch, optimisers, recipe, scale))
        if done % recipe.log_every == 0 or done == recipe.steps or stop:
            loss = float(torch.stack(losses).mean())
            if not math.isfinite(loss):
                raise DataError(
                    f"The loss is {loss} after step {done}.",
                    code="loss",
                    hint="Resume from the last state with a lower learning rate, or set clip_norm.",
                )
            now = time.monotonic()
            speed = len(losses) * recipe.batch_size / (now - last)
            report(Progress(done, loss, scale, speed, now - began), network)
            last, losses = time.monotonic(), []
        if done % recipe.checkpoint_every == 0 or stop:
            resume.save(out, done, network, optimisers, recipe)
        if stop:
            break
    else:  # pragma: no cover (the stream of batches has no end)
        pass
    resume.save(out, done, network, optimisers, recipe)
    return network


def _stop_signals() -> list[int]:
    """A list that fills when SIGTERM or SIGINT arrives: the loop ends after its step, with its state saved."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: received.append(got))
    return received
