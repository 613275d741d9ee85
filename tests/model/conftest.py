"""Small things the tests of ``model`` are built from."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

from model.checkpoints import store
from model.config import SIZES
from model.network import MAE
from model.reconstruct import Reconstructor, load
from tests.pictures import encoded, photo
from tests.training import BROKEN, PHOTOS


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The toy photos in a folder and one below it, beside a file that is none."""
    place = tmp_path / "photos"
    (place / "deep").mkdir(parents=True)
    for number, data in enumerate(PHOTOS):
        (place / ("deep" if number % 2 else ".") / f"{number:03d}.jpg").write_bytes(data)
    (place / "readme.txt").write_text("no picture")
    return place


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """The toy photos as a tar shard, of the sources ``even`` and ``odd``."""
    path = tmp_path / "shard-00000.tar"
    with tarfile.open(path, "w") as tar:
        for number, data in enumerate(PHOTOS):
            sidecar = json.dumps({"source": "odd" if number % 2 else "even"}).encode()
            for name, content in ((f"{number:06d}.jpg", data), (f"{number:06d}.json", sidecar)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def damaged_folder(tmp_path: Path) -> Path:
    """Twelve photos of several shapes, two of them broken (``BROKEN``)."""
    place = tmp_path / "photos"
    place.mkdir()
    for n in range(12):
        data = encoded(photo(70 + 9 * n, 150 - 7 * n, seed=n), "JPEG", quality=95)
        (place / f"{n:03d}.jpg").write_bytes(BROKEN.get(n, data))
    return place
