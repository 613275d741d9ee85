"""Weight files to networks and back: any known layout in (``layouts``), our own format out.

Our format is safetensors: tensors under the public parameter names, and in the header the config and the card;
it needs nothing else. Loading is strict: a missing, extra, misshapen or non-finite tensor refuses the file by
name, because a decoder left at random is the field's most common "my reconstruction is garbage".
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoints import layouts, registry, shapes
from model.checkpoints.containers import open_raw
from model.checkpoints.files import FORMAT, RawFile, refuse, replacing
from model.checkpoints.layouts import Layout
from model.checkpoints.registry import Entry
from model.checkpoints.shapes import Given
from model.config import MAEConfig
from model.errors import listed
from model.network import MAE, sees_images
from model.positions import POSITIONS, sincos_positions

_LOGGER = logging.getLogger(__name__)

#: What a model cannot do where all patches have one position.
_POSITIONS_TELL = {
    "pos_embed": "the encoder cannot tell where a patch stands",
    "decoder_pos_embed": "the decoder cannot tell hidden patches apart, and predicts one patch for all",
}


@dataclass(frozen=True)
class Checkpoint:
    """A weight file that was read and proved.

    Attributes:
        network: The MAE in float32 on the CPU, in evaluation mode.
        name: What the file calls itself.
        digest: SHA-256 of the file, hex.
        card: What else the header says: licence, data, steps, samples.
        layout: Name of the layout it was read from.
        notes: What a person should know about the file, sentences.
    """

    network: MAE
    name: str
    digest: str
    card: dict[str, Any]
    layout: str = "unmask"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncoderFile:
    """What any file that holds an encoder says of it.

    Attributes:
        config: Its shape; of the decoder too, where there is one.
        tensors: All of the file's, by the house's names.
        name: What the file calls itself.
        digest: SHA-256 of the file, hex.
        card: What else it says.
    """

    config: MAEConfig
    tensors: dict[str, Tensor]
    name: str
    digest: str
    card: dict[str, Any]


def write(path: Path, network: MAE, *, name: str, card: dict[str, Any], half: bool = False) -> None:
    """Write our format, atomically: a reader sees the old file or the whole new one.

    Args:
        path: Where to.
        network: What to write.
        name: Name the model answers with.
        card: JSON-ready facts for ``describe``: licence, data, samples seen.
        half: Store float16: half the bytes, an error of 5e-4 relative on each weight.
    """
    dtype = torch.float16 if half else torch.float32
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in network.named_parameters()}
    # Positions are a formula, not weights, and made anew on loading; only other ones are kept, unshortened.
    tensors |= foreign_positions(network)
    header = {
        "format": FORMAT,
        "name": name,
        "config": json.dumps(network.config.to_dict()),
        "card": json.dumps(card),
    }
    with replacing(path) as part:
        save_file(tensors, part, metadata=header)


def foreign_positions(network: MAE) -> dict[str, Tensor]:
    """Positions that are not to the bit what the formula gives; empty for every model trained here."""
    return {
        name: stored.detach().cpu().contiguous()
        for name, stored in network.named_buffers()
        if name in POSITIONS
        and not stored.cpu().equal(sincos_positions(*network.config.grid, stored.shape[-1]))
    }


def read(path: Path, given: Given | None = None) -> Checkpoint:
    """Read a full MAE of any known layout, strictly: nothing is left at random, nothing is left over.

    Args:
        path: A file, a folder as ``save_pretrained`` writes it, or a name of the registry.
        given: What the file may leave out: heads, target.

    Raises:
        CheckpointError: The file is missing, truncated, of another kind, or its tensors do not fit.
    """
    raw, given, entry = open_known(path, given)
    path = raw.path
    layout = layouts.recognise(raw)
    house = layout.to_house(raw.tensors)
    _refuse_without_decoder(path, house)
    target, _ = shapes.find_target(raw, given)
    if target is None:
        raise refuse(
            f"{path.name} carries no config that says whether it predicts raw or normalised pixels",
            f"Say it once: python -m model convert {path.name} OUT --to unmask --target pixel (or norm_pixel); "
            "`python -m model inspect FILE --photos FOLDER` measures which.",
            "target-unknown",
        )
    config, assumed = shapes.infer_config(raw, house, given, target)
    network = unfilled(config)
    grave = assumed + alarms(raw, house)
    notes = grave + doubts(layout) + check_config(raw, config) + fill(network, house, path.name)
    _warn(path, grave)
    name, card = told(raw, layout, entry)
    return Checkpoint(network.eval(), name, raw.digest, card, layout=layout.name, notes=notes)


def load_network(path: Path | str | None = None, given: Given | None = None) -> MAE:
    """The network of a weight file, to look into, to train on, or to export: a ``torch.nn.Module``.

    Args:
        path: A file or folder of any known layout, or a name of the registry; None for the shipped ``mini``.
        given: What the file may leave out: heads, target.

    Raises:
        CheckpointError: As for ``read``.
    """
    return read(Path(path) if path else registry.shipped(), given).network


def read_encoder(
    path: Path,
    given: Given | None = None,
    advice: str = "Give the pre-trained file that it was made from.",
) -> EncoderFile:
    """Read the encoder of any known layout, with or without a decoder beside it; all tensors are checked.

    Args:
        path: A file, a folder, or a name of the registry.
        given: What the file may leave out.
        advice: What to do instead where it is a classifier.

    Raises:
        CheckpointError: It cannot be read, is a classifier without the encoder's last norm, or does not fit.
    """
    raw, given, entry = open_known(path, given)
    layout = layouts.recognise(raw)
    house = layout.to_house(raw.tensors)
    kind = layouts.content(house)
    if kind == "classifier":
        raise refuse(
            f"{raw.path.name} is a fine-tuned classifier without the encoder's last norm",
            advice,
            "classifier",
        )
    target, _ = shapes.find_target(raw, given)
    config, assumed = shapes.infer_config(raw, house, given, target or "pixel")
    _warn(raw.path, assumed + alarms(raw, house) + of_classes(raw, kind))
    check(skeleton(config), house, raw.path.name, kind)
    name, card = told(raw, layout, entry)
    return EncoderFile(config, house, name, raw.digest, card)


def told(raw: RawFile, layout: Layout, entry: Entry | None) -> tuple[str, dict[str, Any]]:
    """Name and card of a file: its own words, else what is known of its layout and of it."""
    path, card = raw.path, raw.own.card
    if card is None:
        card = {"origin": layout.title, "licence": _licence(raw, entry)}
        if entry and entry.trained_with:
            card["strategy"] = entry.trained_with
    own_name = path.resolve().name.removesuffix(path.suffix if path.is_file() else "")
    return raw.own.name or (entry.name if entry else own_name), card


def open_known(path: Path, given: Given | None = None) -> tuple[RawFile, Given, Entry | None]:
    """Open a path or a name of the registry, and add what the registry knows of it to what the caller knows.

    Raises:
        CheckpointError: It cannot be opened, is not on this machine, or has changed since it was pulled.
    """
    found = registry.locate(path)
    raw = open_raw(found.path, given.weights_key if given else None)
    found.check(raw.digest)
    given, entry = given or Given(), found.entry
    if entry is None:
        return raw, given, None
    source = given.source if given.target else "the registry"
    given = Given(
        heads=given.heads or entry.heads,
        decoder_heads=given.decoder_heads or entry.decoder_heads,
        target=given.target or entry.predicts,
        source=source,
        weights_key=given.weights_key,
    )
    return raw, given, entry


def _licence(raw: RawFile, entry: Entry | None) -> str:
    if entry:
        return entry.licence
    return "CC-BY-NC-4.0" if shapes.is_released(raw) else "not stated"


def _refuse_without_decoder(path: Path, house: dict[str, Tensor]) -> None:
    kind = layouts.content(house)
    if kind == "encoder":
        raise refuse(
            f"{path.name} holds the encoder alone, no decoder: it cannot reconstruct",
            "Evaluate it, or convert it --to timm. Of the authors' files, mae_visualize_vit_*.pth and "
            "mae_pretrain_vit_*_full.pth have a decoder.",
            "encoder",
        )
    if kind == "classifier":
        raise refuse(
            f"{path.name} is a fine-tuned classifier without a decoder: it cannot reconstruct",
            "Of the authors' files use mae_visualize_vit_*.pth or mae_pretrain_vit_*_full.pth instead.",
            "classifier",
        )


def doubts(layout: Layout) -> tuple[str, ...]:
    """What a person should know about a layout that was read without its program at hand."""
    if not layout.doubt:
        return ()
    return (f"The names of {layout.title} were never checked against its own program: {layout.doubt}.",)


def _warn(path: Path, notes: tuple[str, ...]) -> None:
    """To the terminal or the service's log: whoever uses a file may never have inspected it."""
    for note in notes:
        _LOGGER.warning("%s: %s", path.name, note)


def check_config(raw: RawFile, config: MAEConfig) -> tuple[str, ...]:
    """Refuse a Hugging Face config that asks for another network than ours; note what costs little or is unusual.

    Raises:
        CheckpointError: Its activation is another.
    """
    activation = raw.config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise refuse(
            f"{raw.path.name} computes with {activation!r} instead of gelu",
            "Only networks as in the paper are read.",
            "shape",
        )
    notes = []
    epsilon = raw.config.get("layer_norm_eps", 1e-6)
    if epsilon != 1e-6:
        notes.append(
            f"config.json asks for layer_norm_eps {epsilon!r:.40}; 1e-6 is used, as in training "
            "(1e-12 differs by about 2e-5)."
        )
    if config.pixel_mean or config.pixel_std:
        mean, std = (", ".join(f"{value:g}" for value in of) for of in (config.image_mean, config.image_std))
        notes.append(f"Pixels are normalised by mean {mean} and deviation {std}, not by ImageNet's.")
    if raw.averages:
        notes.append(
            f"An average of the weights lies beside those taken, under {raw.averages[0]!r}; it is taken with "
            f"convert --weights-key {raw.averages[0]}."
        )
    return tuple(notes)


def alarms(raw: RawFile, house: dict[str, Tensor]) -> tuple[str, ...]:
    """What makes predictions of a sound file wrong or pointless: said wherever it is read, not to ``inspect`` alone."""
    flat = tuple(
        f"{key} is the same for every patch (transformers makes models from a config so, and never trains it): "
        f"{told}."
        for key, told in _POSITIONS_TELL.items()
        if key in house and _flat(house[key])
    )
    return ((raw.lost,) if raw.lost else ()) + flat


def _flat(positions: Tensor) -> bool:
    """Whether all patches have one position, the class token's aside."""
    if positions.is_meta or positions.ndim != 3 or positions.shape[1] <= 2:
        return False
    return bool((positions[:, 1:] == positions[:, 1:2]).all())


def fill(network: MAE, tensors: dict[str, Tensor], file_name: str) -> tuple[str, ...]:
    """Put the tensors of a full MAE into a network; what ``check`` refuses and notes holds here too."""
    notes = check(network, tensors, file_name)
    state = network.state_dict()
    for key, value in tensors.items():
        state[key].copy_(value)
    return notes


def of_classes(raw: RawFile, kind: layouts.Content) -> tuple[str, ...]:
    """That an encoder was stored with a layer of classes, of which nobody knows whether it was trained."""
    if kind != "encoder" or not any(name.startswith(("head.", "classifier.")) for name in raw.tensors):
        return ()
    return (
        "A layer of classes is stored along and takes no part; if it was trained, the encoder may have been too.",
    )


def check(
    network: MAE, tensors: dict[str, Tensor], file_name: str, kind: layouts.Content = "full"
) -> tuple[str, ...]:
    """Refuse tensors that are not an exact fit.

    Args:
        network: Its names and shapes count, not its values (it may be a skeleton).
        tensors: Under house names.
        file_name: For messages.
        kind: Which part of the network the file should hold.

    Returns:
        Notes: stored positions that are not the formula's are used, and said.

    Raises:
        CheckpointError: A tensor is missing, left over, misshapen, quantised or not finite.
    """
    missing, extra = misfits(network, tensors, kind)
    if missing or extra:
        raise refuse(
            f"{file_name} does not fit its config: missing {listed(missing, 3)}, left over {listed(extra, 3)}",
            "The file was changed, cut, or written by another program; nothing was loaded.",
            "tensors",
        )
    state = network.state_dict()
    notes = []
    for key, value in tensors.items():
        if key in state and value.shape != state[key].shape:
            raise refuse(
                f"{file_name}: {key} has shape {list(value.shape)}, its config says {list(state[key].shape)}",
                "The file was changed or written by another version; nothing was loaded.",
                "tensors",
            )
        if value.is_meta:  # from a file's head, which holds no numbers
            continue
        if not value.is_floating_point():
            raise refuse(
                f"{file_name}: {key} holds whole numbers ({str(value.dtype).removeprefix('torch.')}), as quantised "
                "weights do",
                "Use the file from before quantisation; nothing was loaded.",
                "tensors",
            )
        if not bool(torch.isfinite(value).all()):
            raise refuse(
                f"{file_name}: {key} holds numbers that are not finite",
                "Use an earlier checkpoint.",
                "finite",
            )
        if key in POSITIONS and not _flat(value):
            formula = sincos_positions(*network.config.grid, value.shape[-1])
            if (gap := float((value.float() - formula).abs().max())) > 1e-5:
                notes.append(f"{key} differs from the formula by up to {gap:.2g}; the stored one is used.")
    return tuple(notes)


def misfits(
    network: MAE, tensors: dict[str, Tensor], kind: layouts.Content = "full"
) -> tuple[list[str], list[str]]:
    """Names that a network of this kind needs and the file lacks, and names that are left over."""
    own = set(dict(network.named_parameters()))
    wanted = own if kind == "full" else {key for key in own if sees_images(key)}
    allowed = own | set(POSITIONS)
    if kind == "classifier":
        # A classifier has its own norm behind the pool, in place of the encoder's.
        allowed |= {f"{part}.{which}" for part in ("fc_norm", "head") for which in ("weight", "bias")}
        wanted -= {"norm.weight", "norm.bias"}
    return sorted(wanted - tensors.keys()), sorted(tensors.keys() - allowed)


def skeleton(config: MAEConfig) -> MAE:
    """A network with names and shapes and no memory."""
    with torch.device("meta"):
        return MAE(config)


def unfilled(config: MAEConfig) -> MAE:
    """A network whose weights are filled in later; drawing random ones would take longer than reading the file."""
    network = skeleton(config).to_empty(device="cpu")
    network.set_constants()
    return network
