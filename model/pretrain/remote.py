"""Shards at http(s) addresses: fetched once into a folder of this machine, and read from there ever after.

A local copy gives what ranges of a remote file would not give as simply: random access at the disk's speed, the
same bytes for every epoch and for a resumed run, and a host that may go away while the run goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from filelock import FileLock

from model.checkpoints.download import download
from model.errors import CheckpointError, DataError

#: Shards fetched side by side.
AT_ONCE = 4


def is_address(place: Path | str) -> bool:
    """Whether this is an http(s) address and no path."""
    return str(place).startswith(("http://", "https://"))


def fetch(addresses: Sequence[str], cache: Path) -> list[Path]:
    """Local copies of shards, in the order of the addresses; what is there already is taken as it is.

    Raises:
        DataError: An address is not a shard's, cannot be reached, or was interrupted too often (code ``data-remote``).
    """
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as threads:
        return list(threads.map(lambda address: _fetch(address, cache), addresses))


def _fetch(address: str, cache: Path) -> Path:
    name = PurePosixPath(urlsplit(address).path).name
    if not name.endswith(".tar"):
        raise DataError(
            f"{address} does not end in .tar.",
            code="data-remote",
            hint="Addresses name WebDataset shards; braces such as {00000..00006} count, * cannot be looked up.",
            field="data",
        )
    # Two addresses may end in the same name.
    path = cache / hashlib.sha256(address.encode()).hexdigest()[:16] / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(name + ".wanted")):  # processes that train together share the copy
            if not path.is_file():
                download(address, path)
    except (CheckpointError, OSError) as error:
        raise DataError(
            str(error),
            code="data-remote",
            hint="Check address and disk, then run the same command again: it goes on from what came.",
            field="data",
        ) from error
    return path
