"""From a path to named tensors, without running anything that a file brings along.

Knows safetensors and pickles of tensors, not what the tensors mean: that is ``layouts``.
"""

from __future__ import annotations

import argparse
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from model.checkpoints import files
from model.checkpoints.files import RawFile, refuse
from model.config import SIZES
from model.errors import CheckpointError, first_line, listed

if TYPE_CHECKING:  # loaded on first use: names of weights are told without it
    from torch import Tensor

#: What ``torch.load`` raises on a file that is cut, damaged or something else.
DAMAGED = (
    pickle.UnpicklingError, struct.error, OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError,
    TypeError, AssertionError,
)  # fmt: skip
#: What a file begins with that only stands for another.
_POINTER = b"version https://git-lfs.github.com/"
#: Dicts inside dicts that are opened in search of weights; a pickle may hold itself.
_DEEPEST = 8
#: Where training programs put the weights inside what they save.
_NESTED = ("model", "state_dict", "model_state_dict", "network", "module")
#: And their running average: taken where nothing else is there.
_AVERAGES = ("model_ema", "state_dict_ema", "ema")
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


def open_raw(path: Path, key: str | None = None) -> RawFile:
    """Read a weight file or a folder of one.

    Args:
        path: Which.
        key: Where in a pickle the weights lie; None for the first of the known places.

    Raises:
        CheckpointError: It is missing, cut, not a weight file, or a pickle of more than tensors; or the key is not
            in it.
    """
    with files.reading(path):
        parts = files.parts(path)
        read = [_open_part(part, key) for part in parts]
        tensors = {name: value for part in read for name, value in part.tensors.items()}
        config, processor = files.configs_beside(path)
        return replace(
            read[-1],
            path=path,
            tensors=files.without_prefixes(tensors),
            digest=files.joint_digest([files.sha256(part) for part in parts]),
            size_bytes=sum(part.stat().st_size for part in parts),
            config=config,
            processor=processor,
        )


def _open_part(path: Path, key: str | None) -> RawFile:
    """One file: what stands in it alone, its hash not yet taken."""
    is_pickle = not _is_safetensors(path)
    if key and not is_pickle:
        raise refuse(
            f"{path.name} is a safetensors file, whose weights lie under no key",
            "Leave out --weights-key.",
            "layout",
        )
    raw = _read_pickle(path, key) if is_pickle else _read_safetensors(path)
    _refuse_without_numbers(path, raw.tensors)
    return raw


def _is_safetensors(path: Path) -> bool:
    """By content where the name does not say: eight bytes of length, then a JSON object.

    Raises:
        CheckpointError: It only stands for a file, as in a clone that was made without Git LFS.
    """
    with path.open("rb") as file:
        head = file.read(len(_POINTER))
    if head == _POINTER:
        raise refuse(
            f"{path.name} is a pointer of Git LFS, not the weights that it stands for",
            "Fetch these: git lfs pull, in the clone that it lies in.",
            "unreadable",
        )
    return path.suffix == ".safetensors" or head[8:9] == b"{"


def _read_safetensors(path: Path) -> RawFile:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return RawFile(path, tensors, header=file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise refuse(
            f"{path.name} is not a readable safetensors file ({error})",
            "Copy or fetch it again.",
            "unreadable",
        ) from error


def _read_pickle(path: Path, key: str | None) -> RawFile:
    from torch import Tensor

    content = _unpickled(path)
    if not isinstance(content, Mapping):
        raise _without_tensors(path, content)
    if "recipe" in content and "network" in content:
        return _read_state(path, content)
    weights, nested, averages = _weights_in(path, content, key)
    tensors = {str(name): value for name, value in weights.items() if isinstance(value, Tensor)}
    if not tensors:
        raise _without_tensors(path, content)
    options = content.get("args", {})
    if isinstance(options, argparse.Namespace):
        options = vars(options)
    return RawFile(
        path,
        tensors,
        options=options if isinstance(options, dict) else {},
        beside=content.get("unmask"),
        averages=averages,
        nested=nested,
    )


def _refuse_without_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Torch stores also tensors that are only shapes, and sparse ones; no network of ours takes them."""
    import torch

    for name, value in tensors.items():
        if value.is_meta or value.layout != torch.strided:
            raise refuse(
                f"{path.name} holds {'no numbers' if value.is_meta else 'a sparse tensor'} for {name:.80}",
                "Save the weights as plain tensors.",
                "tensors",
            )


def _unpickled(path: Path) -> object:
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
            content: object = torch.load(  # noqa: TID251 (the one reader of weight files; weights_only runs no code)
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except (pickle.UnpicklingError, AttributeError, TypeError) as error:
        raise _pickled_object(path, str(error)) from error
    except DAMAGED as error:
        if "TorchScript archive" in str(error):
            raise _code(path, "a TorchScript archive") from error
        raise refuse(
            f"{path.name} is not a readable weight file ({first_line(error)})",
            "Copy or fetch it again; .pth, .pt, .bin and .safetensors are read.",
            "unreadable",
        ) from error
    return content


def _weights_in(
    path: Path, content: Mapping[str, Any], key: str | None
) -> tuple[Mapping[str, Any], bool, tuple[str, ...]]:
    """The innermost dict of weights, whether it lay inside another, and averages that were passed over."""
    weights, nested, averages = content, False, tuple[str, ...]()
    for _ in range(_DEEPEST):
        inside = [at for at in (*_NESTED, *_AVERAGES) if isinstance(weights.get(at), Mapping)]
        if key and not nested:
            inside = [key] if isinstance(weights.get(key), Mapping) else []
        if not inside:
            break
        averages += tuple(at for at in inside[1:] if at in _AVERAGES)
        weights, nested = weights[inside[0]], True
    if key and not nested:
        raise refuse(
            f"{path.name} holds no weights under {key!r}",
            f"It holds {', '.join(_dicts_of_tensors(content)) or 'nothing'} to choose from.",
            "layout",
        )
    return weights, nested, averages


def _dicts_of_tensors(content: Mapping[str, Any]) -> list[str]:
    """Where weights may lie, of what a training program has saved together."""
    from torch import Tensor

    return [
        str(at)
        for at, value in content.items()
        if isinstance(value, Mapping) and any(isinstance(inside, Tensor) for inside in value.values())
    ]


def _without_tensors(path: Path, content: object) -> CheckpointError:
    hint = "Give a file whose state dict lies bare or under 'model' or 'state_dict'."
    if isinstance(content, Mapping) and (keys := _dicts_of_tensors(content)):
        hint = f"It holds dicts of them, {listed(keys, 6)}: convert it with --weights-key {keys[0]}."
    return refuse(f"{path.name} holds a {type(content).__name__} without named tensors", hint, "layout")


def _read_state(path: Path, state: Mapping[str, Any]) -> RawFile:
    """A state of ``model.pretrain``: the running average where it keeps one, as the run itself would give."""
    from torch import Tensor

    recipe = state["recipe"] if isinstance(state["recipe"], dict) else {}
    weights = state["network"] if state.get("average") is None else state["average"]
    for name in ("positions", "origin", "unmask"):
        if not isinstance(state.get(name, {}), dict):
            raise refuse(
                f"{path.name} is a state whose {name!r} is a {type(state[name]).__name__}, not a dict",
                "Take a state as the run wrote it.",
                "layout",
            )
    if not isinstance(weights, Mapping):
        raise refuse(
            f"{path.name} is a state in parts, one per process",
            "Go on with --resume until the run writes its weights, or take a run that kept whole states.",
            "layout",
        )
    step, batch_size = state.get("step", 0), recipe.get("batch_size", 0)
    if not (isinstance(step, int) and isinstance(batch_size, int)):
        raise refuse(
            f"{path.name} counts steps in no whole numbers", "Take a state as the run wrote it.", "layout"
        )
    options: dict[str, Any] = {}  # states of before kept no config, but a recipe that says as much
    if recipe.get("target") in ("pixel", "norm_pixel"):
        options["norm_pix_loss"] = recipe["target"] == "norm_pixel"
    if size := SIZES.get(str(recipe.get("size", ""))):
        options["input_size"] = size.image_size
    card = {"steps": step, "samples": step * batch_size, "recipe": recipe}
    kept = {**weights, **state.get("positions", {})}
    tensors = {str(name): value for name, value in kept.items() if isinstance(value, Tensor)}
    if not tensors:
        raise _without_tensors(path, state)
    return RawFile(
        path,
        tensors,
        options=options,
        beside={"name": str(recipe.get("name", path.stem)), "card": card, **state.get("unmask", {})},
        nested=True,
        is_state=True,
        lost=lost_positions(state),
    )


def lost_positions(state: Mapping[str, Any]) -> str:
    """What to know of a state of before these kept the positions that their run began with; empty of any other."""
    before = state.get("origin", {}).get("begun_from")
    if "positions" in state or not isinstance(before, dict):
        return ""
    return (
        f"This state was written before states kept positions, and its run began from {before.get('name')}: if that "
        "stores positions other than the formula's, they are missing here, and predictions are wrong."
    )


def _pickled_object(path: Path, error: str) -> CheckpointError:
    """Name the class that a pickle wants to build, which would mean running code from the file."""
    marker = "Unsupported global: GLOBAL "
    if marker in error:
        return _code(path, f"a pickle of a Python object ({error.split(marker, 1)[1].split()[0]})")
    return refuse(
        f"{path.name} is neither a safetensors file nor a pickle of tensors; nothing in it was run",
        "Copy or fetch it again; .pth, .pt, .bin and .safetensors are read.",
        "unreadable",
    )


def _code(path: Path, what: str) -> CheckpointError:
    return refuse(
        f"{path.name} is {what}, which opens only by running code; nothing was run",
        "In the program that wrote it, save model.state_dict() alone, and give that file.",
        "pickle",
    )
