"""How fast a run goes: for its log, and to turn minutes into a number of steps."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from model.pretrain.recipe import Recipe
from model.pretrain.resume import Training
from model.pretrain.world import World

#: Steps after which a run limited by minutes knows its speed, and those before that do not count (compilation).
MEASURED, UNTYPICAL = 50, 10
#: Share of the time left that goes into steps; the rest is for pictures, states and the end.
STEPPING_SHARE = 0.97


class Pace:
    """Speed of this process.

    Args:
        first: Steps made before this process began.
        began: When it began, monotonic seconds.
    """

    def __init__(self, first: int, began: float) -> None:
        self._first = first
        self._began = began
        self._settled = began
        self._last = time.monotonic()

    def since_report(self) -> float:
        """Seconds since the last report was done."""
        return time.monotonic() - self._last

    def reported(self) -> None:
        """Remember that a report is done: drawing it is not the network's time."""
        self._last = time.monotonic()

    def plan(self, training: Training, device: torch.device, world: World) -> Recipe:
        """The recipe, with a number of steps instead of minutes once the speed is known."""
        made = training.step - self._first
        if made not in (UNTYPICAL, MEASURED) or training.recipe.minutes is None:
            return training.recipe
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.monotonic()
        if made == UNTYPICAL:
            self._settled = now
            return training.recipe
        step_s = (now - self._settled) / (MEASURED - UNTYPICAL)
        left_s = training.recipe.minutes * 60 - (now - self._began)
        more = max(round(STEPPING_SHARE * left_s / step_s), 1)
        return replace(training.recipe, minutes=None, steps=world.told_by_first(training.step + more))
