"""``python -m model pretrain`` and ``shards``: options in, one function of this room called, what to print out."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.config import SIZES


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``pretrain`` and ``shards`` to the command line."""
    verb = verbs.add_parser("pretrain", help="train a model from a recipe")
    verb.set_defaults(verb=_pretrain)
    verb.add_argument("recipe", help="a TOML file, or the name of a shipped recipe")
    verb.add_argument(
        "--data", nargs="+", action="extend", required=True,
        help="folders of pictures, .tar shards or their http(s) addresses; patterns such as 'shard-{00..06}.tar'",
    )  # fmt: skip
    verb.add_argument(
        "--val", nargs="+", action="extend", default=[], metavar="DATA",
        help="held-out photos: the loss on at most val_photos of them (256) is measured with every state",
    )  # fmt: skip
    verb.add_argument("--out", type=Path, required=True, help="folder of the run")
    verb.add_argument("--resume", action="store_true", help="go on from the last state in --out")
    verb.add_argument(
        "--auto-resume",
        action="store_true",
        help="go on from the last state if there is one: for jobs that are restarted",
    )
    verb.add_argument(
        "--cache", type=Path, help="where shards from addresses are kept (default ~/.cache/unmask/shards)"
    )
    verb.add_argument("--init", type=Path, help="weights to begin with instead of random ones")
    verb.add_argument("--name", help="of the new model and its file, instead of the recipe's")
    verb.add_argument("--steps", type=_at_least_one, help="instead of the recipe's steps, epochs or minutes")
    verb.add_argument("--epochs", type=float, help="the same, as how often every photo comes")
    verb.add_argument("--minutes", type=float, help="the same, as many steps as fit")
    verb.add_argument(
        "--batch-size",
        type=int,
        help="instead of the recipe's; a base_lr of the recipe follows it, an lr does not",
    )
    verb.add_argument("--size", help="instead of the recipe's: " + ", ".join(SIZES))
    verb.add_argument(
        "--data-path",
        choices=("auto", "host", "device"),
        help="decode as it goes, or all into the GPU's memory",
    )
    verb.add_argument("--workers", type=_at_least_one, default=1, help="decoding threads (default 1)")
    verb.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")

    verb = verbs.add_parser("shards", help="pack a folder of pictures into tar shards for training")
    verb.set_defaults(verb=_shards)
    verb.add_argument("folder", type=Path)
    verb.add_argument("out", type=Path, help="folder for the shards")
    verb.add_argument(
        "--side", type=_at_least_one, default=256, help="short side at most, pixels (default 256)"
    )
    verb.add_argument("--per-shard", type=_at_least_one, default=2000, help="photos per shard (default 2000)")
    verb.add_argument("--workers", type=_at_least_one, default=1, help="threads (default 1)")


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return int(text)


def _pretrain(given: argparse.Namespace) -> str | None:
    from model.pretrain.launch import pretrain
    from model.pretrain.recipe import load_recipe

    changes = {
        name: getattr(given, name)
        for name in ("name", "steps", "epochs", "minutes", "batch_size", "size", "data_path")
    }
    weights = pretrain(
        load_recipe(given.recipe, **changes),
        given.data,
        given.out,
        resumed=None if given.auto_resume else given.resume,
        init=given.init,
        val=given.val,
        cache=given.cache,
        device=given.device,
        workers=given.workers,
        short=any(changes[length] is not None for length in ("steps", "epochs", "minutes")),
    )
    return f"Weights: {weights}" if weights else None


def _shards(given: argparse.Namespace) -> str:
    from model.pretrain.shards import pack

    packed = pack(given.folder, given.out, side=given.side, per_shard=given.per_shard, workers=given.workers)
    left_out = [f"left out: {fault}" for fault in packed.broken]
    shards = "1 shard" if len(packed.shards) == 1 else f"{len(packed.shards)} shards"
    written = f"{packed.photos} photos in {shards} under {given.out}."
    return "\n".join([f"{packed.found}.", *left_out, written])
