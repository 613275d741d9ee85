"""Training state on disk: everything that makes the next step the same as if nothing had happened.

Samples, crops and masks depend on (seed, step) alone, and whatever the log is to hold stands there before a state is
written; so the state is step, network, optimisers and recipe. ``LATEST`` names the newest state, ``BEST`` the one of
the lowest loss: on held-out photos where there are some, else in the steps before it.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from model.checkpoints import store
from model.checkpoints.containers import DAMAGED, lost_positions
from model.checkpoints.files import BEST, LATEST, pointed, replacing
from model.errors import CheckpointError, first_line, unwritten
from model.network import MAE
from model.pretrain import sharded
from model.pretrain.adversarial import Adversary
from model.pretrain.recipe import COLOURS, Recipe
from model.pretrain.world import ALONE, World

_LOGGER = logging.getLogger(__name__)

#: Ending of the folder beside a state in which processes keep their shares of the weights.
PARTS = ".parts"
#: What of a recipe a resumed run may have otherwise: its length and pace, where and how it computes, what it writes.
#: All else decides what was learned so far. Whether weights are shared out is checked by itself.
MAY_CHANGE = {
    "name",
    "steps", "epochs", "minutes", "warmup_steps", "warmup_epochs",
    "schedule", "decay_share", "lr", "muon_lr", "clip_norm", "accumulate",
    "max_broken_share", "data_path", "precision", "sharding", "compile", "recompute",
    "log_every", "picture_every", "checkpoint_every", "keep", "val_photos",
}  # fmt: skip


@dataclass
class Training:
    """A run as it stands: what a state file holds.

    Attributes:
        recipe: What the run does; ``steps`` is filled in once ``minutes`` has become a number of steps.
        network: The weights that are trained.
        optimisers: In a fixed order.
        photos: Digest of those it learns from.
        minutes: How long it was asked to take, also once the recipe has steps instead.
        average: Their running average, if the recipe wants one.
        adversary: The discriminator, in an adversarial stage.
        step: Steps made so far.
        losses: Of the steps since the last report.
        broken: Numbers of the photos found undecodable so far.
        held_out: Digest of the photos it is validated on, if there are any.
        best: Lowest loss of a state so far: on these, else the mean of the steps before it.
        origin: What its card owes to the weights it began with, see ``beginning``.
        scaler: Keeps small gradients above zero in float16; does nothing in other numbers.
    """

    recipe: Recipe
    network: MAE
    optimisers: list[torch.optim.Optimizer]
    photos: str
    minutes: float | None = None
    average: MAE | None = None
    adversary: Adversary | None = None
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)
    held_out: str | None = None
    best: float = float("inf")
    origin: dict[str, Any] = field(default_factory=dict)
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        """Scale the loss where the recipe computes in float16 on this device."""
        device = self.network.pos_embed.device
        half = self.recipe.arithmetic(device) is torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)

    @property
    def card(self) -> dict[str, Any]:
        """What the weights say of themselves, JSON-ready."""
        return {
            "steps": self.step,
            "samples": self.step * self.recipe.batch_size,
            "strategy": self.recipe.masks,
            **self.origin,
            "recipe": self.recipe.to_dict(),
        }

    @property
    def finished(self) -> bool:
        """Whether the last step is made; never while ``minutes`` are not yet a number of steps."""
        return 0 < self.recipe.steps <= self.step

    @property
    def result(self) -> MAE:
        """What the run leaves behind."""
        return self.average or self.network


def save(folder: Path, training: Training, loss: float | None, world: World = ALONE) -> Path:
    """Write the state and point ``LATEST`` at it; a crash or a full disk leaves the previous one intact.

    Every process calls it: the first one writes, and each its own part where weights are shared out.

    Args:
        folder: The run's folder.
        training: The run as it stands.
        loss: Decides whether this one is the best; None: it is not.
        world: Who calls.

    Returns:
        The state's file.

    Raises:
        CheckpointError: It cannot be written.
    """
    best = loss is not None and loss < training.best
    if loss is not None:
        training.best = min(loss, training.best)
    path = folder / f"state-{training.step:07d}.pt"
    parted = sharded.is_sharded(training.network)
    if parted:  # first the parts, then the file that names them
        sharded.save(path.with_suffix(PARTS), training.network, training.optimisers)
    if not world.first:
        return path
    state = {
        "step": training.step,
        "network": None if parted else _weights(training.network),
        "optimisers": None if parted else [optimiser.state_dict() for optimiser in training.optimisers],
        "recipe": training.recipe.to_dict(),
        "photos": training.photos,
        "minutes": training.minutes,
        "average": _weights(training.average) if training.average else None,
        # Of weights the run began with; else they are a formula, made anew.
        "positions": store.foreign_positions(training.network),
        "adversary": training.adversary.state_dict() if training.adversary else None,
        "broken": sorted(training.broken),
        "best": training.best,
        "held_out": training.held_out,
        "origin": training.origin,
        "scaler": training.scaler.state_dict(),
        # For whoever opens it as weights.
        "unmask": {"config": training.network.config.to_dict(), "card": training.card},
    }
    _atomically(path, lambda file: torch.save(state, file))
    for pointer in (LATEST, BEST) if best else (LATEST,):
        _atomically(folder / pointer, lambda file: file.write(path.name.encode()))
    _prune(folder, training.recipe.keep)
    return path


def _weights(network: MAE) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in network.named_parameters()}


def _atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    try:
        with replacing(path) as part, part.open("wb") as file:
            write(file)
    except CheckpointError as error:
        raise unwritten(str(error)) from error


def _prune(folder: Path, keep: int) -> None:
    """Delete old states, but never one that a pointer names."""
    named = {pointed(folder / pointer) for pointer in (LATEST, BEST)}
    for old in sorted(folder.glob("state-*.pt"))[:-keep]:
        if old not in named:
            old.unlink()
            shutil.rmtree(old.with_suffix(PARTS), ignore_errors=True)


def latest_step(folder: Path) -> int:
    """Steps made by the run in this folder, 0 if it has left no state yet."""
    state = pointed(folder / LATEST)
    return int(state.stem.removeprefix("state-")) if state else 0


def colours(folder: Path) -> dict[str, list[float]]:
    """Those by which the run in this folder normalises pixels, where they are not ImageNet's.

    Raises:
        CheckpointError: There is no state, or it is damaged.
    """
    _, state = _read(folder, mapped=True)
    network = state["recipe"].get("network", {})
    return {name: network[name] for name in COLOURS if name in network}


def clear(folder: Path) -> None:
    """Remove what a process that was killed had half written; called by one process, before any writes."""
    for left in folder.glob("*.part"):
        left.unlink(missing_ok=True)


def restore(folder: Path, training: Training) -> None:
    """Bring a fresh run to where the state ``LATEST`` points at stood.

    Raises:
        CheckpointError: There is none, it is damaged, or it was written for another network, recipe or photos.
    """
    path, state = _read(folder)
    _refuse_another(folder, state, training)
    _restore_weights(folder, path, state, training)
    if lost := lost_positions(state):
        _LOGGER.warning("%s: %s", folder, lost)
    for optimiser, saved_state in zip(training.optimisers, state["optimisers"] or (), strict=False):
        optimiser.load_state_dict(saved_state)
    if training.adversary is not None:
        training.adversary.load_state_dict(state["adversary"])
    training.step = int(state["step"])
    # States of before these were kept lack them.
    training.broken = set(state.get("broken", []))
    if state.get("held_out") == training.held_out:  # else the loss was another one
        training.best = float(state.get("best", float("inf")))
    training.origin = state.get("origin", {})
    if scaler := state.get("scaler"):  # empty in other numbers than float16
        training.scaler.load_state_dict(scaler)
    if 0 < training.recipe.steps < training.step:
        raise CheckpointError(
            f"The run in {folder} has made {training.step} steps, and {training.recipe.steps} are asked for.",
            code="resume-steps",
            hint="Ask for more, or start anew in another folder.",
            field="steps",
        )
    planned = state["recipe"].get("steps")
    # Of other minutes, or of the first ones that a run is given, the steps are planned anew, from here.
    if training.minutes is not None and planned and training.minutes == state.get("minutes"):
        training.recipe = replace(training.recipe, minutes=None, steps=planned).with_short_warmup()


def _restore_weights(folder: Path, path: Path, state: dict[str, Any], training: Training) -> None:
    """Fill network and average; where processes shared them out, the optimisers too."""
    if state["network"] is None:
        sharded.load(path.with_suffix(PARTS), training.network, training.optimisers)
    elif sharded.is_sharded(training.network):
        raise CheckpointError(
            f"The run in {folder} was not shared out among processes.",
            code="resume-recipe",
            hint='Resume it with sharding = "ddp", or start anew in another folder.',
        )
    else:
        _fill(training.network, state["network"])
    if training.average is not None:
        _fill(training.average, state["average"])
    for name, stored in state.get("positions", {}).items():
        training.network.get_buffer(name).copy_(stored)
        if training.average is not None:
            training.average.get_buffer(name).copy_(stored)


def _refuse_another(folder: Path, state: dict[str, Any], training: Training) -> None:
    """Refuse a state of another network, recipe or photos."""
    saved, wanted = state["recipe"], training.recipe.to_dict()
    before = Recipe(name="x", steps=1).to_dict() | saved  # a state is older than some settings
    for key in sorted(wanted.keys() - MAY_CHANGE):
        if before[key] != wanted[key]:
            raise CheckpointError(
                f"The run in {folder} has {key} = {before[key]!r}, the recipe says {wanted[key]!r}.",
                code="resume-recipe",
                hint="Resume with the recipe it was started with, or start anew in another folder.",
            )
    if state.get("photos", training.photos) != training.photos:  # states of before it was kept lack it
        raise CheckpointError(
            f"The run in {folder} learned from other photos.",
            code="resume-photos",
            hint="Give the same ones under the same names (that of their folder counts), or begin another run with its "
            "weights (--init).",
            field="data",
        )


def _read(folder: Path, *, mapped: bool = False) -> tuple[Path, dict[str, Any]]:
    """The file that ``LATEST`` names, and what it holds; ``mapped``: tensors are read no sooner than they are used."""
    pointer = folder / LATEST
    path = pointed(pointer)
    if path is None:
        raise CheckpointError(
            f"There is nothing to resume in {folder}.",
            code="resume-missing",
            hint="Leave out --resume to start a new run, or give the run's folder with --out.",
        )
    try:
        # Our own file, but read as a stranger's: tensors and plain values only.
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)  # noqa: TID251
    except DAMAGED as error:
        raise CheckpointError(
            f"{path} cannot be read: {first_line(error)}.",
            code="resume-damaged",
            hint=f"Write the name of an older state of that folder into {pointer}.",
        ) from error
    return path, state


def _fill(network: MAE, weights: dict[str, Tensor]) -> None:
    for key, parameter in network.named_parameters():
        parameter.data.copy_(weights[key])
