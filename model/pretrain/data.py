"""Photos for training: folders and WebDataset tar shards, by path, pattern or address, read at random by number.

Knows files and pictures, but nothing of samples and crops (``samples``).
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import re
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from model.checkpoints import files
from model.errors import DataError, ImageError, first_line
from model.images import SUFFIXES, Picture
from model.pretrain.remote import fetch, is_address

if TYPE_CHECKING:  # loaded on first use: photos are found without it
    from torch import Tensor

T = TypeVar("T")
#: Takes a shard, the key of a sidecar in it, and the facts that this holds.
Heed = Callable[[Path, str, dict[str, Any]], None]

#: Kinds of files that are named where they were left out.
_MOST_KINDS = 10
#: How files of the programs begin that people compress tars with: gzip, bzip2, xz, Zstandard.
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class Entry(NamedTuple):
    """Where one photo's bytes lie."""

    path: Path
    offset: int
    size: int
    source: str  # a shard's sidecar names it; for a folder, the folder's name
    name: str

    @property
    def place(self) -> str:
        """For people: the file, or the name within a shard and the shard."""
        return str(self.path) if self.path.name == Path(self.name).name else f"{self.name} in {self.path}"

    @property
    def subfolder(self) -> str:
        """What a folder says its picture shows: the subfolder that it lies in, at any depth; '' for none."""
        first, *further = Path(self.name).parts
        return first if further else ""


@dataclass(frozen=True)
class Photos:
    """All photos under some paths, in a fixed order, readable by number.

    Attributes:
        entries: Where each lies.
        left_out: How many other files the folders hold, by their suffix.
    """

    entries: tuple[Entry, ...]
    left_out: Counter[str] = field(default_factory=Counter, compare=False)

    @classmethod
    def open(
        cls, paths: Sequence[Path | str], cache: Path | None = None, *, heed: Heed | None = None
    ) -> Photos:
        """Index folders (recursively) and ``.tar`` shards; pictures are not decoded.

        Args:
            paths: Paths, http(s) addresses of shards, or patterns of them such as ``shard-{00000..00006}.tar`` and
                (paths only) ``shards/*.tar``.
            cache: Where shards from addresses are kept; None for the user's (``files.cache``).
            heed: Is told what each sidecar of a shard says.

        Raises:
            DataError: A path does not exist, an address cannot be fetched, or no picture is found.
        """
        entries: list[Entry] = []
        left_out: Counter[str] = Counter()
        for path in itertools.chain.from_iterable(_local(path, cache) for path in paths):
            if path.is_dir():
                pictures, others = pictures_below(path)
                entries += pictures
                left_out += others
            elif path.suffix == ".tar" and path.is_file():
                entries += _shard(path, heed)
            else:
                raise DataError(
                    f"{path} is neither a folder nor a .tar shard."
                    if path.exists()
                    else f"There is nothing at {path}.",
                    code="data-path",
                    hint="Give folders of pictures or WebDataset .tar files.",
                    field="data",
                )
        if not entries:
            beside = f" ({_told(left_out)})" if left_out else ""
            raise DataError(
                f"No picture found under {', '.join(map(str, paths))}{beside}.",
                code="data-empty",
                hint=f"Pictures are files ending in {', '.join(sorted(SUFFIXES))}.",
                field="data",
            )
        return cls(tuple(entries), left_out)

    def __len__(self) -> int:
        """Number of photos."""
        return len(self.entries)

    @property
    def told(self) -> str:
        """What was found and what was not taken, in words: ``200 photos of 2 sources; left out: 50 .heic``."""
        sources = len({entry.source for entry in self.entries})
        found = f"{len(self)} photo{'s' * (len(self) != 1)} of {sources} source{'s' * (sources != 1)}"
        return f"{found}; {_told(self.left_out)}" if self.left_out else found

    @property
    def digest(self) -> str:
        """Which photos, in which order; SHA-256 hex."""
        return hashlib.sha256(json.dumps(places(self.entries)).encode()).hexdigest()

    def read(self, number: int) -> bytes:
        """The file bytes of one photo.

        Raises:
            DataError: The file or disk no longer gives them (code ``data-unreadable``).
        """
        entry = self.entries[number]
        try:
            with entry.path.open("rb") as file:
                return os.pread(file.fileno(), entry.size, entry.offset)
        except OSError as error:
            # Not the same as a broken picture: it may come back, and skipping it would change the run.
            raise DataError(
                f"{entry.place} cannot be read ({error.strerror}).",
                code="data-unreadable",
                hint="Check that the disk is there, then go on with --resume.",
                field="data",
            ) from error

    def decode(self, number: int) -> Tensor:
        """One photo as ``decode`` gives it.

        Raises:
            DataError: It cannot be decoded (code ``data-broken``); the message names the file.
        """
        entry = self.entries[number]
        try:
            return decode(self.read(number), entry.name)
        except ImageError as error:
            raise DataError(
                f"{entry.place} cannot be decoded: {error}",
                code="data-broken",
                hint="Remove or replace this picture.",
                field="data",
            ) from error

    def decode_or_none(self, number: int) -> Tensor | None:
        """The same; None where the photo cannot be decoded.

        Raises:
            DataError: The file can no longer be read at all.
        """
        try:
            return self.decode(number)
        except DataError as error:
            if error.code != "data-broken":
                raise
            return None

    def fault(self, number: int) -> str:
        """Why a photo cannot be decoded, with its name; a clause without a full stop."""
        try:
            self.decode(number)
        except DataError as error:
            return str(error).removesuffix(".")
        return f"{self.entries[number].place} could not be decoded, and now can"


def decode(data: bytes, name: str = "image") -> Tensor:
    """The bytes of a picture as ``[3, H, W] uint8``, upright.

    JPEGs, by far the most, by the faster decoder; whatever else may have 16 bits, transparency or a palette is read
    as it is for serving, so that a network is trained on what it will be shown.

    Raises:
        ImageError: They are no picture, or a broken one.
    """
    import torch
    from torchvision.io import ImageReadMode, decode_image

    try:
        if data.startswith(b"\xff\xd8"):
            stored = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            return decode_image(stored, ImageReadMode.RGB, apply_exif_orientation=True)
        with Picture(data, field=name) as picture:
            pixels = picture.cut((0, 0, *picture.size), picture.size)
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    except (RuntimeError, ValueError, ImageError) as error:
        raise ImageError(
            first_line(error), code="image-unreadable", hint="Remove or replace this picture.", field=name
        ) from error


def in_order(make: Callable[[int], T], numbers: Sequence[int], threads: Executor, ahead: int) -> Iterator[T]:
    """What threads make of each number, one after the other; so many are made before they are asked for."""
    left = iter(numbers)
    made = deque(threads.submit(make, number) for number in itertools.islice(left, ahead))
    while made:
        yield made.popleft().result()
        made.extend(threads.submit(make, number) for number in itertools.islice(left, 1))


def places(entries: Iterable[Entry]) -> list[Any]:
    """Which photos, for a digest: all but the folders above, so that moved photos are the same ones."""
    return [[entry.path.name, *entry[1:]] for entry in entries]


def expand(pattern: Path) -> list[Path]:
    """Paths a pattern stands for: ``{00000..00006}`` counts, ``{a,b}`` lists, ``*`` and ``?`` are globbed.

    A path that exists is taken as it stands, whatever characters its name holds.

    Raises:
        DataError: A glob matches nothing.
    """
    if pattern.exists():
        return [pattern]
    named = expand_braces(str(pattern))
    if len(named) > 1:
        return [path for name in named for path in expand(Path(name))]
    pattern = Path(named[0])
    if not glob.has_magic(str(pattern)):
        return [pattern]
    found = sorted(Path(path) for path in glob.glob(str(pattern), recursive=True))  # noqa: PTH207 (absolute too)
    if not found:
        raise DataError(
            f"{pattern} matches no file or folder.", code="data-path", hint="Check the pattern.", field="data"
        )
    return found


def _local(place: Path | str, cache: Path | None) -> list[Path]:
    """Paths on this machine that a path, an address or a pattern of either stands for."""
    if is_address(place):
        return fetch(expand_braces(str(place)), cache or files.cache("shards"))
    return expand(Path(place))


def expand_braces(pattern: str) -> list[str]:
    """Names a pattern stands for: ``{00000..00006}`` counts, ``{a,b}`` lists."""
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if not brace:
        return [pattern]
    before, after = pattern[: brace.start()], pattern[brace.end() :]
    return [name for word in _words(brace[1]) for name in expand_braces(f"{before}{word}{after}")]


def _words(inside: str) -> list[str]:
    """What stands for one pair of braces: a range of whole numbers, its zeros kept, or a comma-separated list."""
    if counted := re.fullmatch(r"(\d+)\.\.(\d+)", inside):
        first, last = counted.groups()
        if int(first) > int(last):
            raise DataError(
                f"{{{inside}}} counts from the larger number to the smaller.",
                code="data-path",
                hint=f"Write {{{last}..{first}}}.",
                field="data",
            )
        return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return inside.split(",")


def pictures_below(folder: Path) -> tuple[list[Entry], Counter[str]]:
    """All pictures of a folder, searched to any depth, in the order of their names, and suffixes of what is none.

    What is hidden (``._cat.jpg`` of a Mac, folders of thumbnails) does not count as either.
    """
    found: list[tuple[list[str], int]] = []
    others: Counter[str] = Counter()
    for names, entry in _files_below(str(folder), [], ()):
        suffix = PurePosixPath(entry.name).suffix.lower()
        if suffix in SUFFIXES and _is(entry, "file"):
            found.append((names, entry.stat().st_size))
        else:
            others[f"{suffix} that is no file" if suffix in SUFFIXES else suffix or "without a suffix"] += 1
    found.sort()
    source = folder.name or folder.resolve().name  # "." has none
    return [Entry(folder.joinpath(*names), 0, size, source, "/".join(names)) for names, size in found], others


def _files_below(
    folder: str, names: list[str], above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[list[str], os.DirEntry[str]]]:
    """Files and the folders' names that lead to them. Links to folders are followed, but not into themselves.

    Listed by ``os.scandir``: a million photos on a cluster's disk are then asked for their size, and no more.
    """
    try:
        with os.scandir(folder) as listed:
            entries = [entry for entry in listed if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed ({error.strerror}).",
            code="data-unreadable",
            hint="Check that the disk is there and may be read.",
            field="data",
        ) from error
    facts = Path(folder).stat()
    here = (facts.st_dev, facts.st_ino)
    if here in above:
        return
    for entry in entries:
        inside = [*names, entry.name]
        if _is(entry, "dir"):
            yield from _files_below(entry.path, inside, (*above, here))
        else:
            yield inside, entry


def _is(entry: os.DirEntry[str], kind: Literal["dir", "file"]) -> bool:
    """Whether it is, or leads to, one of this kind; a link may lead nowhere, or to itself."""
    try:
        return entry.is_dir() if kind == "dir" else entry.is_file()
    except OSError:
        return False


def _told(left_out: Counter[str]) -> str:
    listed = sorted(left_out.items(), key=lambda of: (-of[1], of[0]))
    kinds = [f"{count} {suffix}" for suffix, count in listed[:_MOST_KINDS]]
    further = sum(count for _, count in listed[_MOST_KINDS:])
    return "left out: " + ", ".join([*kinds, f"{further} others"] if further else kinds)


def refuse_shared(train: Photos, held_out: Photos, field: str = "test") -> None:
    """Refuse to judge by what is learned from: the same bytes of the same file. Copies elsewhere are not found.

    Raises:
        DataError: A photo is among both; named.
    """
    known = {(os.path.abspath(entry.path), entry.offset) for entry in train.entries}  # noqa: PTH100 (no disk)
    shared = [entry for entry in held_out.entries if (os.path.abspath(entry.path), entry.offset) in known]  # noqa: PTH100
    if shared:
        raise DataError(
            f"{len(shared)} of {len(held_out)} {field} photos are also training photos, "
            f"starting with {shared[0].name}.",
            code="data-shared",
            hint=f"Give other photos with --{field}.",
            field=field,
        )


def _shard(path: Path, heed: Heed | None) -> list[Entry]:
    """Pictures of a tar shard by offset; the JSON sidecars tell their source, and whoever heeds them the rest."""
    pictures: list[tuple[str, tarfile.TarInfo]] = []
    sources: dict[str, str] = {}
    try:
        # Not compressed: photos are read where they lie.
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                stem, _, suffix = member.name.rpartition(".")
                if not member.isfile() or PurePosixPath(member.name).name.startswith("."):
                    continue
                if f".{suffix.lower()}" in SUFFIXES:
                    pictures.append((stem, member))
                elif suffix == "json" and (file := shard.extractfile(member)):
                    facts = json.load(file)
                    if not isinstance(facts, dict):
                        continue
                    if "source" in facts:
                        sources[stem] = str(facts["source"])
                    if heed:
                        heed(path, stem, facts)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}).",
            code="data-unreadable",
            hint="Check that the disk is there and may be read.",
            field="data",
        ) from error
    except (tarfile.TarError, ValueError, EOFError) as error:
        with path.open("rb") as opened:
            compressed = opened.read(6).startswith(_COMPRESSED)
        raise DataError(
            f"{path} is compressed; photos are read from where they lie in a plain tar."
            if compressed
            else f"{path} is not a tar shard, or is damaged ({error}).",
            code="data-shard",
            hint="Decompress it." if compressed else "Pack or fetch it again.",
            field="data",
        ) from error
    return [
        Entry(path, member.offset_data, member.size, sources.get(stem, path.stem), member.name)
        for stem, member in pictures
    ]
