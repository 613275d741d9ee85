"""The network as an ONNX graph, for programs that have no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model.checkpoints.files import refuse, replacing
from model.errors import CheckpointError
from model.proof import LIMITS, Floats, Ints, as_input, make_case, make_proof

if TYPE_CHECKING:
    from model.checkpoints.store import Checkpoint


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
    case = make_case(network, 2, "0.75")
    image = as_input(case.pixels, network.config)
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


def _check_onnx(path: Path, checkpoint: Checkpoint) -> None:
    from model.graph import core

    config = checkpoint.network.config
    graph = core().read_model(path.read_bytes())
    compiled = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(pixels: NDArray[np.uint8], ids_keep: Ints, ids_restore: Ints) -> Floats:
        image = as_input(pixels, config)
        return np.array(compiled([image, ids_keep, ids_restore])[0])

    if (error := make_proof(checkpoint).error(run)) > LIMITS["float32"]:
        raise CheckpointError(
            f"The ONNX graph of {checkpoint.name} is off by {error:.1e} of the largest value; at most "
            f"{LIMITS['float32']:.0e} is allowed. Nothing was written.",
            code="onnx-parity",
            hint="Report it with the versions of torch and onnx.",
        )
