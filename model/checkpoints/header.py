"""The head of a safetensors file: names, types and shapes of its tensors, without one of their numbers.

Eight bytes say how long it is, then comes JSON. It may be a stranger's, and the file behind it need not exist, so
every number in it is bounded before anything is built by it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.files import RawFile, refuse, without_prefixes
from model.errors import CheckpointError

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
#: Bits of one number, by the format's names of types.
_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
_MOST_AXES, _LONGEST = 8, 2**20


def read_header(data: bytes, name: str, size_bytes: int | None = None) -> RawFile:
    """What the head of a safetensors file tells.

    Args:
        data: The first bytes of the file, the whole head among them.
        name: The file's, for messages.
        size_bytes: The file's, where it is known: a file that was cut is refused.

    Returns:
        Tensors on the meta device, float32 whatever their type; no digest.

    Raises:
        CheckpointError: It is not a whole head of a safetensors file, or the file was cut.
    """
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    if len(data) <= _LENGTH_BYTES or data[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
        raise refuse(
            f"{name} is not a safetensors file",
            "Inspect other files locally: python -m model inspect FILE.",
            "unreadable",
        )
    if len(data) < _LENGTH_BYTES + length:
        raise refuse(
            f"{name} was cut: its head has {length} bytes, and {len(data) - _LENGTH_BYTES} are there",
            "Copy or fetch it again.",
            "unreadable",
        )
    try:
        entries = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    except (ValueError, RecursionError) as error:
        raise _broken(name, "it is not JSON") from error
    header = entries.pop(_METADATA, {})
    if not isinstance(header, dict) or not all(isinstance(value, str) for value in header.values()):
        raise _broken(name, f"{_METADATA} holds more than text")
    spans = []
    tensors: dict[str, Tensor] = {}
    for key, entry in entries.items():
        tensors[key], span = _tensor(name, key, entry)
        spans.append(span)
    whole = _LENGTH_BYTES + length + _end(name, spans)
    if size_bytes is not None and size_bytes != whole:
        raise refuse(
            f"{name} has {size_bytes} bytes, but its head promises {whole}: it was cut, or its copy is not done",
            "Copy or fetch it again.",
            "unreadable",
        )
    return RawFile(Path(name), without_prefixes(tensors), digest="", size_bytes=whole, header=header)


def _tensor(name: str, key: str, entry: Any) -> tuple[Tensor, tuple[int, int]]:
    """A tensor without memory, and where in the file its numbers lie."""
    try:
        bits, shape, (begin, end) = _BITS[entry["dtype"]], entry["shape"], entry["data_offsets"]
        sound = all(type(number) is int for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(name, f"what it says of {key:.80} is not understood") from error
    if not sound or len(shape) > _MOST_AXES or not all(0 < length <= _LONGEST for length in shape):
        raise _broken(name, f"{key:.80} has the shape {shape!s:.80}")
    if begin < 0 or (end - begin) * 8 != math.prod(shape) * bits:
        raise _broken(name, f"{key:.80} has {end - begin} bytes, and its shape needs others")
    return torch.empty(shape, device="meta"), (begin, end)


def _end(name: str, spans: list[tuple[int, int]]) -> int:
    """The last byte of the tensors, which lie one behind the other."""
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise _broken(name, "its tensors overlap, or leave gaps")
        at = end
    return at


def _broken(name: str, why: str) -> CheckpointError:
    return refuse(f"The head of {name} cannot be read ({why})", "Copy or fetch it again.", "unreadable")
