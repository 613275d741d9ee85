"""Muon for the matrices inside the blocks: in float32 or bfloat16, and stacked on a GPU.

torch's own Muon orthogonalises in bfloat16 one by one; a CPU without bfloat16 arithmetic needs minutes for one
step of it (docs/log.md), and a GPU waits for a thousand small launches. Same update otherwise; tests compare.
Source: Jordan et al. 2024 (Muon), Liu et al. 2025, arXiv 2502.16982 (scale matched to AdamW's).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

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
        dtype: Numbers these are computed in; ``bfloat16`` is enough wherever a device is fast in it.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps}
        )
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            # Stacking gains on a GPU and loses on a CPU.
            stacks = _of_equal_shape(moved) if moved and moved[0].is_cuda else [[one] for one in moved]
            for stack in stacks:
                self._move(stack, group)

    def _move(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Update parameters of one shape."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        # Nesterov: look one step ahead along the new momentum.
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        if len(ahead) == 1:
            updates = [orthogonalise(ahead[0].to(self._dtype), group["steps"]).to(ahead[0].dtype)]
        else:
            stack = orthogonalise(torch.stack(list(ahead)).to(self._dtype), group["steps"])
            updates = list(stack.to(parameters[0].dtype).unbind())
        rate = group["lr"] * 0.2 * math.sqrt(max(parameters[0].shape))
        values: list[Tensor] = [*parameters]
        torch._foreach_mul_(values, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(values, updates, alpha=-rate)


def _of_equal_shape(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters grouped by shape, so that each group is one stack."""
    groups: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.shape, []).append(parameter)
    return list(groups.values())


def orthogonalise(matrix: Tensor, steps: int) -> Tensor:
    """The nearest orthogonal matrix, roughly: ``[..., R, C]``, singular values to near 1; one or a stack."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    # beta * first + alpha * second @ third
    combine = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(steps):
        gram = x @ x.mT
        x = combine(x, combine(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x
