"""The adversarial stage: a discriminator that tells repainted pictures from photos, so that blur stops paying off.

    pred -> picture -> pasted (visible patches put back, so that seams count)
    generator:      pixel loss + adaptive weight * (hinge + feature matching [+ perceptual])
    discriminator:  hinge loss on photos and the same pasted pictures, after the generator's backward pass

It hangs onto the ordinary loop: same launch, data, masks and states. Squared error alone paints the mean of all
that could stand in a hidden patch; the authors' sharpest pictures come from "an extra GAN loss" (their
visualisation weights) whose code was never published, so this is our own.

Source: hinge loss and spectral norm, arXiv 1802.05957; patch discriminator at several scales and feature
matching, arXiv 1711.11585; adaptive weight, arXiv 2012.09841 eq. 7.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, l1_loss, leaky_relu, mse_loss, relu
from torch.nn.utils.parametrizations import spectral_norm

from model.errors import DataError
from model.masking import noise
from model.network import MAE
from model.pretrain.recipe import Adversarial
from model.pretrain.world import World

#: Share of the old value in a running mean of what is watched for collapse.
_MEMORY = 0.98
#: What is noted of a step: losses of both sides and their weight, and the spread of what is painted.
_NOTED = ("pixel", "discriminator", "hinge", "matching", "weight", "spread")
#: The discriminator is said to have won below this hinge loss (1 is a draw) ...
_WON = 0.02
#: ... and the generator to paint one colour below this share of the photos' spread inside hidden patches.
_FLAT = 0.05
#: The adaptive weight is never more: early discriminators hardly have a gradient.
_MOST = 1e3


class PatchDiscriminator(nn.Module):
    """Judges overlapping windows of a picture, not the whole: what is sharp is a local question.

    Group norms make it learn a third faster here than spectral norm alone (docs/log.md, 2026-11-26).

    Args:
        channels: Of the first layer, a multiple of 4; doubled with every further one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = (3, channels, 2 * channels, 4 * channels)
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1))
            for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for width in widths[2:])
        self.judge = spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of every layer of ``image [B, 3, H, W]``; the last is the judgement, high for photos."""
        features = []
        for layer, norm in zip(self.layers, (nn.Identity(), *self.norms), strict=True):
            image = leaky_relu(norm(layer(image)), 0.2)
            features.append(image)
        return [*features, self.judge(image)]


class Discriminator(nn.Module):
    """One ``PatchDiscriminator`` a scale, each seeing the picture at half the size of the one before."""

    def __init__(self, channels: int, scales: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(channels) for _ in range(scales))

    def forward(self, image: Tensor) -> list[list[Tensor]]:
        """Features by scale, then by layer."""
        seen = []
        for number, judge in enumerate(self.scales):
            image = avg_pool2d(image, 2) if number else image
            seen.append(judge(image))
        return seen


class Adversary:
    """Discriminator, its optimiser, and what the generator is told by it.

    Args:
        settings: The recipe's ``[adversarial]`` table.
        network: The generator as it stands at the start; frozen copies for the perceptual term come from it.
        seed: Of the discriminator's fresh weights, and of what it looks at.
    """

    def __init__(self, settings: Adversarial, network: MAE, seed: int) -> None:
        self.settings = settings
        device = network.pos_embed.device
        with torch.random.fork_rng(devices=[]):
            # The CPU's alone, which is kept: torch.manual_seed would seed every GPU's generator as well.
            torch.default_generator.manual_seed(seed)
            self.network = Discriminator(settings.channels, settings.scales).to(device).train()
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=settings.lr, betas=(0.5, 0.9), weight_decay=0.0
        )
        self._seed = seed
        self._judge: MAE | None = None
        if settings.perceptual_weight > 0:
            self._judge = copy.deepcopy(network).eval().requires_grad_(False)
        self._judgements: list[tuple[Tensor, Tensor]] = []
        self.step_made = 0
        #: Running means for the log and for the end of the stage; 1 at the start: neither side has won.
        self.seen = {"discriminator": 1.0, "spread": 1.0}
        #: What was noted in the parts of this step, and in each step since the last report.
        self._parts: dict[str, list[Tensor]] = {name: [] for name in _NOTED}
        self._sums: dict[str, list[Tensor]] = {name: [] for name in _NOTED}

    @property
    def active(self) -> bool:
        """Whether the generator listens already; at first only the discriminator learns."""
        return self.step_made >= self.settings.warmup_steps

    def terms(self, network: MAE, image: Tensor, pred: Tensor, hidden: Tensor, pixel_loss: Tensor) -> Tensor:
        """What is added to the generator's loss.

        Args:
            network: The generator.
            image: ``[B, 3, H, W]`` ImageNet-normalised.
            pred: ``[B, L, P*P*3]`` with its graph.
            hidden: ``[B, L] bool``.
            pixel_loss: The first stage's loss of the same prediction, with its graph.

        Returns:
            Scalar.
        """
        leaf = pred.detach().float().requires_grad_()
        picture = network.unpatchify(leaf)
        side = network.config.patch_size
        rows, columns = network.config.grid
        where = hidden.view(-1, 1, rows, columns).repeat_interleave(side, 2).repeat_interleave(side, 3)
        pasted = torch.where(where, picture, image)
        painted, true = self.network(self._window(pasted)), self.network(self._window(image))
        # One pass serves both sides: the discriminator takes no step before ``judge`` has used it.
        self._judgements = [(real[-1], fake[-1]) for real, fake in zip(true, painted, strict=True)]
        with torch.no_grad():
            self._note(pixel=pixel_loss)
            self._note(spread=_spread(pred.detach(), hidden) / _spread(network.patchify(image), hidden))
        if not self.active:
            return pixel_loss.new_zeros(())
        hinge = -torch.stack([scale[-1].mean() for scale in painted]).mean()
        matching = _matching(painted, true)
        extra = hinge + self.settings.matching_weight * matching
        if self._judge is not None:
            extra = extra + self.settings.perceptual_weight * self._perceptual(self._judge, pasted, image)
        # Back through the discriminator once; what is left is linear in the prediction and has the same gradient.
        pull = torch.autograd.grad(extra, leaf, retain_graph=True)[0]
        linear = (pred.float() * pull).sum()
        weight = _balance(pixel_loss, linear, network.decoder_pred.weight)
        self._note(hinge=hinge, matching=matching, weight=weight)
        return self.settings.weight * weight * (linear - linear.detach() + extra.detach())

    def _window(self, pictures: Tensor) -> Tensor:
        """What is judged in this step: the same part of all pictures, drawn from seed and step."""
        side = self.settings.window
        rooms = [length - side for length in pictures.shape[-2:]]
        if side == 0 or min(rooms) <= 0:
            return pictures
        key = np.array([self._seed << 32 | self.step_made], np.uint64)
        top, left = (int(draw) % (room + 1) for draw, room in zip(noise(key, 2)[0], rooms, strict=True))
        return pictures[..., top : top + side, left : left + side]

    @staticmethod
    def _perceptual(judge: MAE, pasted: Tensor, image: Tensor) -> Tensor:
        """Distance in the features of the encoder the stage began with, patch for patch."""
        with torch.no_grad():
            wanted = judge.encode(image)
        return mse_loss(judge.encode(pasted), wanted)

    def judge(self, share: float) -> None:
        """Add the discriminator's gradients for the pictures of the last ``terms``, times ``share``."""
        losses = [(relu(1 - real).mean() + relu(1 + fake).mean()) / 2 for real, fake in self._judgements]
        self._judgements = []
        loss = torch.stack(losses).mean()
        self._note(discriminator=loss)
        (loss * share).backward()  # type: ignore[no-untyped-call]

    def step(self, scale: float) -> None:
        """The discriminator's optimiser step at ``scale`` of its top rate, gradients shared between processes."""
        if dist.is_initialized() and dist.get_world_size() > 1:
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= dist.get_world_size()
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.lr * scale
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step_made += 1
        for name, values in self._parts.items():
            if values:
                self._sums[name].append(torch.stack(values).mean())
            values.clear()

    def share(self, world: World) -> None:
        """Put everyone's means in place of what this process noted since the last report.

        All then judge alike in ``report``: none stops while others wait for it.
        """
        means = iter(world.means([value for values in self._sums.values() for value in values]))
        self._sums = {name: [next(means) for _ in values] for name, values in self._sums.items()}

    def report(self) -> dict[str, float]:
        """Running means since the start, brought up to date; the host waits for the device here.

        Raises:
            DataError: One side has won for good (code ``collapse``).
        """
        for name, values in self._sums.items():
            for value in torch.stack(values).tolist() if values else ():
                self.seen[name] = _MEMORY * self.seen.get(name, value) + (1 - _MEMORY) * value
            values.clear()
        if self.active and self.seen["discriminator"] < _WON:
            raise _collapse(
                f"the discriminator tells every picture apart (hinge loss {self.seen['discriminator']:.3f})",
                "Lower lr in the recipe's [adversarial] table, or raise matching_weight.",
            )
        if self.seen["spread"] < _FLAT:
            raise _collapse(
                f"the model paints one colour ({100 * self.seen['spread']:.1f} % of the photos' spread)",
                "Lower weight in the recipe's [adversarial] table.",
            )
        return {name: round(value, 4) for name, value in self.seen.items()}

    def _note(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._parts[name].append(value.detach().float())

    def state_dict(self) -> dict[str, Any]:
        """What the next step needs to be the same, once all is reported."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "judge": self._judge.state_dict() if self._judge else None,
            "step": self.step_made,
            "seen": dict(self.seen),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self._judge is not None:
            self._judge.load_state_dict(state["judge"])
        self.step_made = state["step"]
        self.seen = dict(state["seen"])


def _spread(patches: Tensor, hidden: Tensor) -> Tensor:
    """Mean deviation of values inside the hidden patches of ``[B, L, V]``."""
    # Weighed, not picked: how many are picked a GPU would have to tell first, and the host would wait.
    return (patches.float().std(dim=-1) * hidden).sum() / hidden.sum()


def _matching(painted: list[list[Tensor]], true: list[list[Tensor]]) -> Tensor:
    """Mean distance of the discriminator's features, its judgement left out."""
    pairs = [
        l1_loss(ours, theirs.detach())
        for scale, wanted in zip(painted, true, strict=True)
        for ours, theirs in zip(scale[:-1], wanted[:-1], strict=True)
    ]
    return torch.stack(pairs).mean()


def _balance(pixel_loss: Tensor, extra: Tensor, weight: Tensor) -> Tensor:
    """Ratio of the two losses' gradients at the generator's last layer: both then pull equally hard."""
    pixel = torch.autograd.grad(pixel_loss, weight, retain_graph=True)[0].norm()
    other = torch.autograd.grad(extra, weight, retain_graph=True)[0].norm()
    return (pixel / (other + 1e-4)).clamp(0, _MOST).detach()


def _collapse(what: str, hint: str) -> DataError:
    return DataError(
        f"The adversarial stage has collapsed: {what}. The state before it is kept.",
        code="collapse",
        hint=hint,
    )
