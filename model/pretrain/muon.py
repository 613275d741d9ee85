"""Muon for the matrices inside the blocks, in float32.

torch's own Muon orthogonalises in bfloat16; a CPU without bfloat16 arithmetic needs minutes for one step of
it (docs/log.md). Same update otherwise; a test compares the two.
Source: Jordan et al. 2024 (Muon), Liu et al. 2025, arXiv 2502.16982 (scale matched to AdamW's).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Quintic Newton-Schulz coefficients of the Muon paper: steepest at zero, good to about 0.3 after five steps.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every singular value of an update is about equal.

    Args:
        params: Two-dimensional parameters only.
        lr: Learning rate on AdamW's scale (updates are matched to its root mean square of about 0.2).
        momentum: Nesterov momentum.
        weight_decay: Decoupled, times ``lr``.
        steps: Newton-Schulz iterations.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                # Nesterov: look one step ahead along the new momentum.
                ahead = parameter.grad.lerp(state["momentum"], group["momentum"])
                update = orthogonalise(ahead, group["steps"])
                rate = group["lr"] * 0.2 * math.sqrt(max(parameter.shape))
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonalise(matrix: Tensor, steps: int) -> Tensor:
    """The nearest orthogonal matrix, roughly: ``[R, C] -> [R, C]`` with singular values near 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x
