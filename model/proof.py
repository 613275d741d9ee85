"""The proof that another engine computes what torch does.

A ``Proof`` is a handful of fixed inputs with torch's float32 answers on one weight file. It is made once, kept under
the file's hash, and asked at every start: an engine that is off by more than its precision allows does not serve.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model.checkpoints.files import replacing
from model.config import MAEConfig
from model.masking import hidden_count, random_hidden
from model.views import Colours

if TYPE_CHECKING:
    from model.checkpoints.store import Checkpoint
    from model.network import MAE

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Run = Callable[[NDArray[np.uint8], Ints, Ints], Floats]

#: Largest error an engine may have, relative to the largest value of torch's answer. Rounding to bfloat16 alone costs
#: 2 to 6 % with the shipped weights, in torch as in OpenVINO; so a graph is proved in float32 before.
LIMITS = {"float32": 1e-5, "bfloat16": 1e-1}
#: Batch and share hidden of every case: the usual one, nearly all visible, nearly all hidden and two at once.
_CASES = ((1, "0.75"), (1, "0.1"), (2, "0.95"))
#: Every n-th value of an answer is kept; n is coprime to all widths, so every patch and colour is met.
_EVERY = 31
_PROOF_VERSION = 2


@dataclass(frozen=True)
class Case:
    """One fixed input and what torch made of it.

    Attributes:
        pixels: ``[B, H, W, C] uint8``.
        ids_keep: ``[B, K]``.
        ids_restore: ``[B, L]``.
        answer: Every 31st value of ``pred [B, L, P*P*C]``, flat.
    """

    pixels: NDArray[np.uint8]
    ids_keep: Ints
    ids_restore: Ints
    answer: Floats


@dataclass(frozen=True)
class Proof:
    """Cases on one weight file.

    Attributes:
        digest: SHA-256 of that file.
        cases: At least one.
    """

    digest: str
    cases: tuple[Case, ...]

    def error(self, run: Run) -> float:
        """How far an engine is off: the largest difference over the largest value, the worst of all cases."""
        return max(_error(run(case.pixels, case.ids_keep, case.ids_restore), case) for case in self.cases)

    def save(self, path: Path) -> None:
        """Write it, atomically."""
        arrays: dict[str, NDArray[Any]] = {"about": np.array([str(_PROOF_VERSION), self.digest])}
        for number, case in enumerate(self.cases):
            arrays |= {f"{number}.{name}": value for name, value in vars(case).items()}
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for flags
        with replacing(path) as temporary:
            temporary.write_bytes(content.getvalue())

    @classmethod
    def read(cls, path: Path, digest: str) -> Proof | None:
        """The proof in a file; None where there is none, or one for other weights or of another version."""
        try:
            # From memory: on a damaged file numpy would leave its own handle open.
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                if arrays["about"].tolist() != [str(_PROOF_VERSION), digest]:
                    return None
                names = ("pixels", "ids_keep", "ids_restore", "answer")
                cases = [
                    Case(*(arrays[f"{number}.{name}"] for name in names)) for number in range(len(_CASES))
                ]
        except Exception:  # noqa: BLE001 (damage has no fixed set of exceptions: zlib's, tokenize's, ...)
            return None
        return cls(digest, tuple(cases))


def make_proof(checkpoint: Checkpoint) -> Proof:
    """Ask torch, in float32 on the CPU."""
    return Proof(checkpoint.digest, tuple(make_case(checkpoint.network, *case) for case in _CASES))


def make_case(network: MAE, batch: int, ratio: str) -> Case:
    """Pictures of waves under fixed masks, made of whole numbers, so equal everywhere, and torch's answer."""
    import torch

    config = network.config
    side = config.image_size
    row, column, colour = np.ogrid[:side, :side, : config.channels]
    wave = [
        (row * (3 + n) + column * (5 - n) + (row * column // 32) + 60 * colour) % 256 for n in range(batch)
    ]
    pixels = np.stack(wave).astype(np.uint8)
    keys = np.arange(1, batch + 1, dtype=np.uint64)
    hidden = random_hidden(keys, config.patches, hidden_count(ratio, config.patches))
    order = np.argsort(hidden, axis=1, kind="stable").astype(np.int64)
    ids_keep = np.ascontiguousarray(order[:, : int((~hidden[0]).sum())])
    ids_restore = np.argsort(order, axis=1, kind="stable").astype(np.int64)
    image = as_input(pixels, config)
    with torch.inference_mode():
        pred = network(*(torch.from_numpy(array) for array in (image, ids_keep, ids_restore)))
    return Case(pixels, ids_keep, ids_restore, _kept(pred.float().numpy()))


def as_input(pixels: NDArray[np.uint8], config: MAEConfig) -> Floats:
    """``[B, H, W, C] uint8`` to what the network takes: ``[B, C, H, W]`` in its normalised units."""
    return np.ascontiguousarray(Colours.of(config).normalised(pixels).transpose(0, 3, 1, 2))


def _kept(pred: Floats) -> Floats:
    return np.ascontiguousarray(pred.reshape(-1)[::_EVERY])


def _error(pred: Floats, case: Case) -> float:
    with np.errstate(invalid="ignore"):  # weights that overflow
        error = float(np.abs(_kept(pred) - case.answer).max() / np.abs(case.answer).max())
    return error if np.isfinite(error) else float("inf")
