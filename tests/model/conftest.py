"""Small things the tests of ``model`` are built from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.checkpoints import store
from model.config import SIZES
from model.network import MAE
from model.reconstruct import Reconstructor, load


@pytest.fixture
def debug_network() -> MAE:
    network = MAE(SIZES["debug"]).eval()
    network.init_weights(torch.Generator().manual_seed(0))
    return network


@pytest.fixture
def debug_file(tmp_path: Path, debug_network: MAE) -> Path:
    path = tmp_path / "debug.safetensors"
    store.write(path, debug_network, name="debug", card={"licence": "none"})
    return path


@pytest.fixture
def reconstructor(debug_file: Path) -> Reconstructor:
    return load(debug_file, "cpu")
