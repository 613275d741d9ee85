"""The verbs about weight files: ``inspect``, ``convert``, ``prove``, ``weights``. Options in, what to print out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.checkpoints.shapes import Given


_KEY = "where the weights are in a pickle that holds several: model_ema for an average"


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``inspect``, ``convert``, ``prove`` and ``weights`` to the command line."""
    verb = verbs.add_parser("inspect", help="say what a weight file is and what it is good for")
    verb.set_defaults(verb=_inspect)
    verb.add_argument("file", type=Path, help="weight file, Hugging Face folder, or a name of `weights list`")
    verb.add_argument("--photos", type=Path, help="folder of pictures to measure an unknown target on")
    verb.add_argument("--json", action="store_true")
    _what_no_tensor_tells(verb)
    verb.add_argument("--weights-key", metavar="KEY", help=_KEY)

    verb = verbs.add_parser("convert", help="write a weight file in another layout")
    verb.set_defaults(verb=_convert)
    verb.add_argument("source", type=Path, metavar="IN", help="as for inspect")
    verb.add_argument("out", type=Path, metavar="OUT", help="file to write; for huggingface a folder")
    verb.add_argument("--to", required=True, choices=("unmask", "authors", "huggingface", "timm", "onnx"))
    _what_no_tensor_tells(verb)
    verb.add_argument("--weights-key", metavar="KEY", help=_KEY)

    verb = verbs.add_parser(
        "prove", help="compare the fast engine with torch, and keep the proof beside the file"
    )
    verb.set_defaults(verb=_prove)
    verb.add_argument("file", type=Path, nargs="?", help="weight file (default: the shipped mini)")
    _add_weights(verbs)


def _add_weights(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    deeds = verbs.add_parser("weights", help="public weights by name: list, fetch, check").add_subparsers(
        required=True, metavar="DEED"
    )
    deed = deeds.add_parser("list", help="names, what they hold, and which are here")
    deed.set_defaults(verb=_list)
    deed.add_argument("--json", action="store_true")

    deed = deeds.add_parser("pull", help="fetch the weights of a name")
    deed.set_defaults(verb=_pull)
    deed.add_argument("names", nargs="+", metavar="NAME")
    deed.add_argument("--accept-licence", action="store_true", help="without being asked")

    deed = deeds.add_parser("verify", help="measure files against the hashes recorded when they came")
    deed.set_defaults(verb=_verify)
    deed.add_argument("names", nargs="*", metavar="NAME", help="default: all that are here")

    deed = deeds.add_parser("add", help="give a name to a file, an address or a Hub repository")
    deed.set_defaults(verb=_add)
    deed.add_argument("name", metavar="NAME")
    deed.add_argument("source", metavar="SOURCE", help="a path, an https address, or hub:OWNER/NAME")
    deed.add_argument("--licence", default="not stated")
    deed.add_argument("--sha256", default="", help="what the file must be")
    deed.add_argument("--replace", action="store_true", help="replace what was added under this name")
    _what_no_tensor_tells(deed)

    deed = deeds.add_parser("remove", help="forget a name that was added; its file stays")
    deed.set_defaults(verb=_remove)
    deed.add_argument("name", metavar="NAME")


def _inspect(given: argparse.Namespace) -> str:
    from model.checkpoints.report import inspect

    report = inspect(given.file, _given(given), given.photos)
    return json.dumps(report.to_dict()) if given.json else "\n".join(report.lines())


def _convert(given: argparse.Namespace) -> str:
    from model.checkpoints.convert import check_out, convert, timm_call, write_timm

    if given.to == "onnx":
        from model.checkpoints import store
        from model.export import write_onnx

        check_out(given.source, given.out, "onnx")
        return f"Written: {write_onnx(store.read(given.source, _given(given)), given.out)}"
    if given.to == "timm":
        config = write_timm(given.source, given.out, _given(given))
        return f"Written: {given.out}\nOpen it: {timm_call(config, given.out)}"
    return f"Written: {convert(given.source, given.out, to=given.to, given=_given(given))}"


def _prove(given: argparse.Namespace) -> str:
    from model.checkpoints.registry import shipped
    from model.loading import prove

    place, error = prove(given.file or shipped())
    return f"Written: {place}; OpenVINO differs from torch by {error:.1e} of the largest value."


def _list(given: argparse.Namespace) -> str:
    from dataclasses import asdict

    from model.checkpoints import registry

    rows = [(entry, registry.state(entry)) for entry in registry.entries().values()]
    if given.json:
        return json.dumps([asdict(entry) | {"here": state} for entry, state in rows])
    lines = [f"{'name':30s} {'MB':>6s}  {'here':9s}  {'predicts':16s}  {'licence':12s}  shows"]
    lines += [
        f"{entry.name:30s} {entry.bytes / 1e6:6.1f}  {state or '-':9s}  {entry.predicts or '-':16s}  "
        f"{entry.licence:12s}  {entry.shows or '-'}"
        for entry, state in rows
    ]
    return "\n".join(lines)


def _pull(given: argparse.Namespace) -> str:
    from model.checkpoints.pull import pull

    paths = [pull(name, accepted=given.accept_licence, ask=_ask) for name in given.names]
    return "\n".join(f"{name}: {path}" for name, path in zip(given.names, paths, strict=True))


def _ask(text: str) -> bool:
    try:
        return input(f"{text}\nDo you accept it? [yes/no] ").strip().lower() in ("y", "yes")
    except EOFError:  # nobody there to answer
        return False


def _verify(given: argparse.Namespace) -> str:
    from model.checkpoints import registry
    from model.checkpoints.files import refuse

    found = registry.verify(given.names)
    if wrong := [f"{name}: {fault}" for name, fault in found.items() if fault]:
        raise refuse(
            ". ".join(wrong),
            "Remove what was pulled and pull it again; for your own files take the new one with weights add --replace, "
            "or forget the name with weights remove.",
            "hash",
        )
    return "\n".join(f"{name}: unchanged" for name in found) or "Nothing was pulled or added."


def _add(given: argparse.Namespace) -> str:
    from model.checkpoints import registry

    kind, text = "path", given.source
    if text.startswith("hub:"):
        kind, text = "hub", text.removeprefix("hub:")
    elif "://" in text:
        kind = "file"
    facts = {
        "sha256": given.sha256.lower(),
        "licence": given.licence,
        "predicts": given.target,
        "heads": given.heads,
        "decoder_heads": given.decoder_heads,
        kind: text,
    }
    entry = registry.add(registry.Entry(name=given.name, **facts), replace=given.replace)
    told = f", sha256 {entry.sha256}" if entry.sha256 else ""
    return f"{entry.name} is {entry.source}{told}."


def _remove(given: argparse.Namespace) -> str:
    from model.checkpoints import registry

    registry.remove(given.name)
    return f"{given.name} is forgotten; its files stay."


def _given(given: argparse.Namespace) -> Given:
    from model.checkpoints.shapes import Given

    return Given(
        heads=given.heads,
        decoder_heads=given.decoder_heads,
        target=given.target,
        weights_key=given.weights_key,
    )


def _what_no_tensor_tells(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--heads", type=int, help="attention heads of the encoder, where the file does not say")
    verb.add_argument("--decoder-heads", type=int, help="the same of the decoder")
    verb.add_argument("--target", choices=("pixel", "norm_pixel"), help="what is predicted, likewise")
