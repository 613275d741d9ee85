"""``python -m model evaluate QUESTION``: options in, one function of this room called, what to print out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config import SIZES

if TYPE_CHECKING:
    from model.evaluate.features import Encoder
    from model.evaluate.task import Task
    from model.pretrain.data import Photos


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``evaluate`` and its questions to the command line."""
    questions = verbs.add_parser("evaluate", help="measure a model").add_subparsers(
        required=True, metavar="QUESTION"
    )
    verb = questions.add_parser("reconstruct", help="errors over hidden pixels, beside classical fills")
    verb.set_defaults(verb=_reconstruct)
    verb.add_argument("checkpoint", type=Path, help="weight file, folder, or a name of `weights list`")
    verb.add_argument(
        "--data",
        nargs="+",
        action="extend",
        required=True,
        help="folders of pictures, .tar shards or their http(s) addresses",
    )
    verb.add_argument(
        "--ratio", type=_list, default="0.75", help="shares hidden, comma-separated list (default 0.75)"
    )
    verb.add_argument(
        "--strategy", default="random", help="random, block, grid, comma-separated list (default random)"
    )
    verb.add_argument(
        "--view", help="how a normalised prediction becomes a picture; default: the model's first"
    )
    verb.add_argument("--out", type=Path, help="folder for a report with plots and a contact sheet")
    verb.add_argument("--limit", type=int, help="take only this many photos, evenly spaced")
    verb.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    verb.add_argument("--json", action="store_true")

    verb = questions.add_parser("knn", help="name photos by their nearest neighbours in feature space")
    verb.set_defaults(verb=_knn)
    _labelled(verb)
    _drawn(verb)
    verb.add_argument("--k", type=int, help="neighbours (default 20, or all photos where there are fewer)")

    verb = questions.add_parser("linear", help="train one linear layer on frozen features")
    verb.set_defaults(verb=_linear)
    _labelled(verb)
    _drawn(verb)
    verb.add_argument(
        "--features",
        choices=("cached", "augmented"),
        default="cached",
        help="of whole photos, once (default), or of random crops every epoch, as in the paper",
    )
    verb.add_argument("--epochs", type=int, default=90)
    verb.add_argument("--batch-size", type=int, default=256, help="(default 256; the paper's is 16384)")
    verb.add_argument("--lr", type=float, help="instead of one chosen on held-out training photos")

    _add_training(questions)
    _add_transfer(questions)


def _add_training(questions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for kind, words in (
        ("finetune", "train the whole encoder as a classifier"),
        ("partial", "the same, for its last blocks alone"),
        ("scratch", "the same network from random weights, strongly regularised"),
    ):
        verb = questions.add_parser(kind, help=words)
        verb.set_defaults(verb=_finetune, kind=kind)
        _labelled(verb, checkpoint=kind != "scratch", workers=0)
        _drawn(verb)
        if kind == "scratch":
            verb.add_argument("--size", default="mini", help=f"{', '.join(SIZES)} (default mini)")
        if kind == "partial":
            verb.add_argument(
                "--blocks",
                type=float,
                required=True,
                help="last blocks that learn; 0.5 is the MLP half of the last",
            )
        verb.add_argument(
            "--epochs",
            type=float,
            help="default: the paper's for its size: 100 (large, huge: 50), scratch 300 (200)",
        )
        verb.add_argument("--minutes", type=float, help="as many steps as fit, instead of --epochs")
        verb.add_argument("--batch-size", type=int, help="photos per step (default 128)")
        verb.add_argument("--base-lr", type=float, help="learning rate at 256 photos per step")
        verb.add_argument("--layer-decay", type=float, help="rate of a layer over that of the next one")

    verb = questions.add_parser(
        "judge", help="all of these, at several shares of labels, with one table at the end"
    )
    verb.set_defaults(verb=_judge, label_share=1.0, seed=0)
    _labelled(verb, workers=0)
    verb.add_argument(
        "--shares",
        type=_list,
        default="0.1,1",
        help="shares of the labels, comma-separated list (default 0.1,1)",
    )
    verb.add_argument(
        "--blocks",
        type=_list,
        help="for partial fine-tuning, comma-separated list (default 0.5,1,4, as far as the encoder has them)",
    )
    verb.add_argument(
        "--minutes",
        type=float,
        default=10,
        help="of the first fine-tuning; all others see as many photos (default 10)",
    )
    verb.add_argument("--base-lr", type=float, help="of every fine-tuning, at 256 photos per step")


def _add_transfer(questions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = questions.add_parser(
        "transfer", help="train the encoder to find or segment things, on folders in COCO's format"
    )
    verb.set_defaults(verb=_transfer)
    verb.add_argument("checkpoint", type=Path, help="weight file that holds an encoder")
    verb.add_argument("--heads", type=int, help="attention heads of the encoder, where the file does not say")
    verb.add_argument("--recipe", help="TOML file, or a name in model/evaluate/recipes like paper-coco-base")
    verb.add_argument(
        "--task", choices=("detect", "segment"), help="Mask R-CNN (default), or a class per pixel"
    )
    verb.add_argument("--data", type=Path, required=True, help="folder with annotations.json and pictures")
    verb.add_argument("--test", type=Path, required=True, help="folder of test photos, with the same classes")
    verb.add_argument("--out", type=Path, required=True, help="folder for report and curve")
    verb.add_argument("--steps", type=int, help="(default 1000)")
    verb.add_argument("--batch-size", type=int, help="photos per step (default 8)")
    verb.add_argument(
        "--side", type=int, help="of the square a photo is laid into (default: the model's own)"
    )
    verb.add_argument("--lr", type=float, help="top learning rate (default 1e-3)")
    verb.add_argument("--seed", type=int, help="(default 0)")
    verb.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    verb.add_argument("--json", action="store_true")


def _labelled(verb: argparse.ArgumentParser, checkpoint: bool = True, workers: int = 1) -> None:
    if checkpoint:
        verb.add_argument("checkpoint", type=Path, help="weight file that holds an encoder")
        verb.add_argument(
            "--heads", type=int, help="attention heads of the encoder, where the file does not say"
        )
    verb.add_argument(
        "--data", nargs="+", action="extend", required=True,
        help="training photos: folders with a subfolder per class, or .tar shards (or their http(s) addresses) with "
        "'label' in the sidecars",
    )  # fmt: skip
    verb.add_argument("--test", nargs="+", action="extend", required=True, help="test photos, likewise")
    verb.add_argument("--out", type=Path, required=True, help="folder for report, curves and kept features")
    what = "decoding threads" if workers else "processes that augment; 0: the one that trains"
    verb.add_argument("--workers", type=int, default=workers, help=f"{what} (default {workers})")
    verb.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")
    verb.add_argument("--json", action="store_true")


def _drawn(verb: argparse.ArgumentParser) -> None:
    """What ``judge`` does not have: it asks at shares of its own."""
    verb.add_argument(
        "--label-share", type=float, default=1.0, help="share of the labels to train on (default 1)"
    )
    verb.add_argument("--seed", type=int, default=0, help="of the share and of every draw (default 0)")


def _list(text: str) -> tuple[str, ...]:
    """A comma-separated list of numbers, each as it was written."""
    written = tuple(text.split(","))
    try:
        [float(number) for number in written]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of numbers.") from error
    return written


def _task(given: argparse.Namespace) -> Task:
    from model.checkpoints.shapes import Given
    from model.devices import find_device
    from model.evaluate import bounds
    from model.evaluate.features import load_encoder
    from model.evaluate.labelled import Labelled
    from model.evaluate.task import Task

    bounds.check(seed=given.seed)  # before the share that it draws
    train = Labelled.open(given.data)
    test = Labelled.open(given.test, train.classes)
    _tell(train.photos, "training: ")
    _tell(test.photos, "test: ")
    return Task(
        load_encoder(given.checkpoint, Given(heads=given.heads)) if "checkpoint" in given else _random(given),
        train.share(given.label_share, given.seed),
        test,
        given.out,
        find_device(given.device),
        given.workers,
        given.label_share,
    )


def _tell(photos: Photos, what: str = "") -> None:
    """What was found and what was left out, beside the answer and not in it."""
    from tqdm import tqdm

    tqdm.write(f"{what}{photos.told}.", file=sys.stderr)


def _reconstruct(given: argparse.Namespace) -> str:
    from model.evaluate.reconstruction import answer, evaluate
    from model.pretrain.data import Photos
    from model.reconstruct import load

    model, photos = load(given.checkpoint, given.device), Photos.open(given.data)
    _tell(photos)
    asked: dict[str, Any] = {
        "strategies": given.strategy.split(","),
        "ratios": given.ratio,
        "view": given.view,
        "limit": given.limit,
    }
    report = answer(model, photos, given.out, **asked) if given.out else evaluate(model, photos, **asked)
    if given.json:
        return json.dumps(report)
    lines = []
    for setting in report["settings"]:
        lines.append(
            f"{report['model']}, {report['photos']} photos, {setting['strategy']} {100 * setting['ratio']:g}% hidden"
        )
        lines.append(f"{'':14s}" + "".join(f"{name:>24s}" for name in setting["scores"]["model"]))
        for name, row in setting["scores"].items():
            lines.append(f"{name:14s}" + "".join(map(_column, row.values())))
        share = setting["share_psnr_1db_above_interpolation"]["mean"]
        lines.append(f"at least 1 dB above interpolation on {share:.1%} of the photos")
        if loss := setting.get("norm_pixel_loss"):
            lines.append(f"loss of the normalised target, as in training: {loss['mean']:.4f}")
    return "\n".join(lines)


def _column(value: dict[str, float | None]) -> str:
    mean = value["mean"]
    return f"{'–':>24s}" if mean is None else f"{mean:24.4f}"


def _knn(given: argparse.Namespace) -> str:
    from model.evaluate import knn

    return _said(knn.answer(_task(given), given.k, given.seed), given)


def _linear(given: argparse.Namespace) -> str:
    from model.evaluate import linear

    protocol = linear.Protocol(
        form=given.features, epochs=given.epochs, batch_size=given.batch_size, lr=given.lr, seed=given.seed
    )
    return _said(linear.answer(_task(given), protocol), given)


def _random(given: argparse.Namespace) -> Encoder:
    from model.errors import RecipeError
    from model.evaluate.classifier import scratch

    if given.size not in SIZES:
        raise RecipeError(
            f"size is {given.size!r}.", code="size", hint=f"Use one of {', '.join(SIZES)}.", field="size"
        )
    return scratch(SIZES[given.size], given.seed, given.size)


def _finetune(given: argparse.Namespace) -> str:
    from model.evaluate import finetune

    names = ("blocks", "epochs", "minutes", "batch_size", "base_lr", "layer_decay", "seed")
    task = _task(given)
    asked = {name: getattr(given, name, None) for name in names}
    settings = finetune.load_settings(given.kind, asked, task.encoder.config.width)
    return _said(finetune.answer(task, settings), given)


def _judge(given: argparse.Namespace) -> str:
    from model.evaluate import judge

    questions = judge.Questions(
        shares=tuple(map(float, given.shares)),
        blocks=tuple(map(float, given.blocks)) if given.blocks else None,
        minutes=given.minutes,
        base_lr=given.base_lr,
    )
    facts = judge.evaluate(_task(given), questions)
    if given.json:
        return json.dumps(facts)
    lines = [
        f"{row['question']:26s} {row['label_share']:5.0%} of labels {row['percent']:6.2f} % right"
        for row in facts["rows"]
    ]
    return "\n".join([*lines, f"Report: {given.out}"])


def _transfer(given: argparse.Namespace) -> str:
    from model.checkpoints.shapes import Given
    from model.devices import find_device
    from model.evaluate import transfer
    from model.evaluate.coco import Scenes
    from model.evaluate.features import load_encoder

    names = ("task", "steps", "batch_size", "side", "lr", "seed")
    settings = transfer.load_settings(given.recipe, {name: getattr(given, name) for name in names})
    train = Scenes.open(given.data)
    facts = transfer.answer(
        load_encoder(given.checkpoint, Given(heads=given.heads)),
        train,
        Scenes.open(given.test, train.classes),
        given.out,
        settings,
        find_device(given.device),
    )
    if given.json:
        return json.dumps(facts)
    scores = ", ".join(f"{name} {value:.2f} %" for name, value in facts["scores"].items())
    return f"{facts['model']}, {facts['question']}: {scores}\nReport: {given.out}"


def _said(facts: dict[str, Any], given: argparse.Namespace) -> str:
    if given.json:
        return json.dumps(facts)
    lines = [
        f"{name:14s} {facts[name]['percent']:6.2f} % right "
        f"(95 %: {facts[name]['interval_95'][0]:.1f} to {facts[name]['interval_95'][1]:.1f})"
        for name in ("cls", "mean", "answer")
        if name in facts
    ]
    return "\n".join([f"{facts['model']}, {facts['question']}", *lines, f"Report: {given.out}"])
