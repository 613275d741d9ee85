"""The processes that train together, and the few things they tell each other beside gradients.

One process is a world of size 1, in which every question is answered without asking anyone. Values travel by
CPU tensors (gloo), also where gradients travel by NCCL. So only ``means``, whose values the GPU has yet to compute,
makes the host wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from model.errors import RecipeError


@dataclass(frozen=True)
class World:
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes states, logs and weights."""
        return self.rank == 0

    def part(self, batch_size: int, accumulate: int) -> slice:
        """This process's share of a batch: neighbours in the one sequence of samples.

        Raises:
            RecipeError: The batch cannot be shared out evenly.
        """
        if batch_size % (self.size * accumulate):
            raise RecipeError(
                f"batch_size {batch_size} cannot be shared evenly among {self.size} processes "
                f"that accumulate {accumulate} times.",
                code="recipe",
                hint=f"Take a multiple of {self.size * accumulate}.",
                field="batch_size",
            )
        share = batch_size // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def means(self, values: list[Tensor]) -> list[Tensor]:
        """Mean over everyone of each of some scalars; among several processes the host waits for its device here."""
        if self.size == 1 or not values:
            return values
        together = torch.stack(values)
        totals = together.cpu().double()  # not every device has float64
        dist.all_reduce(totals)
        return list((totals / self.size).to(together).unbind())

    def any(self, flag: bool) -> bool:
        """Whether it is true for anyone."""
        return self._sum(float(flag)) > 0 if self.size > 1 else flag

    def told_by_first(self, value: int) -> int:
        """The first process's value."""
        return round(self._sum(value if self.first else 0)) if self.size > 1 else value

    def union(self, items: set[int]) -> set[int]:
        """Everyone's items together."""
        if self.size == 1:
            return items
        gathered: list[set[int]] = [set() for _ in range(self.size)]
        dist.all_gather_object(gathered, items)
        return set().union(*gathered)

    def _sum(self, value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total)


#: One process, alone.
ALONE = World()
