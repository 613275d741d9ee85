"""Weight files on a disk: which parts make one, whether they are whole, their hash, what we wrote in them; and writing.

Reads no tensor of them: that is ``containers``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from model.config import MAEConfig
from model.errors import CheckpointError, first_line

if TYPE_CHECKING:  # loaded on first use: names of weights are told without it
    from torch import Tensor

#: What the header of our own files calls itself.
FORMAT = "unmask-mae-1"
#: What data parallel, compile and Lightning's Fabric put into names, wherever a part was wrapped.
_WRAPPED = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_forward_module)\.")
#: The attribute under which a trainer holds its network, in front of every name.
_PREFIXES = ("model.", "mae.", "net.", "network.")
#: Pointers in the folder of a run of ``model.pretrain``: text files with the name of a state.
LATEST, BEST = "LATEST", "BEST"
#: Bytes in which a pickle names all its tensors, before their numbers: of ViT-Huge's it takes a tenth.
_NAMES_BYTES = 2**20
#: What the name of a list of parts ends with.
INDEX = ".index.json"
#: What a Hugging Face folder says of the network, and of the pictures that it was trained on.
CONFIGS = ("config.json", "preprocessor_config.json")
#: A Hugging Face folder holds one of these, in its own order of preference.
IN_FOLDER = (
    "model.safetensors",
    "model.safetensors" + INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin" + INDEX,
)


def cache(kind: str) -> Path:
    """Where what can be had again is kept: weights, shards, proofs; below ``XDG_CACHE_HOME`` or ``~/.cache``."""
    told = os.environ.get("XDG_CACHE_HOME", "")  # noqa: TID251 (every program's, no setting of ours)
    return (Path(told) if told else Path.home() / ".cache") / "unmask" / kind


@dataclass(frozen=True)
class Own:
    """What this product wrote into a weight file, of whatever layout; None for what is not there.

    Attributes:
        name: What the weights call themselves.
        config: Shape of the network.
        card: What else is told of them: licence, data, steps.
    """

    name: str | None = None
    config: MAEConfig | None = None
    card: dict[str, Any] | None = None


@dataclass(frozen=True)
class RawFile:
    """What a weight file holds, before anyone says what it means.

    Attributes:
        path: The file or folder as given.
        tensors: By the file's own names, wrappers' prefixes removed.
        digest: SHA-256 hex over the file, or over the digests of a folder's parts in order; empty of a head alone.
        size_bytes: Of all parts.
        header: Metadata of a safetensors file.
        config: ``config.json`` of a Hugging Face folder.
        processor: Its ``preprocessor_config.json``: how pictures are made ready.
        options: Training options stored in a pickle, by the names of the authors' script.
        beside: What a pickle holds under ``unmask``: what this product wrote.
        averages: Where in a pickle averages of the weights lie that were passed over.
        nested: The weights lay inside another object (``model``, ``state_dict``).
        is_state: It is a state of a run of ``model.pretrain``.
        lost: What to know of a state that lacks positions, a sentence; else empty.
    """

    path: Path
    tensors: dict[str, Tensor]
    digest: str = ""
    size_bytes: int = 0
    header: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    beside: object = None
    averages: tuple[str, ...] = ()
    nested: bool = False
    is_state: bool = False
    lost: str = ""

    @cached_property
    def own(self) -> Own:
        """What this product wrote into it.

        Raises:
            CheckpointError: It is there and cannot be read.
        """
        return read_own(self.path.name, self.header, self.beside)


def read_own(file_name: str, header: Mapping[str, str], beside: object = None) -> Own:
    """What this product wrote into a weight file: in the header of its own format, or of another under ``unmask``.

    Args:
        file_name: For messages.
        header: Metadata of a safetensors file; of a pickle none.
        beside: What a pickle holds under ``unmask``.

    Raises:
        CheckpointError: It is there and cannot be read.
    """
    try:
        if header.get("format") == FORMAT:
            beside = {key: json.loads(header.get(key, "{}")) for key in ("config", "card")}
            beside["name"] = header.get("name")
        elif "unmask" in header:
            beside = json.loads(header["unmask"])
        if not isinstance(beside, dict):
            return Own()
        name, config, card = map(beside.get, ("name", "config", "card"))
        return Own(
            None if name is None else str(name),
            None if config is None else MAEConfig.from_dict(config),
            None if card is None else dict(card),
        )
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise refuse(
            f"{file_name} carries a header that cannot be read ({error})",
            "The file was changed or written by another version; nothing was loaded.",
            "unreadable",
        ) from error


def refuse(message: str, hint: str, code: str) -> CheckpointError:
    """The error for a file that cannot be used."""
    return CheckpointError(message + ".", code=f"checkpoint-{code}", hint=hint)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which place could not be read, for whatever reason of the machine's.

    Raises:
        CheckpointError: It could not: no permission, a name that is too long, a disk that is gone.
    """
    try:
        yield
    except OSError as error:
        raise refuse(
            f"{path!s:.200} cannot be read ({error.strerror or error})",
            "Check the path, and who may read it.",
            "unreadable",
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder that results will go to, and see that it may be written to: before the work, not after it.

    Raises:
        CheckpointError: It cannot be made, or may not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be made or written to ({error.strerror}).",
            code="out-folder",
            hint="Give a folder that may be written to.",
            field="out",
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write beside, force it to disk, rename: a reader sees the old file or the whole new one.

    Yields:
        The file to write; it becomes ``path`` when the block ends, and is removed when it fails.

    Raises:
        CheckpointError: The disk is full, or the place may not be written to.
    """
    if path.exists() and not path.is_file():  # a device would be replaced too
        raise refuse(f"{path} cannot be written (it is a folder or a device)", "Name a file.", "write")
    # Two processes may write one file; the last one wins.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode
        yield part
        # safetensors lets its owner alone read a file, and a container may run as somebody else.
        part.chmod(mode)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch wraps a failed write in a RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        why = cause.strerror if isinstance(cause, OSError) else first_line(error)
        raise refuse(
            f"{path} cannot be written ({why})", "Make room, or name another place.", "write"
        ) from error
    finally:
        with suppress(OSError):  # not there, or not in a folder
            part.unlink()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a record, atomically.

    Raises:
        CheckpointError: It cannot be written.
    """
    with replacing(path) as part:
        part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def parts(path: Path) -> list[Path]:
    """The files that together hold the tensors of a file, a folder or a run.

    Raises:
        CheckpointError: One is missing, or the index of them cannot be read.
    """
    if not path.exists():
        raise refuse(
            f"There is no weight file at {path}",
            "Check the path; `python -m model weights list` lists the known names.",
            "missing",
        )
    if path.is_dir() and (path / LATEST).is_file():
        path /= LATEST
    if path.name in (LATEST, BEST) and path.is_file():
        state = pointed(path)
        if state is None or not state.is_file():
            named = state.name if state else "nothing"
            raise refuse(f"{path} names {named}, which is not there", "Give a state file itself.", "missing")
        return [state]
    if path.is_dir():
        inside = next((path / name for name in IN_FOLDER if (path / name).exists()), None)
        if inside is None:
            raise refuse(
                f"{path} holds none of {', '.join((*IN_FOLDER, LATEST))}",
                "Give the weight file itself, a folder as written by save_pretrained, or that of a training run.",
                "missing",
            )
        path = inside
    if not path.name.endswith(INDEX):
        return [path]
    found = [path.parent / name for name in parts_in(path)]
    if absent := [part.name for part in found if not part.exists()]:
        raise refuse(f"{path.name} lists {absent[0]}, which is not there", "Fetch all parts.", "missing")
    return found


def parts_in(index: Path) -> list[str]:
    """Names of the parts that an index lists, sorted. They lie beside it: a folder in a name is left out.

    Raises:
        CheckpointError: It is not such an index.
    """
    try:
        names = {Path(name).name for name in json.loads(index.read_text())["weight_map"].values()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _no_index(index) from error
    if not names or not all(name.endswith((".safetensors", ".bin")) for name in names):
        raise _no_index(index)
    return sorted(names)


def _no_index(index: Path) -> CheckpointError:
    return refuse(f"{index.name} is not an index of weight files", "Fetch it again.", "unreadable")


def pointed(pointer: Path) -> Path | None:
    """The state that ``LATEST`` or ``BEST`` of a run names, there or not; None where there is none."""
    if not pointer.is_file():
        return None
    with pointer.open("rb") as file:  # a stranger's may be of any size
        name = file.read(200).decode(errors="replace").strip()
    # Beside the pointer: a name with a folder in it could lead anywhere.
    return pointer.parent / Path(name).name if name else None


def configs_beside(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both of ``CONFIGS`` in the folder, where they speak of a Hugging Face model; empty where absent.

    Raises:
        CheckpointError: One is not JSON.
    """
    if not path.is_dir() and path.name not in IN_FOLDER:
        return {}, {}  # any other file may merely lie beside somebody's config
    config, processor = (_json_beside(path, name) for name in CONFIGS)
    return (config, processor) if "model_type" in config else ({}, {})


def _json_beside(path: Path, name: str) -> dict[str, Any]:
    file = (path if path.is_dir() else path.parent) / name
    try:
        values = json.loads(file.read_text()) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise refuse(
            f"{file.name} beside the weights is not JSON", "Fetch it again.", "unreadable"
        ) from error
    return values if isinstance(values, dict) else {}


def sha256(path: Path) -> str:
    """SHA-256 of one file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a weight file, or over those of a folder's parts in order, hex: as in ``RawFile``.

    Raises:
        CheckpointError: A file is missing.
    """
    return joint_digest([sha256(part) for part in parts(path)])


def joint_digest(digests: Sequence[str]) -> str:
    """One SHA-256 for a file's parts, from theirs in order; that of a single part is its own."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def check_container(path: Path) -> None:
    """Refuse a file that cannot hold weights, by its first and last bytes: a web page, a cut archive.

    Raises:
        CheckpointError: It is none of the containers that are read here.
    """
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # safetensors: the length of the header, the header, the tensors
        try:
            with safe_open(path, framework="numpy"):
                whole = True
        except SafetensorError:
            whole = False
    else:  # a zip ends in its own table; an old pickle begins with its protocol
        whole = zipfile.is_zipfile(path) or head[:1] == b"\x80"
    if not whole:
        raise refuse(
            f"{path.name} is not a complete weight file",
            "Fetch it again; .pth, .pt, .bin and .safetensors are read.",
            "unreadable",
        )


def names_decoder(path: Path) -> bool:
    """Whether weights have a decoder, told by names alone: all known layouts call it that. No pickle is opened.

    Raises:
        CheckpointError: A part is missing, cut or no weight file.
    """
    for part in parts(path):
        check_container(part)
        with part.open("rb") as file:
            front = file.read(_NAMES_BYTES)
        if front[8:9] == b"{":  # safetensors, whose head may speak of a decoder that is not there
            with safe_open(part, framework="numpy") as file:
                named = any("decoder" in name for name in file.keys())  # noqa: SIM118 (no mapping)
        else:
            named = b"decoder" in front
        if named:
            return True
    return False


def without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove what wrappers put into names; what a trainer stores beside its network keeps its own."""
    tensors = {_WRAPPED.sub("", key): value for key, value in tensors.items()}
    for prefix in _PREFIXES * 2:  # one may stand before the other
        if 2 * sum(key.startswith(prefix) for key in tensors) > len(tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
