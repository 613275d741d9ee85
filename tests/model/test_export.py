"""The ONNX file computes what torch computes, and says what it is."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from model.__main__ import main
from model.checkpoints import store
from model.config import SIZES
from model.errors import CheckpointError
from model.export import write_onnx
from model.graph import core
from model.network import MAE

# What torch's exporter says of its own insides.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)


def _weights(folder: Path, seed: int) -> Path:
    network = MAE(SIZES["debug"])
    network.init_weights(torch.Generator().manual_seed(seed))
    store.write(folder / "debug.safetensors", network, name="debug", card={"licence": "none"})
    return folder / "debug.safetensors"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights and the graph that the command wrote of them; once, for torch's exporter takes seconds."""
    folder = tmp_path_factory.mktemp("converted")
    path, out = _weights(folder, seed=0), folder / "debug.onnx"
    with redirect_stdout(io.StringIO()) as said:
        assert main(["convert", str(path), str(out), "--to", "onnx"]) == 0
    assert f"Written: {out}" in said.getvalue()
    return path, out


def test_the_command_writes_a_graph_with_free_batch_and_visible_count(converted: tuple[Path, Path]) -> None:
    path, out = converted
    network = store.read(path).network
    compiled = core().compile_model(core().read_model(out), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch, visible in ((1, 1), (3, 7), (2, 15)):
        image = torch.randn(batch, 3, 64, 64)
        order = torch.rand(batch, 16).argsort(dim=1)
        inputs = (image, order[:, :visible].contiguous(), order.argsort(dim=1))
        with torch.inference_mode():
            expected = network(*inputs).numpy()
        pred = compiled([tensor.numpy() for tensor in inputs])[0]
        assert np.abs(pred - expected).max() < 1e-5 * np.abs(expected).max()
    facts = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert json.loads(facts["config"]) == network.config.to_dict()
    assert facts["digest"] == store.read(path).digest
    assert json.loads(facts["card"]) == {"licence": "none"}


def test_a_graph_that_computes_something_else_is_not_written(
    converted: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = onnx.load(converted[1])
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: SimpleNamespace(model_proto=graph))
    with pytest.raises(CheckpointError, match="off by"):
        write_onnx(store.read(_weights(tmp_path, seed=1)), tmp_path / "debug.onnx")
    assert list(tmp_path.glob("*.onnx*")) == []


def test_the_proof_lies_beside_the_weights(debug_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", str(debug_file)]) == 0
    assert "differs from torch by" in capsys.readouterr().out
    assert debug_file.with_name("debug.proof.npz").exists()
    assert json.loads(debug_file.with_name("debug.report.json").read_text())["path"] == debug_file.name
