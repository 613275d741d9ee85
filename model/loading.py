"""From a weight file to an engine that may serve.

    our own file, proved before       -> read with numpy, OpenVINO meets the proof: no torch in the process
    any other, or the first time here -> read with torch, the proof is made and kept, OpenVINO meets it
    a GPU, or no OpenVINO, or a failed proof -> torch

A proof lies beside the weights (``mini.proof.npz``, made by ``python -m model prove``) or under the user's cache,
by the hash of the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from model.checkpoints import files, registry
from model.checkpoints.files import FORMAT, Own, read_own
from model.config import MAEConfig
from model.devices import check_device, has_gpu
from model.engines import ENGINES, PRECISIONS, Engine, OpenVINOEngine, TorchEngine
from model.errors import CheckpointError, first_line
from model.positions import POSITIONS, Grid
from model.proof import LIMITS, Proof, make_proof

if TYPE_CHECKING:
    from model.checkpoints.store import Checkpoint

_LOGGER = logging.getLogger(__name__)

_PROOF, _REPORT = ".proof.npz", ".report.json"


@dataclass(frozen=True)
class Facts:
    """What a weight file says of itself, apart from the weights.

    Attributes:
        name: What it calls itself.
        digest: SHA-256 of the file, hex.
        config: Shape of the network.
        card: Licence, data, steps.
        parameters: Numbers that were trained.
    """

    name: str
    digest: str
    config: MAEConfig
    card: dict[str, Any]
    parameters: int

    @property
    def identity(self) -> str:
        """Names what is computed, hex: the weights and the config, which may lie beside them and change alone."""
        config = json.dumps(self.config.to_dict(), sort_keys=True)
        return hashlib.sha256(f"{self.digest} {config}".encode()).hexdigest()

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Facts:
        """Those of a file that torch has read."""
        network = checkpoint.network
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return cls(checkpoint.name, checkpoint.digest, network.config, checkpoint.card, parameters)


@dataclass(eq=False)
class Loaded:
    """Weights with the engine that computes them.

    Attributes:
        facts: What they are.
        engine: The chosen one.
        device: Where it computes: ``cpu``, ``cuda:0``.
        error: How far the engine was off torch's float32, relative to the largest value; None where it is that.
        note: Why a faster engine was not taken, a sentence; empty where none was passed over.
        again: Reads the file with torch, for what the engine cannot do.
    """

    facts: Facts
    engine: Engine
    _: KW_ONLY
    device: str = "cpu"
    error: float | None = None
    note: str = ""
    again: Callable[[], Checkpoint] | None = None

    def engine_for(self, grid: Grid) -> Engine:
        """The engine for pictures of this many patches.

        Raises:
            CheckpointError: It takes torch, and this installation comes without.
        """
        return self.engine if self.engine.handles(grid) else self._torch

    @cached_property
    def _torch(self) -> Engine:
        assert self.again is not None  # torch's engine handles everything, so this is another one
        return TorchEngine(self.again().network, self.device)

    def describe(self) -> dict[str, Any]:
        """Engine and precision, and how they were proved, JSON-ready."""
        return {
            "engine": self.engine.name,
            "precision": self.engine.precision,
            "engine_error": self.error,
            "engine_note": self.note,
        }


def with_torch(
    checkpoint: Checkpoint, device: str = "cpu", *, precision: str = "auto", note: str = ""
) -> Loaded:
    """A checkpoint as torch computes it.

    Raises:
        CheckpointError: The device does not have the precision.
    """
    engine = TorchEngine(checkpoint.network, device, precision)
    return Loaded(Facts.of(checkpoint), engine, device=device, note=note)


def open_weights(
    path: Path,
    device: str | None = None,
    *,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Loaded:
    """Open a weight file with the fastest engine that proves itself.

    Args:
        path: A file or folder of any known layout, or a name of the registry.
        device: ``cpu``, ``cuda``, ...; None for the GPU where there is one, or the CPU for OpenVINO.
        engine: ``auto``, ``openvino`` (on a CPU) or ``torch``.
        precision: ``float32``, or ``bfloat16`` where the device has it; ``auto``: that on a GPU, float32 on a CPU.
        threads: CPU threads of OpenVINO; None for those this process may use. Torch keeps its own number.

    Raises:
        CheckpointError: File, device, engine or precision cannot be used; or torch is needed, and is not installed.
    """
    _check_choice("engine", engine, ENGINES)
    _check_choice("precision", precision, PRECISIONS)
    device = device or ("cuda" if engine != "openvino" and has_gpu() else "cpu")
    if device != "cpu" and engine == "openvino":
        raise CheckpointError(
            f"OpenVINO computes on the CPU, but the requested device is {device!r}.",
            code="engine",
            hint="Leave the device out, or use engine=torch.",
            field="engine",
        )
    if device != "cpu" or engine == "torch":
        check_device(device)
        return with_torch(_read(path), device, precision=precision)
    precision = "float32" if precision == "auto" else precision
    try:
        proved = _proved_before(path)
        if proved is None:
            checkpoint = _read(path)
            proved = _Proved.of(checkpoint, _kept_proof(checkpoint))
        return _openvino(proved, threads, precision)
    except _Unproved as failure:
        if engine != "auto":
            raise CheckpointError(str(failure), code="engine", hint="Use engine=torch.") from failure
        _LOGGER.warning("%s Torch computes instead.", failure)
        return with_torch(_read(path), device, precision=precision, note=str(failure))


def prove(path: Path) -> tuple[Path, float]:
    """Make proof and report of a weight file and put them beside it, so that no service ever needs torch for it.

    Returns:
        The proof's file, and how far OpenVINO is off.

    Raises:
        CheckpointError: The file cannot be used, or OpenVINO computes something else from it.
    """
    checkpoint = _read(path)
    path = registry.locate(path).path
    if checkpoint.layout != "unmask":
        raise CheckpointError(
            f"{path.name} is no file of ours: it takes torch to read it, proof or not.",
            code="engine",
            hint="Convert it first: python -m model convert IN OUT --to unmask.",
        )
    proof = make_proof(checkpoint)
    try:
        loaded = _openvino(_Proved.of(checkpoint, proof), None, "float32")
    except _Unproved as failure:
        raise CheckpointError(str(failure), code="engine", hint="Serve it with engine=torch.") from failure
    place = _beside(path)
    proof.save(place)
    from model.checkpoints.report import inspect  # pulls torch

    report = inspect(path).to_dict() | {"path": path.name}
    files.write_json(_beside(path, _REPORT), report)
    return place, loaded.error or 0.0


def report_beside(path: Path, digest: str) -> dict[str, Any] | None:
    """What ``prove`` kept of a file's report; None where there is none of these very weights."""
    place = _beside(path, _REPORT)
    if not place.is_file():
        return None
    try:
        report = json.loads(place.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return report if isinstance(report, dict) and report.get("digest") == digest else None


def said_of(path: Path) -> dict[str, Any]:
    """What is known of weights before they are read.

    Returns:
        Shape and card from a head of our own layout; of others, the masks they were trained on, where the registry
        has it; else nothing.
    """
    found = registry.locate(path)
    own = _own(found.path)
    if own.config:
        return {**(own.card or {}), "grid": list(own.config.grid), **own.config.to_dict()}
    return {"strategy": found.entry.trained_with} if found.entry and found.entry.trained_with else {}


class _Unproved(Exception):
    """OpenVINO cannot be had, or does not compute what torch does."""


@dataclass(frozen=True)
class _Proved:
    """What OpenVINO starts from.

    Attributes:
        facts: What the weights are.
        weights: Under the names of the network's parameters.
        proof: What torch makes of them.
        again: Reads the file with torch.
    """

    facts: Facts
    weights: Mapping[str, NDArray[Any]]
    proof: Proof
    again: Callable[[], Checkpoint]

    @classmethod
    def of(cls, checkpoint: Checkpoint, proof: Proof) -> _Proved:
        """That of a file that torch has read."""
        state = checkpoint.network.state_dict()
        weights = {name: value.detach().cpu().numpy() for name, value in state.items()}
        return cls(Facts.of(checkpoint), weights, proof, lambda: checkpoint)


def _openvino(proved: _Proved, threads: int | None, precision: str) -> Loaded:
    facts = proved.facts
    for numbers in dict.fromkeys(("float32", precision)):  # what rounding may hide, the first of them shows
        try:
            engine = OpenVINOEngine(facts.config, proved.weights, threads=threads, precision=numbers)
        except (ImportError, RuntimeError) as error:  # openvino raises RuntimeError for whatever it cannot do
            raise _Unproved(f"OpenVINO cannot be used ({first_line(error)}).") from error
        off = proved.proof.error(engine.run)
        if off > LIMITS[numbers]:
            raise _Unproved(
                f"OpenVINO differs from torch by {off:.1e} of the largest value with {facts.name}, more than the "
                f"{LIMITS[numbers]:.0e} allowed in {numbers}."
            )
    return Loaded(facts, engine, error=off, again=proved.again)


def _proved_before(name_or_path: Path) -> _Proved | None:
    """A file of our own layout that was proved before, read without torch; None for any other."""
    found = registry.locate(name_or_path)
    path = found.path
    if not path.is_file() or path.suffix != ".safetensors":
        return None
    digest = files.digest(path)
    found.check(digest)
    kept = (_beside(path), _cached(digest))
    proof = next((known for place in kept if (known := Proof.read(place, digest))), None)
    if proof is None:
        return None
    own = _own(path)
    if own.name is None or own.config is None or own.card is None:
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, TypeError):  # TypeError: numbers that numpy does not have
        return None  # torch's reader says what is wrong
    parameters = sum(array.size for name, array in weights.items() if name not in POSITIONS)
    facts = Facts(own.name, digest, own.config, own.card, parameters)
    return _Proved(facts, weights, proof, lambda: _read(name_or_path))


def _own(path: Path) -> Own:
    """What the head of a file of our own layout tells; nothing of any other, and of one that is broken."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
        return read_own(path.name, header) if header.get("format") == FORMAT else Own()
    except (OSError, SafetensorError, CheckpointError):
        return Own()  # whoever loads it says what is wrong


def _kept_proof(checkpoint: Checkpoint) -> Proof:
    """The proof, from the cache or made now and kept there."""
    key = checkpoint.digest
    if checkpoint.layout != "unmask":  # its config lies beside the weights, and may change without them
        config = json.dumps(checkpoint.network.config.to_dict())
        key += f"-{hashlib.sha256(config.encode()).hexdigest()[:8]}"
    place = _cached(key)
    proof = Proof.read(place, checkpoint.digest)
    if proof is None:
        proof = make_proof(checkpoint)
        try:
            proof.save(place)
        except (OSError, CheckpointError) as error:  # it only costs the next start some seconds
            _LOGGER.info("The proof cannot be kept: %s", error)
    return proof


def _beside(path: Path, kind: str = _PROOF) -> Path:
    return path.with_name(path.name.removesuffix(".safetensors") + kind)


def _cached(key: str) -> Path:
    return proofs() / f"{key}.npz"


def proofs() -> Path:
    """The folder of proofs that do not lie beside their weights."""
    return files.cache("proofs")


def _read(path: Path) -> Checkpoint:
    """Read with torch.

    Raises:
        CheckpointError: The file cannot be used; or torch is not installed.
    """
    try:
        from model.checkpoints import store  # pulls torch, which must not delay a start that can do without
    except ImportError as error:
        raise CheckpointError(
            f"{path.name} needs torch, which this installation lacks ({error}).",
            code="torch-missing",
            hint="Use the full image (unmask instead of unmask:slim), or pip install torch timm.",
        ) from error
    return store.read(path)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise CheckpointError(
            f"{name} is {value!r:.60}; it must be one of {', '.join(known)}.",
            code=name,
            hint=f"Leave out {name}, or choose one of these.",
            field=name,
        )
