"""The forward pass beside transformers and beside what the machine can do at all: part of ``make bench``.

All variants of a row run in turn, in random order, in this one process, on the same weights and mask. A ratio is the
median of the ratios of paired rounds; the share of the peak is of the best round, for a busy machine only adds time.

    .venv/bin/python -m tests.bench.bench_forward [--write] [--tiny]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as op
from transformers import ViTMAEForPreTraining

from model import images, samples
from model.checkpoints import registry, store
from model.checkpoints.convert import convert
from model.config import SIZES, MAEConfig
from model.devices import usable_cpus
from model.engines import OpenVINOEngine, TorchEngine
from model.errors import CheckpointError
from model.graph import core
from model.masking import hidden_count, random_hidden
from model.network import MAE
from model.proof import as_input
from tests.bench.report import publish, table

BASELINE = "transformers eager float32"
HEAD = ("model, batch", "variant", "ms best / median", "times baseline", "GFLOP/s", "of peak", "error")
SHIPPED = ("mini",)
#: Shapes of the peak: rows x inner x outer, those of ViT-B's and of a larger MLP.
PRODUCTS = ((400, 768, 3072), (1024, 1024, 4096))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--tiny", action="store_true", help="does it run at all")
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    threads = usable_cpus()
    torch.set_num_threads(threads)
    cases = [("debug", 1, 2)] if given.tiny else [
        ("vit_base", 1, given.rounds), ("vit_base", 8, max(given.rounds // 6, 3)),
        *((name, batch, 4 * given.rounds // batch) for name in SHIPPED for batch in (1, 8)),
    ]  # fmt: skip
    peaks = {"float32": _peak("f32", threads), "bfloat16": _peak("bf16", threads)}
    rows = [row for size, batch, rounds in cases for row in _measure(size, batch, rounds, peaks, threads)]
    said = ", ".join(f"{name} {peak:.0f} GFLOP/s" for name, peak in peaks.items() if peak)
    note = (
        f"The sample photos, 75 % hidden, {threads} threads. Peak: the best matrix product of this run, {said}. "
        "Error: largest difference over largest value against torch float32. int8 is not offered: 3 to 6 % off, and "
        "slower than bfloat16 where a processor has units for both (docs/log.md)."
    )
    publish("forward", note + "\n\n" + table(HEAD, rows), write=given.write)


def _measure(size: str, batch: int, rounds: int, peaks: dict[str, float], threads: int) -> list[list[str]]:
    if size in SHIPPED:
        network = store.read(registry.shipped(size)).network
    else:  # random weights that predict what the shipped ones do
        network = MAE(replace(SIZES[size], target="norm_pixel_stats")).eval()
    config = network.config
    pixels, ids_keep, ids_restore = _inputs(config, batch)
    variants = {BASELINE: _transformers(network, pixels, ids_keep)}
    torch_engine = TorchEngine(network, "cpu")
    variants["torch float32"] = lambda: torch_engine.run(pixels, ids_keep, ids_restore)
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    for precision in ("float32", "bfloat16"):
        try:
            engine = OpenVINOEngine(config, weights, threads=threads, precision=precision)
        except CheckpointError:
            continue  # the processor does not have it
        variants[f"OpenVINO {precision}"] = partial(engine.run, pixels, ids_keep, ids_restore)
    expected = torch_engine.run(pixels, ids_keep, ids_restore)
    # The statistics of a patch, which the shipped models predict too, have no place in the baseline.
    shared = slice(config.patch_values)
    errors = {
        name: float(
            np.abs(run()[..., shared] - expected[..., shared]).max() / np.abs(expected[..., shared]).max()
        )
        for name, run in variants.items()
    }
    times = _interleaved(variants, rounds)
    work = batch * gflop(config, ids_keep.shape[1])
    rows = []
    for name, taken in times.items():
        ratios = [base / own for base, own in zip(times[BASELINE], taken, strict=True)]
        speed = work / min(taken)
        peak = peaks["bfloat16" if "bfloat16" in name else "float32"]
        rows.append(
            [
                f"{size}, {batch}", name, f"{1000 * min(taken):.1f} / {1000 * statistics.median(taken):.1f}",
                _quartiles(ratios), f"{speed:.0f}", f"{speed / peak:.0%}" if peak else "", f"{errors[name]:.1e}",
            ]
        )  # fmt: skip
    return rows


def gflop(config: MAEConfig, visible: int) -> float:
    """Multiplications and additions of one picture, in thousand millions."""

    def blocks(tokens: int, width: int, depth: int) -> float:
        return depth * (tokens * width * width * (4 + 2 * config.mlp_ratio) + 2 * tokens * tokens * width)

    encoder = visible * config.patch_values * config.width + blocks(visible + 1, config.width, config.depth)
    decoder: float = (visible + 1) * config.width * config.decoder_width
    decoder += blocks(config.patches + 1, config.decoder_width, config.decoder_depth)
    decoder += config.patches * config.decoder_width * config.patch_values
    return 2 * (encoder + decoder) / 1e9


def _peak(precision: str, threads: int) -> float:
    """GFLOP/s of the best matrix product with a weight known beforehand; 0 where there is no such precision."""
    if precision == "bf16" and "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return 0.0
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
    best = 0.0
    for rows, inner, outer in PRODUCTS:
        x = op.parameter([rows, inner], np.float32)
        weight = np.random.default_rng(0).standard_normal((outer, inner)).astype(np.float32)
        product = op.matmul(x, op.constant(weight), False, True)
        # Two in a row, so that the first result is no output that has to be copied out.
        back = op.matmul(product, op.constant(np.ascontiguousarray(weight.T)), False, True)
        request = (
            core().compile_model(ov.Model([op.result(back)], [x]), "CPU", settings).create_infer_request()
        )
        value = np.ones((rows, inner), dtype=np.float32)
        for _ in range(40):
            began = time.perf_counter()
            request.infer([value], share_inputs=True)
            best = max(best, 4 * rows * inner * outer / (time.perf_counter() - began) / 1e9)
    return best


def _inputs(config: MAEConfig, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    side = config.image_size
    pixels = np.stack([images.load_square(sample.photo, side) for sample in samples.load()[:batch]])
    keys = np.arange(batch, dtype=np.uint64)
    hidden = random_hidden(keys, config.patches, hidden_count("0.75", config.patches))
    order = np.argsort(hidden, axis=1, kind="stable")
    visible = int((~hidden[0]).sum())
    return pixels, np.ascontiguousarray(order[:, :visible]), np.argsort(order, axis=1, kind="stable")


def _transformers(network: MAE, pixels: np.ndarray, ids_keep: np.ndarray) -> Callable[[], np.ndarray]:
    config = network.config
    with tempfile.TemporaryDirectory() as folder:
        own, theirs = Path(folder) / "own.safetensors", Path(folder) / "theirs"
        store.write(own, network, name="bench", card={})
        convert(own, theirs, to="huggingface")
        other = ViTMAEForPreTraining.from_pretrained(theirs, attn_implementation="eager")
        other.train(False)
    image = torch.from_numpy(as_input(pixels, config))
    noise = torch.ones(len(pixels), config.patches)  # the least noise stays visible
    noise.scatter_(
        1, torch.from_numpy(ids_keep), torch.linspace(0, 0.5, ids_keep.shape[1]).expand(len(pixels), -1)
    )
    # A stable order among the hidden, as ours.
    noise += torch.arange(config.patches) * 1e-5 * (noise == 1)

    def run() -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = other(pixel_values=image, noise=noise).logits.numpy()
        return logits

    return run


def _interleaved(variants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    names, shuffled = list(variants), random.Random(0)
    for _ in range(rounds):
        shuffled.shuffle(names)
        for name in names:
            began = time.perf_counter()
            variants[name]()
            times[name].append(time.perf_counter() - began)
    return times


def _quartiles(ratios: list[float]) -> str:
    low, middle, high = (float(np.quantile(ratios, q)) for q in (0.25, 0.5, 0.75))
    return f"{middle:.2f} [{low:.2f}-{high:.2f}]"


if __name__ == "__main__":
    main()
