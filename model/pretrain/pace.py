"""How fast a run goes: for its log, and to turn minutes into a number of steps."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace

import torch
from tqdm import tqdm

from model.pretrain.recipe import Recipe
from model.pretrain.resume import Training
from model.pretrain.world import World

#: Steps after which a run limited by minutes knows its speed, ...
MEASURED = 50
#: ... or the share of its minutes for which it has made steps: whichever comes first.
MEASURING_SHARE = 0.1
#: What does not count: the first step (compilation), and where there are more the first ten.
UNTYPICAL = (1, 10)
#: Share of the time left that goes into steps; the rest is for validation, pictures, states and the end.
STEPPING_SHARE = 0.97


class Pace:
    """Speed of this process.

    Args:
        first: Steps made before this process began.
        began: When it began, monotonic seconds.
        minutes: How long it may take in all; None for any time.
    """

    def __init__(self, first: int, began: float, minutes: float | None) -> None:
        self._first = first
        self._length_s = math.inf if minutes is None else 60 * minutes
        self._end = began + self._length_s
        self._settled = (0, began)  # steps and time from which on speed is measured
        self._stepping = math.inf  # when the first step was made
        self._told = (first, time.monotonic())  # steps and time of the last report

    @property
    def over(self) -> bool:
        """Whether the run's minutes are, whatever was planned."""
        return time.monotonic() >= self._end

    def since_report(self, step: int) -> float:
        """Steps a second since the last report was done, or since this process began."""
        before, since = self._told
        return (step - before) / (time.monotonic() - since)

    def reported(self, step: int) -> None:
        """Remember that a report is done: drawing it is not the network's time."""
        self._told = (step, time.monotonic())

    def plan(self, training: Training, device: torch.device, world: World) -> Recipe:
        """The recipe, with a number of steps instead of minutes once the speed is known."""
        made = training.step - self._first
        enough = time.monotonic() - self._stepping >= MEASURING_SHARE * self._length_s
        # The first process decides: clocks of others may differ by a step.
        known = made > 1 and bool(world.told_by_first(made >= MEASURED or enough))
        if not known and made not in UNTYPICAL:
            return training.recipe
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.monotonic()
        if not known:
            self._settled = made, now
            self._stepping = min(self._stepping, now)
            return training.recipe
        before, since = self._settled
        step_s = (now - since) / (made - before)
        more = max(round(STEPPING_SHARE * (self._end - now) / step_s), 1)
        planned = replace(training.recipe, minutes=None, steps=world.told_by_first(training.step + more))
        return shortened(planned, world)


def shortened(recipe: Recipe, world: World) -> Recipe:
    """``with_short_warmup`` of a run whose steps are not those its warm-up was written for, said where it changes."""
    short = recipe.with_short_warmup()
    if world.first and short != recipe:
        tqdm.write(
            f"Warm-up cut to {short.warmup_steps} of {recipe.steps} steps, from {recipe.warmup_steps}: a shortened run "
            "warms up for at most a tenth of its steps. To keep the warm-up, put the length in the recipe.",
            file=sys.stderr,
        )
    return short
