"""What leaves torch: the network as an ONNX graph, and the proof that another engine computes the same.

A ``Proof`` is a handful of fixed inputs with torch's float32 answers on one weight file. It is made once, kept under
the file's hash, and asked at every start: an engine that is off by more than its precision allows does not serve.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model.checkpoints.files import refuse, replacing
from model.errors import CheckpointError
from model.masking import hidden_count, random_hidden

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
    return Proof(checkpoint.digest, tuple(_case(checkpoint.network, *case) for case in _CASES))


def write_onnx(checkpoint: Checkpoint, out: Path) -> Path:
    """Write the network as one ONNX file, and prove it.

    Inputs are ``image [B, C, H, W] float32`` in the model's normalised units (``MAEConfig.image_mean``) on its own
    grid, and the mask as whole numbers: ``ids_keep [B, K] int64``, ``ids_restore [B, L] int64``. Output is
    ``pred [B, L, P*P*C]``. Batch and visible count are free. Config, name and card stand in the file's metadata.

    Args:
        checkpoint: What to write.
        out: The file.

    Returns:
        The file.

    Raises:
        CheckpointError: The exporter is not installed, or the graph computes something else.
    """
    import torch

    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it, and says so less plainly
    except ImportError as error:
        raise refuse(
            "Writing ONNX needs the packages onnx and onnxscript",
            "pip install onnx onnxscript.",
            "onnx-missing",
        ) from error
    network = checkpoint.network
    batch, visible = torch.export.Dim("batch"), torch.export.Dim("visible")
    case = _case(network, 2, "0.75")
    image = as_input(case.pixels, network.config.image_mean, network.config.image_std)
    example = tuple(torch.from_numpy(array) for array in (image, case.ids_keep, case.ids_restore))
    program = torch.onnx.export(
        network,
        example,
        dynamo=True,
        verbose=False,
        input_names=["image", "ids_keep", "ids_restore"],
        output_names=["pred"],
        dynamic_shapes=({0: batch}, {0: batch, 1: visible}, {0: batch}),
    )
    assert program is not None  # with dynamo there always is one
    graph = program.model_proto
    facts = {"name": checkpoint.name, "digest": checkpoint.digest}
    facts |= {"config": json.dumps(network.config.to_dict()), "card": json.dumps(checkpoint.card)}
    onnx.helper.set_model_props(graph, facts)
    with replacing(out) as temporary:
        temporary.write_bytes(graph.SerializeToString())
        _check_onnx(temporary, checkpoint)
    return out


def as_input(pixels: NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]) -> Floats:
    """``[B, H, W, C] uint8`` to what the network takes: ``[B, C, H, W]`` in its normalised units."""
    return np.ascontiguousarray(normalised(pixels, mean, std).transpose(0, 3, 1, 2))


def normalised(pixels: NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]) -> Floats:
    """``[..., C] uint8`` to a model's normalised units, colours last."""
    offset, scale = (np.array(values, dtype=np.float32) for values in (mean, std))
    result: Floats = (pixels.astype(np.float32) / np.float32(255) - offset) / scale
    return result


def _check_onnx(path: Path, checkpoint: Checkpoint) -> None:
    from model.graph import core

    config = checkpoint.network.config
    graph = core().read_model(path.read_bytes())
    compiled = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(pixels: NDArray[np.uint8], ids_keep: Ints, ids_restore: Ints) -> Floats:
        image = as_input(pixels, config.image_mean, config.image_std)
        return np.array(compiled([image, ids_keep, ids_restore])[0])

    if (error := make_proof(checkpoint).error(run)) > LIMITS["float32"]:
        raise CheckpointError(
            f"The ONNX graph of {checkpoint.name} is off by {error:.1e} of the largest value; at most "
            f"{LIMITS['float32']:.0e} is allowed. Nothing was written.",
            code="onnx-parity",
            hint="Report it with the versions of torch and onnx.",
        )


def _case(network: MAE, batch: int, ratio: str) -> Case:
    """Pictures of waves under fixed masks, made of whole numbers, so equal everywhere."""
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
    image = as_input(pixels, config.image_mean, config.image_std)
    with torch.inference_mode():
        pred = network(*(torch.from_numpy(array) for array in (image, ids_keep, ids_restore)))
    return Case(pixels, ids_keep, ids_restore, _kept(pred.float().numpy()))


def _kept(pred: Floats) -> Floats:
    return np.ascontiguousarray(pred.reshape(-1)[::_EVERY])


def _error(pred: Floats, case: Case) -> float:
    with np.errstate(invalid="ignore"):  # weights that overflow
        error = float(np.abs(_kept(pred) - case.answer).max() / np.abs(case.answer).max())
    return error if np.isfinite(error) else float("inf")
