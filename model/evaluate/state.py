"""The state of a run that judges a model: one file, written beside the old one and renamed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.files import replacing
from model.errors import CheckpointError


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
        except (OSError, RuntimeError, EOFError, KeyError) as error:
            raise CheckpointError(
                f"{self.path} cannot be read: {str(error).splitlines()[0]}",
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
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()
