"""The models that are served: the first is always there, others are loaded on request and dropped when room is short.

Loading happens in a thread of its own, one model at a time, so those being served notice nothing of it. What is
in progress keeps its model until it is done, whatever the shelf does meanwhile.
"""

import asyncio
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from model import Reconstructor, UnmaskError
from model.checkpoints import files, registry
from model.loading import said_of
from server import problems
from server.batcher import stand_back
from server.problems import ModelUnavailableError
from server.reports import Reports

logger = structlog.stdlib.get_logger("unmask.models")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

WEIGHT_BYTES = 4  # the network computes in float32
# A file that could not be used is not read again by every request that names it.
RETRY_S = 30.0


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: What it is called here, in requests and answers.
        path: Its file, or its folder.
        found: What the registry knows of it, and holds it to.
    """

    name: str
    path: Path
    found: registry.Found | None = field(default=None, compare=False)

    @property
    def size_bytes(self) -> int:
        """Bytes of its files: all that is known of a model's need before it is loaded.

        Raises:
            CheckpointError: The folder holds no weights.
        """
        return sum(part.stat().st_size for part in files.parts(self.path))


Load = Callable[[Path], Reconstructor]


def find_sources(entries: Sequence[str]) -> list[Source]:
    """What the setting names: paths or names of the registry, each also as NAME=PATH.

    None means all shipped ones, and behind them those that were pulled or added and can paint.

    Raises:
        ValueError: An entry leads nowhere, or two have one name.
    """
    if not entries:
        return [*(ours := _shipped()), *_fetched({source.name for source in ours})]
    sources = [_source(entry) for entry in entries]
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Two models are called {', '.join(twice)}; write NAME=PATH for one of them.")
    return sources


def _shipped() -> list[Source]:
    """The weight files that come with the program, the default first."""
    found = [Source(path.stem, path) for path in sorted(registry.shipped_folder().glob("*.safetensors"))]
    return sorted(found, key=lambda source: source.name != registry.DEFAULT)


def _fetched(taken: set[str]) -> Iterator[Source]:
    """What was pulled or added; the log tells what of it is not served, for the rest can do without."""
    for entry in registry.entries().values():
        try:
            if registry.state(entry) not in ("pulled", "added"):
                continue
            source = _able(entry)
            if source.name in taken:
                raise ValueError(f"Another model is called {source.name}.")
        except (ValueError, UnmaskError, OSError) as error:
            logger.info("weights not served", weights=entry.name, reason=str(error))
        else:
            taken.add(source.name)
            yield source


def _able(entry: registry.Entry) -> Source:
    """Weights that can paint, as far as that is seen before they are read."""
    found = registry.find(entry)
    if found is None:
        raise ValueError("Its file is gone.")
    if not files.names_decoder(found.path):
        raise ValueError("It has no decoder.")
    return _named(entry.name.rpartition("/")[2], found)


def _source(entry: str) -> Source:
    name, equals, text = entry.partition("=")
    if equals:
        return _named(name, _located(text))
    if found := next((source for source in _shipped() if source.name == entry), None):
        return found
    weights, path = _located(entry), Path(entry).absolute()
    return _named(path.stem if path.is_file() else path.name, weights)


def _named(name: str, found: registry.Found) -> Source:
    if not NAME.fullmatch(name):
        raise ValueError(
            f"'{name}' cannot be a model's name; write NAME={found.path} with letters, digits, . _ or -."
        )
    return Source(name, found.path, found)


def _located(text: str) -> registry.Found:
    """Where the weights of a path or of a name of the registry lie; nothing is fetched."""
    try:
        found = registry.locate(text)
    except UnmaskError as error:
        raise ValueError(f"{error} {error.hint}") from error
    found = replace(found, path=found.path.absolute())
    if not found.path.exists():
        names = ", ".join(source.name for source in _shipped())
        raise ValueError(f"There is no weight file {found.path}. Shipped models are {names}.")
    return found


class Models:
    """Loaded models by name, the least recently used first to go.

    All methods but `load_default` belong to the event loop.

    Args:
        sources: What may be asked for; the first is the default and is never dropped.
        load: Reads one; runs in a thread.
        max_bytes: Weights held at a time, the default's included.
    """

    def __init__(self, sources: Sequence[Source], load: Load, *, max_bytes: int) -> None:
        self._sources = {source.name: source for source in sources}
        self._load = load
        self._max_bytes = max_bytes
        self._said = {source.name: said_of(source.path) for source in sources}
        self._loaded: OrderedDict[str, Reconstructor] = OrderedDict()
        self._loading: dict[str, asyncio.Task[Reconstructor]] = {}
        self._failed: dict[str, float] = {}  # when
        self.reports = Reports()
        self._one_at_a_time = asyncio.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="unmask-load", initializer=stand_back)
        self.default_name = sources[0].name

    def load_default(self) -> None:
        """Load the first one, before anything is served.

        Raises:
            CheckpointError: It cannot be used.
        """
        self._loaded[self.default_name] = self._read(self._sources[self.default_name])

    @property
    def default(self) -> Reconstructor:
        """The one for requests that name none."""
        return self._loaded[self.default_name]

    @property
    def sources(self) -> list[Source]:
        """Where all of them come from, the default's first."""
        return list(self._sources.values())

    @property
    def names(self) -> list[str]:
        """All that may be asked for, the default first."""
        return list(self._sources)

    def is_loaded(self, name: str) -> bool:
        """Whether a model answers without being loaded first."""
        return name in self._loaded

    def source(self, name: str, *, status: int = 422) -> Source:
        """Where a model comes from.

        Args:
            name: As a client wrote it.
            status: Of the refusal.

        Raises:
            BadRequestError: It is none of ours.
        """
        if name in self._sources:
            return self._sources[name]
        raise problems.unknown("model", name, self._sources, status=status, field="model")

    async def get(self, name: str | None = None) -> Reconstructor:
        """A model, loaded if need be.

        Raises:
            BadRequestError: It is none of ours.
            ModelUnavailableError: Its file cannot be used, or needs more memory than there may be.
        """
        source = self.source(name or self.default_name)
        if source.name in self._loaded:
            self._loaded.move_to_end(source.name)
            return self._loaded[source.name]
        if source.name not in self._loading:
            self._refuse_failed(source.name)
            task = asyncio.create_task(self._fetch(source))
            # Its error counts as seen, even if nobody waits for it.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._loading[source.name] = task
        # Whoever waits may go; the model comes all the same, for the next one.
        return await asyncio.shield(self._loading[source.name])

    def close(self) -> None:
        """Begin no more loading."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.reports.close()

    def listing(self) -> list[dict[str, Any]]:
        """All models, the default first: what they are, of those not loaded what their files say of themselves."""
        return [
            (self._loaded[name].describe() if name in self._loaded else self._said[name])
            | {"name": name, "default": name == self.default_name, "loaded": name in self._loaded}
            for name in self._sources
        ]

    async def report(self, name: str) -> dict[str, Any]:
        """What a weight file is, as `python -m model inspect` tells it; its folder is left out."""
        return await self.reports.get(self.source(name).path, (await self.get(name)).digest)

    async def _fetch(self, source: Source) -> Reconstructor:
        try:
            async with self._one_at_a_time:
                self._make_room(source.size_bytes, source.name)
                loop = asyncio.get_running_loop()
                reconstructor = await loop.run_in_executor(self._pool, self._read, source)
                self._make_room(weight_bytes(reconstructor), source.name)
                self._loaded[source.name] = reconstructor
                return reconstructor
        except Exception:  # also what a full GPU raises, which must not fill it again for every request
            logger.exception("model cannot be loaded", model=source.name)
            self._failed[source.name] = time.monotonic()
            raise ModelUnavailableError(source.name) from None
        finally:
            del self._loading[source.name]

    def _read(self, source: Source) -> Reconstructor:
        reconstructor = self._load(source.path)
        if source.found:
            # By a path alone a file that was added may be another one by now; by its name it may not.
            source.found.check(reconstructor.digest)
        reconstructor.name = source.name  # answers name what was asked for, whatever the file calls itself
        return reconstructor

    def _make_room(self, needed: int, name: str) -> None:
        """Drop what was not asked for longest, until `needed` more fits."""
        if needed + weight_bytes(self.default) > self._max_bytes:
            raise ModelUnavailableError(name)
        while needed + sum(map(weight_bytes, self._loaded.values())) > self._max_bytes:
            oldest = next(loaded for loaded in self._loaded if loaded != self.default_name)
            del self._loaded[oldest]
            logger.info("model dropped", model=oldest)

    def _refuse_failed(self, name: str) -> None:
        if time.monotonic() - self._failed.get(name, -math.inf) < RETRY_S:
            raise ModelUnavailableError(name)


def weight_bytes(reconstructor: Reconstructor) -> int:
    """Memory that a loaded model's weights take."""
    return WEIGHT_BYTES * reconstructor.parameters
