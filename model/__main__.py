"""``python -m model VERB``: parse, call one function of a room, print. No logic lives here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from model import verbs as pictures
from model.checkpoints import verbs as checkpoints
from model.errors import UnmaskError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, or 2 for a mistake the caller can correct."""
    parser = _parser()
    given = parser.parse_args(arguments)
    verb: Callable[[argparse.Namespace], str | None] = given.verb
    try:
        if said := verb(given):
            print(said)
    except UnmaskError as error:
        print(f"{parser.prog}: {error} {error.hint}", file=sys.stderr)
        return 2
    return 0


def _pretrain(given: argparse.Namespace) -> None:
    from model.pretrain.launch import pretrain
    from model.pretrain.recipe import load_recipe

    changes = {name: getattr(given, name) for name in ("steps", "minutes", "batch_size", "size", "data_path")}
    weights = pretrain(
        load_recipe(given.recipe, **changes),
        given.data,
        given.out,
        resumed=given.resume,
        init=given.init,
        device=given.device,
        workers=given.workers,
    )
    if weights:
        print(f"Weights: {weights}")


def _shards(given: argparse.Namespace) -> None:
    from model.pretrain.shards import pack

    packed = pack(given.folder, given.out, side=given.side, per_shard=given.per_shard, workers=given.workers)
    print(f"{packed.photos} photos in {len(packed.shards)} shards under {given.out}.")
    for name in packed.broken:
        print(f"left out, cannot be decoded: {name}", file=sys.stderr)


def _evaluate(given: argparse.Namespace) -> None:
    from model.evaluate.reconstruction import evaluate
    from model.pretrain.data import Photos
    from model.reconstruct import load

    report = evaluate(
        load(given.checkpoint, given.device),
        Photos.open(given.data),
        strategy=given.strategy,
        ratio=given.ratio,
        limit=given.limit,
    )
    if given.json:
        print(json.dumps(report))
        return
    print(f"{report['model']}, {report['photos']} photos, {report['strategy']} {report['ratio']:.0%} hidden")
    print(f"{'':14s}" + "".join(f"{name:>22s}" for name in report["scores"]["model"]))
    for name, row in report["scores"].items():
        print(f"{name:14s}" + "".join(f"{value:22.4f}" for value in row.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unmask", description="Masked autoencoders: hide, repaint, train, measure."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    pictures.add(verbs)
    _add_training_verbs(verbs)
    questions = verbs.add_parser("evaluate", help="measure a model").add_subparsers(
        required=True, metavar="QUESTION"
    )
    verb = questions.add_parser("reconstruct", help="errors over hidden pixels, beside classical fills")
    verb.set_defaults(verb=_evaluate)
    verb.add_argument("checkpoint", type=Path)
    verb.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders of pictures, or .tar shards"
    )
    verb.add_argument("--ratio", default="0.75")
    verb.add_argument("--strategy", default="random", choices=("random", "block", "grid"))
    verb.add_argument("--limit", type=int, help="take only this many photos, evenly spaced")
    verb.add_argument("--json", action="store_true")
    verb.add_argument("--device")
    checkpoints.add(verbs)
    return parser


def _add_training_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser("pretrain", help="train a model from a recipe")
    verb.set_defaults(verb=_pretrain)
    verb.add_argument("recipe", help="a TOML file, or the name of a shipped recipe")
    verb.add_argument(
        "--data", type=Path, nargs="+", required=True,
        help="folders of pictures or .tar shards, or patterns such as 'shard-{00000..00006}.tar'",
    )  # fmt: skip
    verb.add_argument("--out", type=Path, required=True, help="folder of the run")
    verb.add_argument("--resume", action="store_true", help="go on from the last state in --out")
    verb.add_argument("--init", type=Path, help="weights to begin with instead of random ones")
    verb.add_argument("--steps", type=int, help="instead of the recipe's steps or minutes")
    verb.add_argument("--minutes", type=float, help="as many steps as fit, instead of the recipe's")
    verb.add_argument("--batch-size", type=int, help="instead of the recipe's")
    verb.add_argument("--size", help="instead of the recipe's: vit_base, vit_large, vit_huge, small, debug")
    verb.add_argument(
        "--data-path",
        choices=("auto", "host", "device"),
        help="decode as it goes, or all into the GPU's memory",
    )
    verb.add_argument("--workers", type=int, default=1, help="decoding threads (default 1)")
    verb.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")

    verb = verbs.add_parser("shards", help="pack a folder of pictures into tar shards for training")
    verb.set_defaults(verb=_shards)
    verb.add_argument("folder", type=Path)
    verb.add_argument("out", type=Path, help="folder for the shards")
    verb.add_argument("--side", type=int, default=256, help="short side at most, pixels (default 256)")
    verb.add_argument("--per-shard", type=int, default=2000, help="photos a shard (default 2000)")
    verb.add_argument("--workers", type=int, default=1, help="threads (default 1)")


if __name__ == "__main__":
    sys.exit(main())
