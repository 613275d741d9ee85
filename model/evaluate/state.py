"""What is kept of a question to a model: its state while it runs, and its answer. Neither is taken for another's.

A state is one file, written beside the old one and renamed. An answer is a report's JSON; ``asked`` in it is a digest
of all that decided it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.containers import DAMAGED
from model.checkpoints.files import make_folder, replacing, write_json
from model.errors import CheckpointError, DataError, first_line

#: Bytes of a model's name that the names of files take.
_LONGEST = 100


def digest(*facts: Any) -> str:
    """Plain values as 24 characters: other values, other characters."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def stem(name: str) -> str:
    """A model's name as part of the names of files.

    The name comes out of a weight file, which may be a stranger's: it leads into no other folder, hides nothing, can
    be written, and leaves room for what stands beside it in 255 bytes.
    """
    plain = re.sub(r"^\.+|[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]", "-", name)
    return plain.encode()[:_LONGEST].decode(errors="ignore") or "model"


def of_seed(seed: int) -> str:
    """What a seed other than 0 adds to an answer's name: several of them lie beside each other."""
    return f"-seed-{seed}" if seed else ""


def answered(file: Path, asked: str, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer that lies in a file, or a new one.

    Args:
        file: A report's JSON.
        asked: Digest of what decides the answer.
        ask: Gives a new answer, and leaves it in the file.

    Raises:
        DataError: The file holds the answer to another question.
        CheckpointError: Its folder cannot be made or written to.
    """
    if not file.is_file():
        make_folder(file.parent)
        return ask()
    try:
        facts: dict[str, Any] = json.loads(file.read_text())
        other = facts.get("asked") != asked
    except (OSError, ValueError, AttributeError):
        other = True
    if other:
        raise DataError(
            f"{file} is about other weights, photos or settings, or damaged.",
            code="judged",
            hint="Give another folder with --out, or remove that file.",
            field="out",
        )
    return facts


def planned(file: Path, asked: str, plan: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """As ``answered``, for a plan that is nothing but its facts: written here."""

    def ask() -> dict[str, Any]:
        facts = {"asked": asked, **plan()}
        write_json(file, facts)
        return facts

    return answered(file, asked, ask)


@dataclass(frozen=True)
class Keeper:
    """Keeps the state of one run.

    Attributes:
        path: The file.
        facts: What decides the run, JSON-ready: another run's state is refused.
    """

    path: Path
    facts: dict[str, Any]

    def save(self, content: dict[str, Any]) -> None:
        """Write tensors and plain values."""
        with replacing(self.path) as part:
            torch.save({"run": self._run(), "content": content}, part)

    def load(self) -> dict[str, Any] | None:
        """What was saved last, or None.

        Raises:
            CheckpointError: It is damaged, or of another run.
        """
        if not self.path.is_file():
            return None
        try:
            # Our own file, but read as a stranger's: tensors and plain values only.
            read = torch.load(self.path, map_location="cpu", weights_only=True)  # noqa: TID251
            run, content = read["run"], read["content"]
        except DAMAGED as error:
            raise CheckpointError(
                f"{self.path} cannot be read: {first_line(error)}",
                code="resume-damaged",
                hint="Delete it to begin anew.",
            ) from error
        if run != self._run():
            raise CheckpointError(
                f"{self.path} is the state of a run with other weights, photos or settings.",
                code="resume-recipe",
                hint="Delete it to begin anew, or give another folder with --out.",
                field="out",
            )
        return dict(content)

    def forget(self) -> None:
        """Remove the file: the run is done."""
        self.path.unlink(missing_ok=True)

    def _run(self) -> str:
        return digest(self.facts)


def refuse_not_finite(loss: float, when: str, rate: str = "lr") -> None:
    """Stop a training that has come apart: its figures would mean nothing.

    Args:
        loss: Of the training.
        when: In words.
        rate: The setting that is its learning rate.

    Raises:
        DataError: The loss is infinite or not a number.
    """
    if not math.isfinite(loss):
        option = rate.replace("_", "-")
        raise DataError(f"The loss is {loss} {when}.", code="loss", hint=f"Lower --{option}.", field=rate)
