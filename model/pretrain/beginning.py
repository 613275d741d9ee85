"""Weights a run begins with instead of random ones: a whole MAE, or an encoder to which a fresh decoder comes.

Knows files and what a recipe's network must have in common with them, but nothing of training.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from model.checkpoints import layouts, store
from model.config import MAEConfig
from model.errors import CheckpointError
from model.network import MAE
from model.pretrain.recipe import Recipe

#: Parts of a network that belong to what it predicts, by the beginnings of their names.
_OF_TARGET = ("decoder_pred.", "decoder_basis", "decoder_mean", "decoder_tokenizer.")


@dataclass(frozen=True)
class Beginning:
    """Weights, and what the card of a model that began with them owes them.

    Attributes:
        tensors: By their names in the network.
        target: What they predict; None for an encoder alone.
        origin: ``licence``, where the file's card has one, and ``begun_from``: the file's name, digest and card.
    """

    tensors: dict[str, Tensor]
    target: str | None
    origin: dict[str, Any]

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
        recipe: What is trained; all but the target must be as in the file (of an encoder, the encoder's shape).

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
    _refuse_other(
        path, network.config, recipe.config, {field.name for field in fields(MAEConfig)} - {"target"}
    )
    origin = _origin(checkpoint.name, checkpoint.digest, card)
    return Beginning(network.state_dict(), network.config.target, origin)


def _encoder(path: Path, recipe: Recipe) -> Beginning:
    raw, given, entry = store.open_known(path)
    layout = layouts.recognise(raw)
    house = layout.to_house(raw.tensors)
    config = store.encoder_config(raw, house, given, "Give the pre-trained file that it was made from.")
    decoders = {field.name for field in fields(MAEConfig) if field.name.startswith("decoder")}
    _refuse_other(
        path,
        config,
        recipe.config,
        {field.name for field in fields(MAEConfig)} - {"target", "mask_tokens"} - decoders,
    )
    name, card = store.told(raw, layout, entry)
    return Beginning(house, None, _origin(name, raw.digest, card))


def _refuse_other(path: Path, theirs: MAEConfig, ours: MAEConfig, names: set[str]) -> None:
    differing = [
        f"{field.name} {getattr(theirs, field.name)} instead of {getattr(ours, field.name)}"
        for field in fields(MAEConfig)
        if field.name in names and getattr(theirs, field.name) != getattr(ours, field.name)
    ]
    if differing:
        raise CheckpointError(
            f"{path} is of another shape than the recipe's network: {', '.join(differing)}.",
            code="init-config",
            hint="Say so in the recipe (size, [network], decoder_depth, decoder_width, decoder_heads), "
            "or give weights of its shape.",
            field="init",
        )


def _origin(name: str, digest: str, card: dict[str, Any]) -> dict[str, Any]:
    """What a card says of the weights before: all but their recipe, which tells how and not what."""
    facts = {key: value for key, value in card.items() if key != "recipe"}
    origin = {"begun_from": {"name": name, "sha256": digest, **facts}}
    return {"licence": card["licence"], **origin} if "licence" in card else origin
