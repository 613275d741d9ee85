"""A model judged in one go: neighbours, probe, partial and full fine-tuning at several shares of labels, and scratch.

Every fine-tuning sees as many photos as the first one could within its minutes, so that all are equal in length;
the network from random weights does the same work as the fine-tuned one, and both are judged by their last step (the
paper's average of the weights is of no use in so few). What is done is not done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from model.evaluate import bounds, classifier, finetune, knn, linear, pages, plots, state
from model.evaluate.features import Encoder
from model.evaluate.task import Task

#: Last blocks that are tuned unless others are asked for, as far as an encoder has them.
_BLOCKS = (0.5, 1.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked.

    Attributes:
        shares: Of the labels, for every question.
        blocks: Last blocks, for partial fine-tuning; None for 0.5, 1 and 4, as far as the encoder has them.
        minutes: Of the first fine-tuning; all others see as many photos.
        base_lr: Of every fine-tuning, see ``finetune.SHORT``; None for that.
    """

    shares: tuple[float, ...] = (0.1, 1.0)
    blocks: tuple[float, ...] | None = None
    minutes: float = 10.0
    base_lr: float | None = None

    def __post_init__(self) -> None:
        """Reject numbers with which a figure would mean nothing."""
        bounds.check(minutes=self.minutes, base_lr=self.base_lr)


def evaluate(task: Task, questions: Questions) -> dict[str, Any]:
    """Ask everything; the report ``judged-NAME`` and one for each question go to ``task.out``.

    Args:
        task: The model and all labelled photos.
        questions: What to ask.

    Returns:
        JSON-ready: ``rows`` with question, share, percent and interval, and ``margins`` of fine-tuning over scratch.

    Raises:
        DataError: A share or a number of blocks cannot be; before anything is computed.
    """
    depth = task.encoder.config.depth
    blocks = questions.blocks
    if blocks is None:
        blocks = tuple(number for number in _BLOCKS if number <= depth)
    for number in blocks:
        classifier.check_blocks(number, depth)
    questions = replace(questions, blocks=blocks)
    parts = {share: task.train.share(share) for share in questions.shares}
    random = classifier.scratch(task.encoder.config, 0, f"{task.encoder.name}-shape")
    plan = _plan(task, questions)
    rows = []
    for share, part in parts.items():
        here = replace(task, train=part, label_share=share)
        rows += _frozen(here)
        rows += _tuned(here, random, questions, blocks, plan["samples"])
    margins = {
        f"{share:g}": round(_percent(rows, "finetune", share) - _percent(rows, "scratch", share), 2)
        for share in questions.shares
    }
    facts = {
        **task.facts(asdict(questions)),
        "question": "judge",
        "rows": rows,
        "margins": margins,
        "plan": plan,
    }
    pages.write(
        task.out,
        f"judged-{state.stem(task.encoder.name)}",
        f"Judged: {task.encoder.name}",
        facts,
        _blocks(task, rows, margins),
    )
    return facts


def _frozen(task: Task) -> list[dict[str, Any]]:
    """Neighbours and probe; both features, the class token's under the plain name."""
    rows = []
    for name, facts in (("knn", knn.answer(task)), ("linear", linear.answer(task, linear.Protocol()))):
        for pool, of in (("cls", name), ("mean", f"{name}, mean of patches")):
            rows.append(_line(of, task, facts[pool]))
    return rows


def _tuned(
    task: Task, random: Encoder, questions: Questions, blocks: Sequence[float], samples: int
) -> list[dict[str, Any]]:
    asked: list[tuple[str, str, float | None, Encoder]] = [("finetune", "finetune", None, task.encoder)]
    asked += [(f"partial {number:g}", "partial", number, task.encoder) for number in blocks]
    asked += [("scratch", "scratch", None, random)]
    rows = []
    for name, kind, last, encoder in asked:
        length = {"blocks": last, "epochs": samples / len(task.train)}
        facts = finetune.answer(replace(task, encoder=encoder), _settings(kind, questions, length, task))
        rows.append(
            _line(name, task, facts["answer"]) | {"epochs": facts["epochs"], "samples": facts["samples"]}
        )
    return rows


def _settings(kind: str, questions: Questions, changes: dict[str, Any], task: Task) -> finetune.Settings:
    rate = {} if questions.base_lr is None else {"base_lr": questions.base_lr}
    given = finetune.SHORT | rate | changes
    return replace(finetune.load_settings(kind, given, task.encoder.config.width), ema=None)


def _plan(task: Task, questions: Questions) -> dict[str, Any]:
    """``samples``: photos that every fine-tuning sees, of all models judged in the folder; by the first one's speed."""
    file, length = task.out / "judge-plan.json", {"minutes": questions.minutes}

    def plan() -> dict[str, Any]:
        epochs = finetune.epochs_in(task, _settings("finetune", questions, length, task))
        return {"samples": round(epochs * len(task.train))}

    return state.planned(file, state.digest(length), plan)


def _line(name: str, task: Task, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "question": name, "label_share": task.label_share, "train_photos": len(task.train),
        "percent": found["percent"], "interval_95": found["interval_95"],
    }  # fmt: skip


def _percent(rows: Sequence[dict[str, Any]], name: str, share: float) -> float:
    return float(
        next(row["percent"] for row in rows if row["question"] == name and row["label_share"] == share)
    )


def _blocks(task: Task, rows: list[dict[str, Any]], margins: dict[str, float]) -> list[pages.Block]:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        if ", mean" not in row["question"]:
            xs, ys = series.setdefault(row["question"], ([], []))
            xs.append(100 * row["label_share"])
            ys.append(row["percent"])
    return [
        f"{task.words()} The test photos were looked at once, after the last step of every run.",
        pages.Table(
            ("question", "labels", "photos", "epochs", "right %", "95 % from", "to"),
            [
                (
                    row["question"], f"{row['label_share']:.0%}", row["train_photos"], row.get("epochs"),
                    round(row["percent"], 2), *(round(bound, 2) for bound in row["interval_95"]),
                )
                for row in rows
            ],
        ),
        "Fine-tuned above scratch at the same length: "
        + ", ".join(f"{margin:+.1f} points with {float(share):.0%} of the labels" for share, margin in margins.items())
        + ".",
        pages.Figure(
            f"judged-{state.stem(task.encoder.name)}",
            plots.lines("Photos named correctly", "labels, percent", "percent", series, log_x=True),
            "All questions by share of labels",
        ),
    ]  # fmt: skip
