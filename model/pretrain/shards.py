"""A folder of pictures to tar shards: upright, of one short side, as JPEG, with a JSON sidecar each.

Pictures in subfolders get these as their classes, as evaluation takes them from the folder itself.
Packing once saves decoding large photos at every sample, and thousands of small files on a cluster's disk.
The same folder gives the same bytes (one version of torchvision given). Readable by ``Photos.open`` and by
any WebDataset reader.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torchvision.io import encode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

from model.checkpoints.files import make_folder, replacing
from model.errors import DataError
from model.pretrain.data import Entry, Photos, in_order

QUALITY = 90
#: Pictures in the making; bounds the memory.
AHEAD = 64


@dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
        shards: The files.
        photos: Photos in them.
        broken: Which pictures were left out, and why.
        found: What the folder holds, in words.
    """

    shards: tuple[Path, ...]
    photos: int
    broken: tuple[str, ...]
    found: str


def pack(folder: Path, out: Path, *, side: int = 256, per_shard: int = 2000, workers: int = 1) -> Packed:
    """Pack all pictures of a folder, searched to any depth, in the order of their names.

    Args:
        folder: Where the pictures are.
        out: Where ``shard-00000.tar``, ... are written.
        side: Short side at most, pixels; smaller pictures are not enlarged.
        per_shard: Photos per shard.
        workers: Threads that decode, scale and encode.

    Raises:
        DataError: The folder holds no picture that can be decoded, or ``out`` holds shards already.
        CheckpointError: ``out`` cannot be made or written to.
    """
    if list(out.glob("shard-*.tar")):
        raise DataError(
            f"{out} holds shards already.", code="data-out", hint="Give an empty folder.", field="out"
        )
    photos = Photos.open([folder])
    make_folder(out)
    broken: list[str] = []
    whole = _encoded(photos, side, workers, broken)
    shards: list[Path] = []
    count = 0
    classes = sorted({entry.subfolder for entry in photos.entries} - {""})
    while pictures := list(itertools.islice(whole, per_shard)):
        path = out / f"shard-{len(shards):05d}.tar"
        _write(path, pictures, count, folder.resolve().name, classes)
        shards.append(path)
        count += len(pictures)
    if not count:
        raise DataError(
            f"None of the {len(photos)} pictures under {folder} can be decoded.",
            code="data-broken",
            hint="Look at one of them with another program.",
            field="folder",
        )
    return Packed(tuple(shards), count, tuple(broken), photos.told)


def _encoded(photos: Photos, side: int, workers: int, broken: list[str]) -> Iterator[tuple[Entry, bytes]]:
    """Pictures and their JPEG bytes in order; what cannot be decoded goes to ``broken``, with the reason."""

    def encode(number: int) -> bytes | None:
        picture = photos.decode_or_none(number)
        if picture is None:
            return None
        if min(picture.shape[1:]) > side:
            picture = resize(picture, [side], InterpolationMode.BICUBIC, antialias=True)
        return bytes(encode_jpeg(picture, QUALITY).numpy())

    with ThreadPoolExecutor(workers, thread_name_prefix="pack") as threads:
        encoded = in_order(encode, range(len(photos)), threads, AHEAD)
        for number, data in enumerate(tqdm(encoded, total=len(photos), desc="shards", unit="photo")):
            if data is None:
                broken.append(photos.fault(number))
            else:
                yield photos.entries[number], data


def _write(
    path: Path, pictures: list[tuple[Entry, bytes]], first: int, source: str, classes: list[str]
) -> None:
    """One shard, atomically; keys run on through all shards."""
    with replacing(path) as part, tarfile.open(part, "w") as shard:
        for number, (entry, data) in enumerate(pictures, first):
            facts: dict[str, object] = {"source": source, "file": entry.name}
            if entry.subfolder:
                facts |= {"label": classes.index(entry.subfolder), "class": entry.subfolder}
            sidecar = json.dumps(facts).encode()
            for suffix, content in ((".jpg", data), (".json", sidecar)):
                member = tarfile.TarInfo(f"{number:06d}{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
