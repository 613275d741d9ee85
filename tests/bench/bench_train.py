"""What training costs here, beside the reference recipe: ``make bench-train``.

Variants of a row run in turn, in random order, in this one process; a ratio is the median of the ratios of paired
rounds, with its quartiles. Run it on a quiet machine: on a shared one trust ratios, not milliseconds.

    .venv/bin/python -m tests.bench.bench_train --data 'data/photos-train-{00000..00006}.tar' --write
    .venv/bin/python -m tests.bench.bench_train --data model/samples --tiny   # does it run at all
"""

from __future__ import annotations

import argparse
import io
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from model.config import IMAGE_MEAN, IMAGE_STD, MAEConfig
from model.network import MAE
from model.pretrain import feed, host, resume
from model.pretrain.data import Photos
from model.pretrain.loop import Objective, build_optimisers, mask_orders, step
from model.pretrain.recipe import Recipe
from model.pretrain.resume import Training
from model.pretrain.samples import Batch
from tests.bench.report import publish, table

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    measured: str
    target: str = ""


@dataclass(frozen=True)
class Scale:
    """How much is run: rounds of each row, and sizes with their batches."""

    rounds: int
    sizes: dict[str, int]
    large: str
    large_batch: int
    photos: int
    steps: int


FULL = Scale(9, {"vit_base": 16, "small": 64}, "vit_large", 16, 256, 30)
TINY = Scale(2, {"debug": 4}, "debug", 4, 8, 4)


def in_turn(variants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run all variants in random order, ``rounds`` times after one to warm up; each returns what it measured."""
    order = list(variants)
    results: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        random.shuffle(order)
        for name in order:
            value = variants[name]()
            if turn:
                results[name].append(value)
    return results


def seconds(work: Callable[[], object]) -> Callable[[], float]:
    """A variant that tells its wall time."""

    def timed() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return timed


def ratio(above: list[float], below: list[float]) -> str:
    """Median and quartiles of paired ratios."""
    paired = sorted(a / b for a, b in zip(above, below, strict=True))
    low, middle, high = np.quantile(paired, [0.25, 0.5, 0.75])
    return f"{middle:.2f}x [{low:.2f}-{high:.2f}]"


def milliseconds(values: list[float]) -> str:
    """Tenth percentile and median."""
    return f"{1000 * np.quantile(values, 0.1):.0f} / {1000 * statistics.median(values):.0f} ms"


def _recipe(size: str, batch_size: int, **changes: object) -> Recipe:
    values: dict[str, object] = {
        "name": "bench",
        "size": size,
        "steps": 10**6,
        "batch_size": batch_size,
        "lr": 1e-4,
    }
    return Recipe(**{**values, **changes})  # type: ignore[arg-type]


def _training(recipe: Recipe) -> Training:
    network = MAE(recipe.config).train()
    return Training(recipe, network, build_optimisers(network, recipe), photos="", step=1)


def _batch(recipe: Recipe) -> Batch:
    side, patches = recipe.config.image_size, recipe.config.patches
    images = torch.randint(0, 256, (recipe.batch_size, 3, side, side), dtype=torch.uint8)
    order = torch.rand(recipe.batch_size, patches).argsort(dim=1)
    return Batch(images, order >= patches // 4)


# --- step -------------------------------------------------------------------------------------------------


def reference_step(config: MAEConfig, batch_size: int) -> Callable[[], object]:
    """One step of the recipe everyone starts from: transformers' ViTMAE, fp32, eager attention, torch's AdamW."""
    settings = ViTMAEConfig(
        hidden_size=config.width, num_hidden_layers=config.depth, num_attention_heads=config.heads,
        intermediate_size=int(config.width * config.mlp_ratio), image_size=config.image_size,
        patch_size=config.patch_size, decoder_hidden_size=config.decoder_width,
        decoder_num_hidden_layers=config.decoder_depth, decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=int(config.decoder_width * config.mlp_ratio), mask_ratio=0.75,
    )  # fmt: skip
    settings._attn_implementation = "eager"
    network = ViTMAEForPreTraining(settings).train()
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, foreach=False, fused=False
    )
    pixels = torch.randn(batch_size, 3, config.image_size, config.image_size)

    def one() -> None:
        network(pixel_values=pixels).loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return one


def our_step(recipe: Recipe) -> Callable[[], object]:
    """One step of ours, as ``pretrain`` makes it, on a batch that is there."""
    training, batch = _training(recipe), _batch(recipe)
    objective = Objective(training.network, recipe.arithmetic(CPU))
    if recipe.compile:
        objective.compile(dynamic=False)
    return lambda: step(objective, batch, training)


def steps(scale: Scale, compiled: bool) -> list[Row]:
    """Step of the reference against ours."""
    rows = []
    for size, batch_size in scale.sizes.items():
        recipe = _recipe(size, batch_size)
        variants = {"reference": reference_step(recipe.config, batch_size), "ours": our_step(recipe)}
        if compiled:
            variants["ours, compiled"] = our_step(replace(recipe, compile=True))
        times = in_turn({name: seconds(work) for name, work in variants.items()}, scale.rounds)
        rows.append(Row(f"{size}, batch {batch_size}: reference step", milliseconds(times["reference"])))
        target = {"vit_base": ">= 2.2x", "small": ">= 1.8x"}.get(size, "")
        for name in list(variants)[1:]:
            measured = f"{milliseconds(times[name])}, {ratio(times['reference'], times[name])}"
            rows.append(Row(f"{size}, batch {batch_size}: {name}", measured, target))
    return rows


def asymmetry(scale: Scale) -> list[Row]:
    """The paper's point: forward and backward with mask tokens in the encoder, against without."""
    shapes = {
        "mask tokens in the encoder": _recipe(scale.large, scale.large_batch, mask_tokens="encoder"),
        "visible patches only": _recipe(scale.large, scale.large_batch),
        "and decoder depth 1": _recipe(scale.large, scale.large_batch, decoder_depth=1),
    }

    def work(recipe: Recipe) -> Callable[[], object]:
        network, batch = MAE(recipe.config).train(), _batch(recipe)
        objective = Objective(network, recipe.arithmetic(CPU))
        arguments = (batch.images, *mask_orders(batch.hidden, int((~batch.hidden[0]).sum())), batch.hidden)

        def one() -> None:
            objective(*arguments).backward()
            network.zero_grad(set_to_none=True)

        return one

    variants = {name: seconds(work(recipe)) for name, recipe in shapes.items()}
    times = in_turn(variants, max(scale.rounds // 3, 2))
    first, *others = times
    title = f"{scale.large}, batch {scale.large_batch}"
    rows = [Row(f"{title}: {first}", milliseconds(times[first]))]
    for name, target in zip(others, (">= 2.8x", ">= 3.7x"), strict=True):
        rows.append(
            Row(
                f"{title}: {name}", f"{milliseconds(times[name])}, {ratio(times[first], times[name])}", target
            )
        )
    return rows


# --- data -------------------------------------------------------------------------------------------------


def data_path(photos: Photos, scale: Scale) -> list[Row]:
    """Photos a second of one core (CPU time of the process, all threads), from bytes to a batch."""
    recipe = _recipe("small", 32)
    numbers = [n % len(photos) for n in range(scale.photos)]
    reference = transforms.Compose([
        transforms.RandomResizedCrop(224, (0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(IMAGE_MEAN, IMAGE_STD),
    ])  # fmt: skip

    def by_pil() -> float:
        began = time.process_time()
        for first in range(0, len(numbers), 32):
            torch.stack(
                [
                    reference(Image.open(io.BytesIO(photos.read(n))).convert("RGB"))
                    for n in numbers[first : first + 32]
                ]
            )
        return (time.process_time() - began) / len(numbers)

    def by_host(crops: int) -> Callable[[], float]:
        def one() -> float:
            # The stream works ahead: what it has made before the clock starts it will have made when it stops.
            stream = host.batches(photos, replace(recipe, crops=crops), 0, 1)
            for _ in range(host.AHEAD + 1):
                next(stream)
            began, batches = time.process_time(), max(len(numbers) // 32, 1)
            for _ in range(batches):
                next(stream)
            return (time.process_time() - began) / (32 * batches)

        return one

    variants = {"PIL and float": by_pil, "ours": by_host(1), "ours, 4 crops a decode": by_host(4)}
    times = in_turn(variants, max(scale.rounds // 3, 2))
    first, *others = times
    rows = [Row(f"data: {first}", f"{1 / statistics.median(times[first]):.0f} photos/s a core")]
    for name, target in zip(others, (">= 2.5x", ">= 4x"), strict=True):
        speed = f"{1 / statistics.median(times[name]):.0f} photos/s a core"
        rows.append(Row(f"data: {name}", f"{speed}, {ratio(times[first], times[name])}", target))
    return rows


def stalls(photos: Photos, scale: Scale, workers: int) -> list[Row]:
    """Share of a run's time in which it waits for photos, and in which it writes states."""
    size, batch_size = list(scale.sizes.items())[-1]
    recipe = _recipe(size, batch_size)
    training = _training(recipe)
    objective = Objective(training.network, recipe.arithmetic(CPU))
    stream = feed.batches(photos, recipe, 0, device=CPU, workers=workers)
    step(objective, next(stream), training)
    waited, began = 0.0, time.perf_counter()
    for _ in range(scale.steps):
        asked = time.perf_counter()
        batch = next(stream)
        waited += time.perf_counter() - asked
        step(objective, batch, training)
    whole = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        saving = seconds(lambda: resume.save(Path(folder), training, 1.0))()
    between = recipe.checkpoint_every * whole / scale.steps
    title = f"{size}, batch {batch_size}"
    return [
        Row(f"{title}: waiting for photos", f"{100 * waited / whole:.1f} % of the step", "< 2 %"),
        Row(
            f"{title}: a state every {recipe.checkpoint_every} steps",
            f"{1000 * saving:.0f} ms, {100 * saving / (between + saving):.2f} % of the time", "< 5 %",
        ),
    ]  # fmt: skip


def main() -> None:
    """Measure, and print the table as it grows."""
    parser = argparse.ArgumentParser(description="what training costs here, beside the reference recipe")
    parser.add_argument("--data", nargs="+", required=True, help="photos for the rows about data")
    parser.add_argument("--workers", type=int, default=1, help="decoding threads (default 1)")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument(
        "--tiny", action="store_true", help="seconds instead of minutes, numbers without meaning"
    )
    given = parser.parse_args()
    scale = TINY if given.tiny else FULL
    photos = Photos.open(given.data)
    arithmetic = str(_recipe("small", 1).arithmetic(CPU)).removeprefix("torch.")
    rows: list[Row] = []
    parts: tuple[Callable[[], list[Row]], ...] = (
        lambda: steps(scale, given.compile),
        lambda: data_path(photos, scale),
        lambda: stalls(photos, scale, given.workers),
        lambda: asymmetry(scale),
    )
    for part in parts:
        rows += part()
        print(f"{len(rows)} rows", end=" ", flush=True)
    print()
    about = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arithmetic}, {given.workers} decoding.\n\n"
    lines = [[row.what, row.measured, row.target] for row in rows]
    publish("training", about + table(("what", "measured", "target"), lines), write=given.write)


if __name__ == "__main__":
    main()
