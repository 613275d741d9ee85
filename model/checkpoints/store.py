"""Weight files: the one place that reads and writes them.

Our format is safetensors: tensors under the public parameter names, and in the header the config, the digest
needs nothing else. Loading is strict: a missing, extra, misshapen or non-finite tensor refuses the file by name,
because a decoder left at random is the field's most common "my reconstruction is garbage".
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model.config import MAEConfig
from model.errors import CheckpointError
from model.network import MAE

FORMAT = "unmask-mae-1"


@dataclass(frozen=True)
class Checkpoint:
    """A weight file that was read and proved.

    Attributes:
        network: The MAE in float32 on the CPU, in evaluation mode.
        name: What the file calls itself.
        digest: SHA-256 of the file, hex.
        card: What else the header says: licence, data, steps, samples.
    """

    network: MAE
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
    # Positions are a formula, not weights: they are made anew on loading.
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in network.named_parameters()}
    header = {
        "format": FORMAT,
        "name": name,
        "config": json.dumps(network.config.to_dict()),
        "card": json.dumps(card),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(save(tensors, metadata=header))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: Path) -> Checkpoint:
    """Read our format, strictly.

    Raises:
        CheckpointError: The file is missing, truncated, of another format, or its tensors do not fit its config.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise _refuse(f"There is no weight file at {path}", "Check the path.", "missing") from None
    except (OSError, SafetensorError) as error:
        raise _refuse(
            f"{path.name} is no readable safetensors file ({error})", "Copy or fetch it again.", "unreadable"
        ) from error
    if header.get("format") != FORMAT:
        raise _refuse(
            f"{path.name} does not carry the config of an Unmask model (format {header.get('format')!r})",
            f"Give a file written by `python -m model pretrain` (format {FORMAT}).",
            "layout",
        )
    network = MAE(MAEConfig.from_dict(json.loads(header["config"])))
    _fill(network, tensors, path.name)
    return Checkpoint(network.eval(), header["name"], digest, json.loads(header["card"]))


def _fill(network: MAE, tensors: dict[str, Tensor], file_name: str) -> None:
    """Put tensors into the network, refusing anything that is not an exact fit."""
    wanted = dict(network.named_parameters())
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        raise _refuse(
            f"{file_name} does not fit its config: missing {_some(missing)}, left over {_some(extra)}",
            "The file was changed or written by another version; nothing was loaded.",
            "tensors",
        )
    for key, parameter in wanted.items():
        value = tensors[key]
        if value.shape != parameter.shape:
            raise _refuse(
                f"{file_name}: {key} has shape {list(value.shape)}, its config says {list(parameter.shape)}",
                "The file was changed or written by another version; nothing was loaded.",
                "tensors",
            )
        if not bool(torch.isfinite(value).all()):
            raise _refuse(
                f"{file_name}: {key} holds numbers that are not finite",
                "Take an earlier checkpoint.",
                "finite",
            )
        parameter.data.copy_(value)


def _some(names: list[str]) -> str:
    return (
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
    )


def _refuse(message: str, hint: str, code: str) -> CheckpointError:
    return CheckpointError(message + ".", code=f"checkpoint-{code}", hint=hint)


def shipped(name: str = "small") -> Path:
    """The weight file that comes with this package: in the wheel beside the code, else in the checkout."""
    packaged = Path(__file__).parents[1] / "shipped" / f"{name}.safetensors"
    return packaged if packaged.exists() else Path(__file__).parents[2] / "weights" / f"{name}.safetensors"
