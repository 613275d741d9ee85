"""Time and peak memory to load a model from every layout, with random weights.

    .venv/bin/python -m tests.bench.bench_load --write   # Base and Large, every layout, 5 runs each
    .venv/bin/python -m tests.bench.bench_load --sizes debug --runs 1   # whether it works, in a minute

Each run is a fresh process, so that memory of one does not help the next. The file was just written, so it comes
from the page cache: this measures reading and checking, not the disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.report import publish, table

if TYPE_CHECKING:  # the process that measures imports it itself
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = (
    "unmask",
    "unmask-half",
    "authors",
    "huggingface",
    "huggingface-bin",
    "huggingface-parts",
    "lightly",
    "openmmlab",
    "solo-learn",
    "stable-pretraining",
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
        whole = path / "model.safetensors"
        if layout == "huggingface-bin":
            torch.save(load_file(whole), path / "pytorch_model.bin")
            whole.unlink()
        elif layout == "huggingface-parts":
            _part(whole)
        return path
    state = network.state_dict()
    if layout == "run":
        recipe = {"name": "bench", "target": "pixel", "size": size}
        config = {"config": network.config.to_dict()}
        content: dict[str, object] = {"network": state, "recipe": recipe, "step": 1, "unmask": config}
    else:
        if layout == "stable-pretraining":
            state = _query(state)
        rename = {
            "lightly": _lightly,
            "openmmlab": _openmmlab,
            "solo-learn": _solo_learn,
            "stable-pretraining": _stable_pretraining,
        }[layout]
        options = {"norm_pix_loss": False}
        content = {"state_dict": {rename(key): value for key, value in state.items()}, "args": options}
    torch.save(content, folder / "b.pth")
    return folder / "b.pth"


def _part(whole: Path) -> None:
    """Four files and their index in place of one."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(whole)
    where: dict[str, str] = {}
    for number in range(4):
        file = f"model-{number + 1:05d}-of-00004.safetensors"
        names = sorted(tensors)[number::4]
        save_file({name: tensors[name] for name in names}, whole.with_name(file))
        where |= dict.fromkeys(names, file)
    whole.with_name(whole.name + ".index.json").write_text(json.dumps({"weight_map": where}))
    whole.unlink()


def _lightly(name: str) -> str:
    return ("decoder." if name.startswith(("decoder_", "mask_token")) else "backbone.vit.") + name


def _solo_learn(name: str) -> str:
    return ("decoder." if name.startswith(("decoder_", "mask_token")) else "backbone.") + name


def _stable_pretraining(name: str) -> str:
    for ours, theirs in (
        ("mask_token", "decoder.mask_token"),
        ("decoder_embed.", "decoder.transformer.context_proj."),
        ("decoder_pred.", "decoder.transformer.output_proj."),
        ("decoder_norm.", "decoder.transformer.final_norm."),
        ("decoder_", "decoder.transformer."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return "encoder.vit." + name


def _query(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With what that decoder has besides: a projection of its mask token; and no position of a class token."""
    embed = {f"decoder_query_proj.{kind}": state[f"decoder_embed.{kind}"] for kind in ("weight", "bias")}
    token = {"mask_token": state["cls_token"], "decoder_pos_embed": state["decoder_pos_embed"][:, 1:]}
    return {**state, **embed, **token}


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

    # Not getrusage: its peak begins at that of the process which started this one.
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before = _peak_mb()
    start = time.perf_counter()
    checkpoint = store.read(path, Given(target="pixel"))
    seconds = time.perf_counter() - start
    peak = _peak_mb()
    weights = sum(tensor.nbytes for tensor in checkpoint.network.state_dict().values())
    return {"seconds": seconds, "peak_mb": peak - before, "weights_mb": weights / 2**20}


def _peak_mb() -> float:
    """Most memory that this process has held, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["vit_base", "vit_large"])
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS, choices=LAYOUTS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also as JSON")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        print(json.dumps(load_once(given.once)))
        return
    rows = []
    for size in given.sizes:
        for layout in given.layouts:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(_measure(size, layout, Path(folder), given.runs))
    head = ("size", "layout", "file, MB", "seconds", "least to most", "peak, MB", "peak / weights")
    publish("loading", table(head, [_line(row) for row in rows]), write=given.write)
    if given.out:
        given.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


@dataclass(frozen=True)
class Row:
    """Loads of one file, each in a process of its own; megabytes of 2^20 bytes."""

    size: str
    layout: str
    file_mb: float
    seconds: list[float]
    peak_mb: float
    weights_mb: float


def _line(row: Row) -> list[str]:
    least, middle, most = min(row.seconds), statistics.median(row.seconds), max(row.seconds)
    return [
        row.size, row.layout, f"{row.file_mb:.0f}", f"{middle:.2f}", f"{least:.2f} to {most:.2f}",
        f"{row.peak_mb:.0f}", f"{row.peak_mb / row.weights_mb:.2f}",
    ]  # fmt: skip


def _measure(size: str, layout: str, folder: Path, runs: int) -> Row:
    path = write(layout, size, folder)
    parts = [path] if path.is_file() else list(path.iterdir())
    megabytes = sum(file.stat().st_size for file in parts) / 2**20
    command = [sys.executable, "-m", "tests.bench.bench_load", "--once", str(path)]
    answers = [
        json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        for _ in range(runs)
    ]
    row = Row(
        size,
        layout,
        megabytes,
        [answer["seconds"] for answer in answers],
        statistics.median(answer["peak_mb"] for answer in answers),
        answers[0]["weights_mb"],
    )
    print(" ".join(_line(row)), file=sys.stderr, flush=True)  # a run at full size takes minutes
    return row


if __name__ == "__main__":
    main()
