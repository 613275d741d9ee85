"""From a path to named tensors, without running anything that a file brings along.

Knows containers (safetensors, pickles of tensors, sharded folders), not what the tensors mean: that is
``layouts``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from model.errors import CheckpointError

if TYPE_CHECKING:  # loaded on first use: names of weights are told without it
    from torch import Tensor

#: What the header of our own files calls itself.
FORMAT = "unmask-mae-1"
#: Where training programs put the weights inside what they save.
_NESTED = ("model", "state_dict", "model_state_dict", "network")
#: What wrappers (data parallel, compile, a trainer's attribute) put in front of every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "mae.")
#: Pointers in the folder of a run of ``model.pretrain``: text files with the name of a state.
_LATEST, _BEST = "LATEST", "BEST"
#: A Hugging Face folder holds one of these, in its own order of preference.
_IN_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


#: Records and settings that trainers store beside weights (OpenMMLab, Lightning, OmegaConf), and numpy's numbers.
_LEFT_OUT = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
    *(f"builtins.{kind}" for kind in ("int", "float", "str", "list", "dict")),
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
)
_LEFT_OUT_DICTS = (
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "collections.defaultdict",
)


class _LeftOut:
    """Stands for an object that has no part in the weights: whatever it is made of, it keeps and does nothing."""

    def __new__(cls, *_: object) -> _LeftOut:
        return object.__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _LeftOutDict:
    """The same for a kind of dict; torch fills no other than its own kinds."""

    def __new__(cls, *_: object) -> OrderedDict[str, object]:  # type: ignore[misc]
        return OrderedDict()


@dataclass(frozen=True)
class RawFile:
    """What a weight file holds, before anyone says what it means.

    Attributes:
        path: The file or folder as given.
        tensors: By the file's own names, wrappers' prefixes removed.
        digest: SHA-256 hex over the file, or over the digests of a folder's parts in order.
        size_bytes: Of all parts.
        header: Metadata of a safetensors file.
        config: ``config.json`` of a Hugging Face folder.
        arguments: Training arguments stored in the file, plain values only.
        nested: The weights lay inside another object (``model``, ``state_dict``).
    """

    path: Path
    tensors: dict[str, Tensor]
    digest: str
    size_bytes: int
    header: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    nested: bool = False


def open_raw(path: Path) -> RawFile:
    """Read a weight file or a folder of one.

    Raises:
        CheckpointError: It is missing, truncated, no weight file, or a pickle of more than tensors.
    """
    parts = _parts(path)
    tensors: dict[str, Tensor] = {}
    header: dict[str, str] = {}
    arguments: dict[str, Any] = {}
    nested = False
    for part in parts:
        if _is_safetensors(part):
            more, header = _read_safetensors(part)
        else:
            more, arguments, nested = _read_pickle(part)
        tensors |= more
    return RawFile(
        path=path,
        tensors=without_prefixes(tensors),
        digest=_digest(parts),
        size_bytes=sum(part.stat().st_size for part in parts),
        header=header,
        config=_config(path),
        arguments=arguments,
        nested=nested,
    )


def refuse(message: str, hint: str, code: str) -> CheckpointError:
    """The error for a file that cannot be used."""
    return CheckpointError(message + ".", code=f"checkpoint-{code}", hint=hint)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write beside, force it to disk, rename: a reader sees the old file or the whole new one.

    Yields:
        The file to write; it becomes ``path`` when the block ends, and is removed when it fails.

    Raises:
        CheckpointError: The disk is full, or the place may not be written to.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch wraps a failed write in a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        why = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        raise refuse(
            f"{path} cannot be written ({why})", "Make room, or name another place.", "write"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _parts(path: Path) -> list[Path]:
    """The files that together hold the tensors."""
    if not path.exists():
        raise refuse(
            f"There is no weight file at {path}",
            "Check the path; `python -m model weights list` tells the names that are known.",
            "missing",
        )
    if path.is_dir() and (path / _LATEST).is_file():
        path /= _LATEST
    if path.name in (_LATEST, _BEST) and path.is_file():
        return _pointed(path)
    if path.is_dir():
        found = next((path / name for name in _IN_FOLDER if (path / name).exists()), None)
        if found is None:
            raise refuse(
                f"{path} holds none of {', '.join((*_IN_FOLDER, _LATEST))}",
                "Give the weight file itself, a folder as written by save_pretrained, or that of a training run.",
                "missing",
            )
        path = found
    if not path.name.endswith(".index.json"):
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise refuse(f"{path.name} is no index of weight files", "Fetch it again.", "unreadable") from error
    # Only files beside the index: a name with a folder in it could point anywhere.
    parts = [path.parent / Path(str(name)).name for name in names]
    if absent := [part.name for part in parts if not part.exists()]:
        raise refuse(f"{path.name} lists {absent[0]}, which is not there", "Fetch all parts.", "missing")
    return parts


def _pointed(pointer: Path) -> list[Path]:
    """The state that ``LATEST`` or ``BEST`` of a run names."""
    with pointer.open("rb") as file:
        name = file.read(200).decode(errors="replace").strip()
    # Beside the pointer: a name with a folder in it could lead anywhere.
    state = pointer.parent / Path(name).name
    if not name or not state.is_file():
        raise refuse(
            f"{pointer} names {name or 'nothing'}, which is not there", "Give a state file itself.", "missing"
        )
    return [state]


def _config(path: Path) -> dict[str, Any]:
    """``config.json`` of the folder, where it speaks of a Hugging Face model."""
    if not path.is_dir() and path.name not in _IN_FOLDER:
        return {}  # any other file may merely lie beside somebody's config
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        values = json.loads(file.read_text()) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise refuse(f"{file.name} beside the weights is no JSON", "Fetch it again.", "unreadable") from error
    return values if isinstance(values, dict) and "model_type" in values else {}


def sha256(path: Path) -> str:
    """SHA-256 of one file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a weight file, or over those of a folder's parts in order, hex: as in ``RawFile``.

    Raises:
        CheckpointError: A file is missing.
    """
    return _digest(_parts(path))


def _digest(parts: list[Path]) -> str:
    digests = [sha256(part) for part in parts]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def check_container(path: Path) -> None:
    """Refuse a file that cannot hold weights, by its first and last bytes: a web page, a cut archive.

    Raises:
        CheckpointError: It is none of the containers that are read here.
    """
    with path.open("rb") as file:
        head = file.read(9)
        if head[8:] == b"{":  # safetensors: the length of the header, the header, the tensors
            header = json.loads(b"{" + file.read(int.from_bytes(head[:8], "little") - 1))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
            whole = file.tell() + max(ends, default=0) == path.stat().st_size
        else:  # a zip ends in its own table; an old pickle begins with its protocol
            whole = zipfile.is_zipfile(path) or head[:1] == b"\x80"
    if not whole:
        raise refuse(
            f"{path.name} is no whole weight file",
            "Fetch it again; .pth, .pt, .bin and .safetensors are read.",
            "unreadable",
        )


def _is_safetensors(path: Path) -> bool:
    """By content where the name does not say: eight bytes of length, then a JSON object."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise refuse(
            f"{path.name} is no readable safetensors file ({error})", "Copy or fetch it again.", "unreadable"
        ) from error


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], bool]:
    import torch

    try:
        # Reads tensors and plain values. The one class beyond them is the plain record of command-line options
        # that the authors' training script stores; of what other trainers store beside the weights, a stand-in
        # takes the place, and nothing of it is kept.
        with torch.serialization.safe_globals(
            [
                argparse.Namespace,
                *((_LeftOut, name) for name in _LEFT_OUT),
                *((_LeftOutDict, name) for name in _LEFT_OUT_DICTS),
            ]
        ):
            content = torch.load(  # noqa: TID251 (the one reader of weight files; weights_only runs no code)
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except (pickle.UnpicklingError, AttributeError, TypeError) as error:
        raise _pickled_object(path, str(error)) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise refuse(
            f"{path.name} is no readable weight file ({str(error).splitlines()[0][:160] if str(error) else 'empty'})",
            "Copy or fetch it again; .pth, .pt, .bin and .safetensors are read.",
            "unreadable",
        ) from error
    if isinstance(content, Mapping) and "recipe" in content and "network" in content:
        return _read_state(path, content)
    arguments = content.get("args", {}) if isinstance(content, Mapping) else {}
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    own = content.get("unmask", {}) if isinstance(content, Mapping) else {}
    weights, nested = content, False
    while isinstance(weights, Mapping):
        inner = next((weights[key] for key in _NESTED if isinstance(weights.get(key), Mapping)), None)
        if inner is None:
            break
        weights, nested = inner, True
    tensors = (
        {str(key): value for key, value in weights.items() if isinstance(value, torch.Tensor)}
        if isinstance(weights, Mapping)
        else {}
    )
    if not tensors:
        raise refuse(
            f"{path.name} holds a {type(content).__name__} without named tensors",
            "Give a file whose state dict lies bare or under 'model' or 'state_dict'.",
            "layout",
        )
    kept = {"args": arguments if isinstance(arguments, dict) else {}, "unmask": own}
    return tensors, kept, nested


def _read_state(path: Path, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any], bool]:
    """A state of ``model.pretrain``: the running average where it keeps one, as the run itself would give."""
    recipe = state["recipe"] if isinstance(state["recipe"], dict) else {}
    weights = state.get("average") or state["network"]
    if not isinstance(weights, Mapping):
        raise refuse(
            f"{path.name} is a state in parts, one of each process",
            "Go on with --resume until the run writes its weights, or take a run that kept whole states.",
            "layout",
        )
    normalised = {"pixel": False, "norm_pixel": True}  # states of before kept no config
    step = int(state.get("step", 0))
    card = {"steps": step, "samples": step * int(recipe.get("batch_size", 0)), "recipe": recipe}
    facts = {"name": str(recipe.get("name", path.stem)), "card": card, **state.get("unmask", {})}
    kept = {
        "args": {"norm_pix_loss": normalised[recipe["target"]]} if recipe.get("target") in normalised else {},
        "unmask": facts,
        "size": str(recipe.get("size", "")),
        "state": "average" if state.get("average") else "network",
    }
    return dict(weights), kept, True


def _pickled_object(path: Path, error: str) -> CheckpointError:
    """Name the class that a pickle wants to build, which would mean running code from the file."""
    marker = "Unsupported global: GLOBAL "
    if marker in error:
        name = error.split(marker, 1)[1].split()[0]
        return refuse(
            f"{path.name} is a pickle of a Python object ({name}), which opens only by running code; nothing was run",
            "In the program that wrote it, save model.state_dict() alone, and give that file.",
            "pickle",
        )
    return refuse(
        f"{path.name} is neither a safetensors file nor a pickle of tensors; nothing in it was run",
        "Copy or fetch it again; .pth, .pt, .bin and .safetensors are read.",
        "unreadable",
    )


def without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove what a wrapper put in front of every name, as often as it was wrapped."""
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in tensors)), None):
        if not tensors:
            break
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
