"""Running a table: one pre-training a row, a probe, a fine-tuning and a reconstruction on top.

Everything that is done lies in the folder and is not done again, so the same command goes on after a stop, and
tables in one folder share what is the same: with equal samples the row that a table does not change is run once.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from model.ablate.tables import Row, Table
from model.checkpoints.files import make_folder
from model.devices import find_device
from model.errors import CheckpointError, DataError, MaskError, RecipeError, UnmaskError
from model.evaluate import bounds, finetune, knn, linear, reconstruction, state
from model.evaluate.features import load_encoder
from model.evaluate.labelled import Labelled
from model.evaluate.task import Task
from model.loading import said_of
from model.pretrain.data import Photos, places, refuse_shared
from model.pretrain.launch import pretrain
from model.pretrain.recipe import Recipe, load_recipe
from model.pretrain.samples import Sampler
from model.reconstruct import load

_LOGGER = logging.getLogger(__name__)

#: Share of the budget that goes into pre-training, and into fine-tuning where a table asks for it.
_PRETRAINING, _FINETUNING = 0.6, 0.3
#: Steps by which the speed of a row is told; the first half of them does not count.
_TIMED = 8
#: Steps of the shortest run.
_FEWEST = 4
#: What stops a training that would only stop again: its row has no figures, and the others go on.
_LOST = ("loss", "collapse")
#: Never: a run of an ablation draws no pictures while it trains.
_NEVER = 10**9
#: Figures of the repainted photos that a row has.
_REPAINTED = ("nmse", "norm_pixel_unexplained", "ssim", "sharpness")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a table is run with.

    Attributes:
        recipe: Name or file of the recipe that rows change.
        size: Instead of the recipe's.
        data: Photos for pre-training.
        labelled: Labelled training photos.
        test: Labelled test photos.
        photos: Photos to repaint.
        out: Folder of runs, plans and reports; several tables may share it.
        budget_min: Minutes for the whole table. Or
        samples: photos seen by a row of length 1 in pre-training,
        tuned: and by every row in fine-tuning; 0 for no fine-tuning.
        seeds: Further seeds to run the unchanged recipe with, to see what they alone change.
        repeat: Seeds to run every row with, so that its figures are means; it goes with ``samples``.
        equal: What all rows have in common: ``samples``, as in the paper's tables, or ``minutes``.
        label_share: Share of the labels for probe and fine-tuning.
        limit: Photos to repaint at most.
        device: ``cpu``, ``cuda``, ...; None for the GPU where there is one.
        workers: Decoding threads.

    Raises:
        RecipeError: A number is out of its bounds, or does not go with the others.
    """

    recipe: str
    size: str | None
    data: tuple[Path | str, ...]
    labelled: tuple[Path | str, ...]
    test: tuple[Path | str, ...]
    photos: tuple[Path | str, ...]
    out: Path
    budget_min: float | None = None
    samples: int | None = None
    tuned: int = 0
    seeds: int = 0
    repeat: int = 1
    equal: Literal["samples", "minutes"] = "samples"
    label_share: float = 1.0
    limit: int | None = 200
    device: str | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        bounds.check(budget=self.budget_min, **vars(self))
        load_recipe(self.recipe, size=self.size)  # or no row could be run
        if self.samples is not None and self.equal == "minutes":
            raise _unfit("equal", "is 'minutes', but rows of --samples have equal samples")
        if self.samples is None and self.tuned:
            raise _unfit("tuned", f"is {self.tuned}, but --budget decides how long rows are tuned")
        if self.samples is None and self.repeat > 1:
            raise _unfit("repeat", f"is {self.repeat}, but --budget leaves no time for further seeds")
        if not self.workers:
            raise _unfit("workers", "is 0, but decoding needs at least one thread")

    def folder(self, table: Table) -> Path:
        """Of a table's plan."""
        return self.out / table.name

    @property
    def seen(self) -> int | None:
        """Photos that a row of length 1 truly sees: whole batches of the recipe, and at least four of them."""
        if self.samples is None:
            return None
        batch_size = load_recipe(self.recipe).batch_size
        return _steps_of(self.samples, batch_size) * batch_size


def _unfit(field: str, why: str) -> RecipeError:
    return RecipeError(f"{field} {why}.", code="settings", hint=f"Leave out --{field}.", field=field)


def run(table: Table, setting: Setting) -> list[dict[str, Any]]:
    """Run every row of a table.

    Args:
        table: Which.
        setting: With what.

    Returns:
        A row each: ``name``, ``figures`` (by the names of ``tables.FIGURES``), ``intervals`` of those that have one
        (None for the bounds that one photo cannot give), ``each_photo`` of those that are means over photos,
        ``steps`` and ``samples``, and ``runs``, the pre-trainings, which rows may share; where rows are repeated also
        ``each_run`` and ``deviations``, but no intervals; or ``name`` and ``error`` where a row cannot be run.

    Raises:
        DataError: Photos or labels are missing, or a test photo is also a training one; before anything is made. A
            training run was stopped, and the same call goes on; or the folder holds answers about other photos or
            settings.
        CheckpointError: The device cannot be used, or ``out`` not written to.
    """
    find_device(setting.device)  # before anything is made
    _check_photos(setting)
    make_folder(setting.out)
    steps, failed = _steps(table, setting)
    return [
        {"name": row.name, "error": failed[row.name]}
        if row.name in failed
        else _mean([_row(seeded, steps[row.name], table, setting) for seeded in _seeded(row, setting)])
        for row in table.rows
    ]


def _check_photos(setting: Setting) -> None:
    """Refuse what a row would meet only after its pre-training."""
    Photos.open(setting.data)
    Photos.open(setting.photos)
    train = Labelled.open(setting.labelled)
    refuse_shared(train.photos, Labelled.open(setting.test, train.classes).photos)


def _seeded(row: Row, setting: Setting) -> list[Row]:
    """A row with its own seed, and with those after it."""
    first = row.recipe.get("seed", load_recipe(setting.recipe).seed)
    return [replace(row, recipe=row.recipe | {"seed": first + n}) for n in range(setting.repeat)]


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of those that only their seeds set apart."""
    first = next((row for row in rows if "error" in row), rows[0])
    if len(rows) == 1 or "error" in first:
        return first
    figures = [row["figures"] for row in rows]
    values = {
        name: [of[name] for of in figures] for name in first["figures"] if all(name in of for of in figures)
    }
    return {
        "name": first["name"],
        "runs": [run for row in rows for run in row["runs"]],
        "steps": first["steps"],
        "samples": first["samples"],
        "figures": {name: round(statistics.fmean(of), 5) for name, of in values.items()},
        "deviations": {name: round(statistics.stdev(of), 5) for name, of in values.items()},
        "each_run": figures,
        "each_photo": {
            name: np.mean([row["each_photo"][name] for row in rows], axis=0).tolist()
            for name in first["each_photo"]
            if name in values
        },
    }


def _row(row: Row, steps: int, table: Table, setting: Setting) -> dict[str, Any]:
    try:
        recipe = _recipe(row, setting, steps)
        if row.blocks is not None and row.blocks > recipe.config.depth:
            return {"name": row.name, "error": f"the encoder has {recipe.config.depth} blocks."}
        weights = _trained(recipe, setting)
    except (RecipeError, CheckpointError, DataError) as error:
        return _failed(row, error)
    try:
        judged = list(_accuracies(weights, row, table, setting))
    except DataError as error:
        return _failed(row, error)
    figures: dict[str, float] = _of_training(weights.parent)
    intervals: dict[str, list[float | None]] = {}
    each: dict[str, list[float]] = {}
    for name, accuracy in judged:
        figures[name] = accuracy["percent"]
        intervals[name] = accuracy["interval_95"]
        each[name] = [100 * right for right in accuracy["each_photo"]]
    if repainted := _repainted(weights, recipe, setting):
        for name in _REPAINTED:
            score = repainted["scores"]["model"][name]
            if score["mean"] is not None:
                figures[name], intervals[name] = score["mean"], [score["low"], score["high"]]
        each |= repainted["each_photo"]
    return {
        "name": row.name,
        "runs": [weights.parent.name],
        "steps": recipe.steps,
        "samples": recipe.steps * recipe.batch_size,
        "figures": figures,
        "intervals": intervals,
        "each_photo": each,
    }


def _failed(row: Row, error: UnmaskError) -> dict[str, Any]:
    """A row without figures; wrong photos are wrong for all rows, and stop them."""
    if isinstance(error, DataError) and error.code not in _LOST:
        raise error
    return {"name": row.name, "error": f"{error} {error.hint}"}


def _accuracies(
    weights: Path, row: Row, table: Table, setting: Setting
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Neighbours, probe and fine-tuning, what the table asks for; each from its file where it was asked before."""
    train = Labelled.open(setting.labelled)
    test = Labelled.open(setting.test, train.classes)
    task = Task(
        load_encoder(weights), train.share(setting.label_share), test, weights.parent / "judged",
        find_device(setting.device), setting.workers, setting.label_share,
    )  # fmt: skip
    yield "knn", knn.answer(task)["cls"]
    if "linear" in table.measure:
        yield "linear", linear.answer(task, linear.Protocol())["cls"]
    if "finetune" in table.measure and (setting.tuned or setting.samples is None):
        yield "finetune", _finetuned(row, replace(task, workers=0), table, setting)


def _recipe(row: Row, setting: Setting, steps: int) -> Recipe:
    changes = {**row.recipe, "steps": steps, "size": setting.size, "picture_every": _NEVER}
    photos = Photos.open(setting.data)
    recipe = load_recipe(setting.recipe, **changes)
    recipe = recipe.in_steps(Sampler(photos, recipe).mean_length)
    # Runs of a few hundred steps cannot give a hundred to warming up.
    short = recipe.with_short_warmup()
    if short != recipe and steps > _TIMED:
        told = row.name, short.warmup_steps, steps, recipe.warmup_steps
        _LOGGER.warning("%s: warm-up cut to %d of %d steps, from %d.", *told)
    return replace(short, name="ablation", log_every=max(min(recipe.log_every, steps // 4), 1))


def _trained(recipe: Recipe, setting: Setting) -> Path:
    """The weight file of a recipe and its photos, trained if it is not there; rows of one recipe share it."""
    said = recipe.to_dict() | {"size": recipe.config.to_dict()}
    said = {key: value for key, value in said.items() if key not in said["size"]}
    key = state.digest(said, places(Photos.open(setting.data).entries))[:12]
    folder = setting.out / "runs" / key
    weights = folder / f"{recipe.name}.safetensors"
    if not weights.is_file() or _steps_made(weights) < recipe.steps:
        pretrain(recipe, setting.data, folder, resumed=None, device=setting.device, workers=setting.workers)
        if _steps_made(weights) < recipe.steps:
            raise DataError(
                f"The run in {folder} was stopped after {_steps_made(weights)} of {recipe.steps} steps.",
                code="stopped",
                hint="Run the same command again: it goes on from there.",
            )
    return weights


def _steps_made(weights: Path) -> int:
    return int(said_of(weights)["steps"])


def _of_training(folder: Path) -> dict[str, float]:
    """Loss of the last tenth of a run and its median speed, from its log."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = lines[-max(len(lines) // 10, 1) :]
    speeds = sorted(line["images_per_second"] for line in lines)
    loss = sum(line["loss"] for line in last) / len(last)
    return {"loss": round(loss, 5), "images_per_second": speeds[len(speeds) // 2]}


def _finetuned(row: Row, task: Task, table: Table, setting: Setting) -> dict[str, Any]:
    """Accuracy after fine-tuning, equally long for every row."""
    kind = "finetune" if row.blocks is None else "partial"
    epochs = _epochs(kind, task, table, setting)
    settings = finetune.load_settings(kind, {**finetune.SHORT, "blocks": row.blocks, "epochs": epochs})
    if setting.samples is None:
        # Each table tunes for a length of its own, and may share the weights with another table's row.
        task = replace(task, out=task.out / table.name)
    answer: dict[str, Any] = finetune.answer(task, settings)["answer"]
    return answer


def _epochs(kind: str, task: Task, table: Table, setting: Setting) -> float:
    """Of fine-tuning: as many as were asked for, or what the most expensive row can in its share of the budget."""
    if setting.samples is not None:
        return setting.tuned / len(task.train)
    file = setting.folder(table) / "finetune.json"
    asked = state.digest(kind, setting.budget_min, len(task.train))

    def plan() -> dict[str, Any]:
        assert setting.budget_min is not None
        blocks = [
            of.blocks for of in table.rows if of.blocks is not None and of.blocks <= task.encoder.config.depth
        ]
        minutes = setting.budget_min * _FINETUNING / len(table.rows)
        dearest = {**finetune.SHORT, "blocks": max(blocks, default=None), "minutes": minutes}
        return {"epochs": finetune.epochs_in(task, finetune.load_settings(kind, dearest))}

    return float(state.planned(file, asked, plan)["epochs"])


def _repainted(weights: Path, recipe: Recipe, setting: Setting) -> dict[str, Any]:
    """Scores over hidden pixels, masked as in training; nothing where the target is not a picture."""
    strategy = max(recipe.masking, key=lambda name: recipe.masking[name])
    ratio = f"{sum(recipe.ratio_range) / 2:g}"
    photos = Photos.open(setting.photos)
    try:
        reconstructor = load(weights, setting.device)
        facts = reconstruction.answer(
            reconstructor, photos, weights.parent / "judged",
            strategies=[strategy], ratios=[ratio], limit=setting.limit,
        )  # fmt: skip
    except (CheckpointError, MaskError):
        return {}
    return dict(facts["settings"][0])


# --- how many steps ----------------------------------------------------------------------------------------


def _steps(table: Table, setting: Setting) -> tuple[dict[str, int], dict[str, str]]:
    """Steps of each row that can be trained, and why others cannot; by the rows' measured speeds, decided once."""
    if setting.samples is not None:
        given = load_recipe(setting.recipe).batch_size
        batches = {row.name: row.recipe.get("batch_size", given) for row in table.rows}
        return {
            row.name: _steps_of(setting.samples * row.length, batches[row.name]) for row in table.rows
        }, {}
    file = setting.folder(table) / "plan.json"
    recipe = load_recipe(setting.recipe).to_dict()
    asked = state.digest(recipe, setting.size, setting.budget_min, setting.equal)
    plan = state.planned(file, asked, lambda: _planned(table, setting))
    if not plan["steps"].keys() | plan.get("failed", {}).keys() >= {row.name for row in table.rows}:
        file.unlink()  # it is about fewer rows
        plan = state.planned(file, asked, lambda: _planned(table, setting))
    return plan["steps"], plan.get("failed", {})


def _steps_of(samples: float, batch_size: int) -> int:
    return max(round(samples / batch_size), _FEWEST)


def _planned(table: Table, setting: Setting) -> dict[str, Any]:
    assert setting.budget_min is not None
    seconds: dict[str, float] = {}
    failed: dict[str, str] = {}
    for row in table.rows:
        try:
            seconds[row.name] = _seconds_a_step(row, setting)
        except UnmaskError as error:
            failed[row.name] = f"{error} {error.hint}"
    share = _PRETRAINING if "finetune" in table.measure else _PRETRAINING + _FINETUNING
    # Rows that differ only in what is tuned on top share one run.
    distinct = {
        json.dumps([row.recipe, row.length], sort_keys=True): row for row in table.rows if row.name in seconds
    }
    left_s = setting.budget_min * 60 * share
    steps: dict[str, int] = {}
    for row in table.rows:
        if row.name not in seconds:
            continue
        if setting.equal == "minutes":
            own = left_s / len(distinct) / seconds[row.name]
        else:
            own = row.length * left_s / sum(of.length * seconds[of.name] for of in distinct.values())
        steps[row.name] = max(round(own), _FEWEST)
    return {
        "steps": steps, "failed": failed, "seconds_a_step": seconds,
        "budget_min": setting.budget_min, "equal": setting.equal,
    }  # fmt: skip


def _seconds_a_step(row: Row, setting: Setting) -> float:
    """How long a step of a row takes here, by a few of them in a folder that is then removed."""
    recipe = replace(_recipe(row, setting, _TIMED), log_every=_TIMED // 2, checkpoint_every=_NEVER)
    with TemporaryDirectory(prefix="speed-", dir=setting.out) as made:  # where there is room for a run
        folder = Path(made)
        pretrain(recipe, setting.data, folder, device=setting.device, workers=setting.workers)
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return recipe.batch_size / float(last["images_per_second"])
