"""Weights a run begins with instead of random ones: a whole MAE, or an encoder to which a fresh decoder comes.

Knows files and what a recipe's network must have in common with them, but nothing of training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoints import store
from model.config import MAEConfig
from model.errors import CheckpointError
from model.network import MAE
from model.pretrain.recipe import COLOURS, NETWORK, Recipe

#: Parts of a network that belong to what it predicts, by the beginnings of their names.
_OF_TARGET = ("decoder_pred.", "decoder_basis", "decoder_mean", "decoder_tokenizer.")
#: What a recipe says of a network outside its ``[network]``.
_BESIDE = ("decoder_depth", "decoder_width", "decoder_heads", "mask_tokens")

_NAMES = {field.name for field in fields(MAEConfig)} - {"target"}


@dataclass(frozen=True)
class Beginning:
    """Weights, and what the card of a model that began with them owes them.

    Attributes:
        tensors: By their names in the network.
        target: What they predict; None for an encoder alone.
        origin: ``licence``, where the file's card has one, and ``begun_from``: the file's name, digest and card.
        colours: ``pixel_mean`` and ``pixel_std``, where they are not ImageNet's.
    """

    tensors: dict[str, Tensor]
    target: str | None
    origin: dict[str, Any]
    colours: dict[str, list[float]] = field(default_factory=dict)

    def fill(self, network: MAE) -> None:
        """Put the weights into a network; what belongs to another target, or a decoder that lacks, stays random."""
        other = self.target != network.config.target
        known = {
            name: value for name, value in self.tensors.items() if not (other and name.startswith(_OF_TARGET))
        }
        network.load_state_dict(known, strict=False)


def read(path: Path, recipe: Recipe) -> Beginning:
    """Weights of any layout this package reads, with or without a decoder.

    Args:
        path: A file or folder, or a name of the registry.
        recipe: What is trained; all but the target must be as in the file (of an encoder, the encoder's shape), and
            the colours where it says some.

    Raises:
        CheckpointError: It cannot be read, or its shape is not the recipe's.
    """
    try:
        checkpoint = store.read(path)
    except CheckpointError as error:
        if error.code != "checkpoint-encoder":
            raise
        return _encoder(path, recipe)
    network, card = checkpoint.network, checkpoint.card
    _refuse_other(path, network.config, recipe, _NAMES)
    origin = _origin(checkpoint.name, checkpoint.digest, card)
    return Beginning(network.state_dict(), network.config.target, origin, _colours(network.config))


def _encoder(path: Path, recipe: Recipe) -> Beginning:
    file = store.read_encoder(path)
    decoders = {name for name in _NAMES if name.startswith("decoder")}
    _refuse_other(path, file.config, recipe, _NAMES - {"mask_tokens"} - decoders)
    return Beginning(file.tensors, None, _origin(file.name, file.digest, file.card), _colours(file.config))


def _colours(config: MAEConfig) -> dict[str, list[float]]:
    return {name: list(value) for name in COLOURS if (value := getattr(config, name)) is not None}


def _refuse_other(path: Path, theirs: MAEConfig, recipe: Recipe, names: set[str]) -> None:
    """Refuse another shape than the recipe's; colours differ only where the recipe says some."""
    ours = recipe.config
    said = names if recipe.network.keys() & set(COLOURS) else names - set(COLOURS)
    differing = [
        field.name
        for field in fields(MAEConfig)
        if field.name in said and getattr(theirs, field.name) != getattr(ours, field.name)
    ]
    if not differing:
        return
    told = ", ".join(f"{name} {getattr(theirs, name)} instead of {getattr(ours, name)}" for name in differing)
    raise CheckpointError(
        f"{path} has another shape than the recipe's network: {told}.",
        code="init-config",
        hint=_as_recipe(theirs, differing),
        field="init",
    )


def _as_recipe(theirs: MAEConfig, differing: list[str]) -> str:
    """What makes a recipe's network theirs, where it can be said."""
    if beyond := [name for name in differing if name not in (*NETWORK, *COLOURS, *_BESIDE)]:
        return f"No recipe can express {' or '.join(beyond)}: a run cannot begin with these weights. Give others."
    lines = [f"{name} = {json.dumps(getattr(theirs, name))}" for name in differing if name in _BESIDE]
    network = [f"{name} = {json.dumps(getattr(theirs, name))}" for name in differing if name not in _BESIDE]
    said = [", ".join(lines)] * bool(lines) + [f"[network] {', '.join(network)}"] * bool(network)
    return f"Say in the recipe: {'; '.join(said)}. Or give weights of its shape."


def _origin(name: str, digest: str, card: dict[str, Any]) -> dict[str, Any]:
    """What a card says of the weights before: all but their recipe, which tells how and not what."""
    facts = {key: value for key, value in card.items() if key != "recipe"}
    origin = {"begun_from": {"name": name, "sha256": digest, **facts}}
    return {"licence": card["licence"], **origin} if "licence" in card else origin
