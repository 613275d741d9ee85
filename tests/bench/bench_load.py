"""Time and peak memory to load a model from every layout, with random weights.

    .venv/bin/python -m tests.bench.bench_load --out load.json   # Base and Large, every layout, 5 runs each
    .venv/bin/python -m tests.bench.bench_load --sizes vit_base --runs 3

Each run is a fresh process, so that memory of one does not help the next. The file was just written, so it comes
from the page cache: this measures reading and checking, not the disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = (
    "unmask",
    "unmask-half",
    "authors",
    "huggingface",
    "huggingface-bin",
    "lightly",
    "openmmlab",
    "run",
)


def write(layout: str, size: str, folder: Path) -> Path:
    """A file of random weights in this layout."""
    import torch
    from safetensors.torch import load_file

    from model.checkpoints import store
    from model.checkpoints.convert import convert
    from model.config import SIZES
    from model.network import MAE

    network = MAE(SIZES[size]).eval()
    ours = folder / "ours.safetensors"
    store.write(ours, network, name=size, card={"licence": "none"}, half=layout == "unmask-half")
    if layout.startswith("unmask"):
        return ours
    if layout == "authors":
        return convert(ours, folder / "a.pth", to="authors")
    if layout.startswith("huggingface"):
        path = convert(ours, folder / "hf", to="huggingface")
        if layout == "huggingface-bin":
            torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
            (path / "model.safetensors").unlink()
        return path
    state = network.state_dict()
    if layout == "run":
        recipe = {"name": "bench", "target": "pixel", "size": size}
        config = {"config": network.config.to_dict()}
        content: dict[str, object] = {"network": state, "recipe": recipe, "step": 1, "unmask": config}
    else:
        rename = _lightly if layout == "lightly" else _openmmlab
        options = {"norm_pix_loss": False}
        content = {"state_dict": {rename(key): value for key, value in state.items()}, "args": options}
    torch.save(content, folder / "b.pth")
    return folder / "b.pth"


def _lightly(name: str) -> str:
    return ("decoder." if name.startswith(("decoder_", "mask_token")) else "backbone.vit.") + name


def _openmmlab(name: str) -> str:
    neck = name.startswith(("decoder_", "mask_token"))
    for ours, theirs in (
        ("norm1.", "ln1."),
        ("norm2.", "ln2."),
        ("mlp.fc1", "ffn.layers.0.0"),
        ("mlp.fc2", "ffn.layers.1"),
    ):
        name = name.replace(ours, theirs)
    name = name.replace("decoder_norm.", "ln1.")
    if neck:
        return "neck." + name
    name = name.replace("blocks.", "layers.", 1).replace("patch_embed.proj.", "patch_embed.projection.")
    return "backbone." + ("ln1." + name.removeprefix("norm.") if name.startswith("norm.") else name)


def load_once(path: Path) -> dict[str, float]:
    """Load in this process: seconds, and the peak of memory above what the imports took."""
    from model.checkpoints import store
    from model.checkpoints.shapes import Given

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    checkpoint = store.read(path, Given(target="pixel"))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights = sum(tensor.nbytes for tensor in checkpoint.network.state_dict().values())
    return {"seconds": seconds, "peak_mb": (peak - before) / 1024, "weights_mb": weights / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["vit_base", "vit_large"])
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS, choices=LAYOUTS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        print(json.dumps(load_once(given.once)))
        return
    rows = []
    print(
        f"{'size':10s} {'layout':16s} {'MB':>6s} {'seconds':>8s} {'(min-max)':>12s} {'peak MB':>8s} {'x weights':>9s}"
    )
    for size in given.sizes:
        for layout in given.layouts:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(_measure(size, layout, Path(folder), given.runs))
    if given.out:
        given.out.write_text(json.dumps(rows, indent=2) + "\n")


def _measure(size: str, layout: str, folder: Path, runs: int) -> dict[str, object]:
    path = write(layout, size, folder)
    files = [path] if path.is_file() else list(path.iterdir())
    megabytes = sum(file.stat().st_size for file in files) / 2**20
    command = [sys.executable, "-m", "tests.bench.bench_load", "--once", str(path)]
    answers = [
        json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        for _ in range(runs)
    ]
    seconds = [answer["seconds"] for answer in answers]
    peak = statistics.median(answer["peak_mb"] for answer in answers)
    weights = answers[0]["weights_mb"]
    middle = statistics.median(seconds)
    print(
        f"{size:10s} {layout:16s} {megabytes:6.0f} {middle:8.2f} {f'({min(seconds):.2f}-{max(seconds):.2f})':>12s} "
        f"{peak:8.0f} {peak / weights:9.2f}",
        flush=True,
    )
    return {
        "size": size,
        "layout": layout,
        "file_mb": megabytes,
        "seconds": seconds,
        "peak_mb": peak,
        "weights_mb": weights,
    }


if __name__ == "__main__":
    main()
