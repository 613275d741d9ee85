"""From a recipe and paths to a finished weight file: processes found, device chosen, run watched, weights written."""

from __future__ import annotations

import itertools
import math
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from model.checkpoints import files, store
from model.devices import check_device
from model.errors import CheckpointError, RecipeError
from model.pretrain import beginning, resume, sharded
from model.pretrain.data import Photos, expand, refuse_shared
from model.pretrain.loop import run
from model.pretrain.pace import shortened
from model.pretrain.recipe import Recipe
from model.pretrain.remote import is_address
from model.pretrain.resume import Training
from model.pretrain.samples import Sampler
from model.pretrain.validation import Validation
from model.pretrain.watch import Watch
from model.pretrain.world import ALONE, World


def pretrain(
    recipe: Recipe,
    data: Sequence[Path | str],
    out: Path,
    *,
    resumed: bool | None = False,
    init: Path | None = None,
    val: Sequence[Path | str] = (),
    cache: Path | None = None,
    device: str | None = None,
    workers: int = 1,
    short: bool = False,
) -> Path | None:
    """Train by a recipe, alone or as one of the processes that ``torchrun`` started.

    Args:
        recipe: What to train and how.
        data: Folders of pictures and tar shards, http(s) addresses of shards, or patterns of them.
        out: The run's folder.
        resumed: Go on from its last state; None: if there is one, else begin.
        init: Weights to start from, in any layout this package reads, an encoder alone included; all but their target
            must be as the recipe's.
        val: Held-out photos, in the same forms: the loss on them decides which state is the best.
        cache: Where shards from addresses are kept; None for the user's cache.
        device: ``cpu``, ``cuda``, ...; None for the GPU where there is one.
        workers: Decoding threads of each process.
        short: The recipe's length is not the one its warm-up was written for: a warm-up of more than a tenth is cut.

    Returns:
        The weight file, ``out/<name>.safetensors``; None in processes other than the first.

    Raises:
        DataError: There are no photos, too many are broken, or the loss is no longer finite.
        CheckpointError: There is nothing to resume, it belongs to another recipe, ``out`` holds another run, or the
            device cannot be used.
        RecipeError: The batch cannot be shared out, it or the photos do not fit the device's memory, the warm-up is
            longer than the run, or its ``compile`` finds no compiler.
    """
    weights = out / f"{recipe.name}.safetensors"
    begun = (out / files.LATEST).is_file()
    # torchrun starts everyone anew when one dies: then the same command goes on.
    resumed = begun if resumed is None else resumed
    resumed = resumed or (begun and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0)  # noqa: TID251
    if not resumed:
        _refuse_taken(out, begun, weights)
    with _world(device) as (world, where):
        _refuse_inside(out, [*data, *val])
        if recipe.compile:
            _refuse_no_compiler(where.type)
        photos = Photos.open(data, cache)
        validation = _validation(val, photos, recipe, cache, workers, world)
        recipe = recipe.in_steps(Sampler(photos, recipe).mean_length)
        if recipe.steps:  # of minutes it is known later
            recipe = shortened(recipe, world) if short else recipe
            recipe.check_warmup()
        given = beginning.read(init, recipe) if init and not resumed else None
        recipe = recipe.with_colours(resume.colours(out) if resumed else given.colours if given else {})
        files.make_folder(out)
        if resumed and world.first:
            resume.clear(out)
        watch = Watch(recipe, photos, out, where, resume.latest_step(out)) if world.first else None
        try:
            training = run(
                recipe, photos, out,
                device=where, workers=workers, resumed=resumed, init=given, validation=validation, world=world,
                begin=watch.begin if watch else None, report=watch.report if watch else None,
            )  # fmt: skip
        except torch.OutOfMemoryError as error:
            raise RecipeError(
                f"A batch of {recipe.batch_size} does not fit into the memory of {where}.",
                code="memory",
                hint="Double accumulate (the same training in less memory), or lower batch_size.",
                field="batch_size",
            ) from error
        finally:
            if watch:
                watch.close()
        result = sharded.whole(training.result)
    if not world.first:
        return None
    store.write(weights, result, name=recipe.name, card=training.card)
    _say_end(out, training)
    return weights


def _say_end(out: Path, training: Training) -> None:
    """What whoever trained may want to know beside the weights."""
    if training.held_out and math.isfinite(training.best):
        best = files.pointed(out / files.BEST)
        of = f"of {best} (named by {files.BEST})" if best else "before the first step: no state is better"
        tqdm.write(f"Lowest validation loss: {training.best:.4f}, {of}.", file=sys.stderr)
    if not training.finished:
        of = f" of {training.recipe.steps}" if training.recipe.steps else ""
        tqdm.write(f"Stopped after step {training.step}{of}; --resume goes on from there.", file=sys.stderr)


def _validation(
    val: Sequence[Path | str], photos: Photos, recipe: Recipe, cache: Path | None, workers: int, world: World
) -> Validation | None:
    """Held-out photos, said once, which must not be among those that are learned from."""
    if not val:
        return None
    held_out = Photos.open(val, cache)
    refuse_shared(photos, held_out, field="val")
    validation = Validation.load(held_out, recipe, workers)
    if world.first:
        tqdm.write("\n".join(validation.told), file=sys.stderr)
    return validation


def _refuse_taken(out: Path, begun: bool, weights: Path) -> None:
    """Refuse to begin where another run stands, or its weights."""
    if begun:
        raise CheckpointError(
            f"{out} holds the states of a run.",
            code="run-exists",
            hint="Add --resume to go on with it, or give another folder with --out.",
            field="out",
        )
    if weights.exists():
        raise CheckpointError(
            f"{weights} is there already.",
            code="run-exists",
            hint="Give another folder with --out, or another name with --name.",
            field="out",
        )


def _refuse_inside(out: Path, data: Sequence[Path | str]) -> None:
    """Refuse a run in a folder that it learns from: its own pictures would be photos of the next one."""
    for place in itertools.chain.from_iterable(expand(Path(of)) for of in data if not is_address(of)):
        if place.is_dir() and out.resolve().is_relative_to(place.resolve()):
            raise CheckpointError(
                f"{out} lies in {place}, whose pictures are learned from.",
                code="run-folder",
                hint="Give a folder elsewhere with --out: the run's own pictures would count as photos.",
                field="out",
            )


def _refuse_no_compiler(kind: str) -> None:
    """Refuse ``compile`` where the compiler is missing that torch calls for a CPU, or triton for a GPU's driver."""
    variable, usual = ("CXX", ["g++"]) if kind == "cpu" else ("CC", ["gcc", "clang"])
    if kind == "cpu" and sys.platform == "darwin":
        usual = ["clang++"]
    named = shlex.split(os.environ.get(variable, ""))[:1]  # noqa: TID251 (their way); options may follow the name
    if not any(map(shutil.which, named or usual)):
        raise RecipeError(
            f"The recipe is compiled (compile = true), but there is no {' or '.join(named or usual)} on this machine.",
            code="compiler",
            hint="Install g++ (on macOS: xcode-select --install), or put compile = false into a copy of the recipe.",
            field="compile",
        )


def _fresh_store(size: int) -> Any:
    """Where the processes of one machine tell each other their addresses; None: torch's own way.

    torchrun keeps one store through all restarts, in which a fast process finds the address of a dead one and
    dials it in vain. A prefix that counts the restarts keeps them apart. Several machines count differently:
    there torchrun itself must make a store for each restart (docs/train.md).
    """
    told = os.environ  # noqa: TID251
    if told.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or int(told["LOCAL_WORLD_SIZE"]) != size:
        return None
    address = told["MASTER_ADDR"], int(told["MASTER_PORT"])
    agent = dist.TCPStore(*address, is_master=False)  # type: ignore[attr-defined] # torch has no types for stores
    return dist.PrefixStore(f"restart-{told['TORCHELASTIC_RESTART_COUNT']}", agent)  # type: ignore[attr-defined]


@contextmanager
def _world(device: str | None) -> Iterator[tuple[World, torch.device]]:
    """The processes ``torchrun`` started, connected for as long as the block runs, and this one's device."""
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    told = {name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ}  # noqa: TID251 (torchrun's way)
    alone = len(told) < 3
    if alone and os.environ.get("WORLD_SIZE", "1") != "1":  # noqa: TID251
        raise RecipeError(
            f"Of the variables torchrun sets, only {', '.join(sorted(told))} is present.",
            code="world",
            hint="Start it with torchrun, which sets RANK, LOCAL_RANK and WORLD_SIZE.",
        )
    if kind == "cuda" and not alone:
        kind = f"cuda:{os.environ['LOCAL_RANK']}"  # noqa: TID251
    check_device(kind)
    where = torch.device(kind)
    if alone:
        yield ALONE, where
        return
    if where.type == "cuda":
        torch.cuda.set_device(where)
    backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])  # noqa: TID251
    dist.init_process_group(backend, store=_fresh_store(size), rank=rank, world_size=size)
    ended = False
    try:
        yield World(dist.get_rank(), dist.get_world_size()), where
        dist.barrier()
        ended = True
    finally:
        # NCCL waits here for its kernels and for the other processes, which wait for this one's gradients: one that
        # failed would never end, its error unseen. So it just ends, and its group with it.
        if ended or where.type != "cuda":
            dist.destroy_process_group()
