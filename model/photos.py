"""Photos on the command line: found, named, decoded and finished by threads, run through the network in batches.

Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from model.errors import ImageError, MaskError, UnmaskError

W = TypeVar("W")
D = TypeVar("D")
T = TypeVar("T")

#: Photos that are run together; those ready ahead of them are twice as many.
_BATCH = 32


def find(paths: Sequence[Path]) -> dict[str, Path]:
    """Pictures, and those of folders at any depth, by their paths below the folder that holds all that is given.

    Raises:
        DataError: A folder holds no picture.
    """
    from tqdm import tqdm

    from model.pretrain.data import Photos

    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = Photos.open([path])
            tqdm.write(f"{path}: {inside.told}.", file=sys.stderr)
            found += [entry.path for entry in inside.entries]
        else:
            found.append(path)
    folders = [os.path.abspath(path if path.is_dir() else path.parent) for path in paths]  # noqa: PTH100 (no "..")
    top = os.path.commonpath(folders)
    return {Path(os.path.relpath(path, top)).as_posix(): path for path in found}


def each(
    photos: Mapping[str, Path],
    prepare: Callable[[bytes], W],
    run: Callable[[list[W]], list[D]],
    finish: Callable[[str, W, D], T],
) -> Iterator[tuple[str, T | UnmaskError]]:
    """What becomes of each photo, in order; of one that cannot be used its error, which is told at once.

    Threads prepare and finish; the caller's runs the network.
    """
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    from model.images import file_of
    from model.pretrain.data import in_order

    names = list(photos)

    def begin(number: int) -> W | UnmaskError:
        return _tried(lambda: prepare(file_of(photos[names[number]])))

    with ThreadPoolExecutor() as pool, tqdm(total=len(names), unit="photo") as bar:
        begun = zip(names, in_order(begin, range(len(names)), pool, 2 * _BATCH), strict=True)
        while batch := list(itertools.islice(begun, _BATCH)):
            done = iter(run([work for _, work in batch if not isinstance(work, UnmaskError)]))
            ended = [
                work if isinstance(work, UnmaskError) else pool.submit(_tried, finish, name, work, next(done))
                for name, work in batch
            ]
            for (name, _), one in zip(batch, ended, strict=True):
                made = one if isinstance(one, UnmaskError) else one.result()
                if isinstance(made, UnmaskError):
                    tqdm.write(f"{photos[name]} is left out: {made} {made.hint}", file=sys.stderr)
                yield name, made
                bar.update()


def _tried(make: Callable[..., T], *given: Any) -> T | UnmaskError:
    """What is made, or why this one photo allows none."""
    try:
        return make(*given)
    except (ImageError, MaskError) as error:
        return error


def refuse_broken(done: int, photos: int) -> None:
    """Say at the end that some are missing.

    Raises:
        ImageError: Some are.
    """
    if done < photos:
        raise ImageError(
            f"{photos - done} of {photos} pictures could not be used; they are named above.",
            code="image-broken",
            hint="Replace or leave out these" + ("; the others are done." if done else "."),
            field="photos",
        )
