"""The verbs that take photos: ``reconstruct``, ``embed``, ``classify``. Nothing heavy is imported before them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.errors import ImageError, MaskError, UnmaskError
from model.photos import each, find, refuse_broken

if TYPE_CHECKING:
    from model.images import Photo
    from model.masking import Mask
    from model.options import Options
    from model.provenance import Settings
    from model.result import Job, Prediction, Reconstruction

#: Classes that are told of a photo.
_LIKELIEST = 5


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``reconstruct``, ``embed`` and ``classify`` to the command line."""
    verb = verbs.add_parser("reconstruct", help="hide patches of photos and repaint them")
    verb.set_defaults(verb=reconstruct)
    verb.add_argument(
        "photos",
        type=Path,
        nargs="+",
        metavar="PHOTO",
        help="a picture (/dev/stdin: piped in), several, or a folder of them; or an array [H, W, C] of any "
        "channels as .npy",
    )
    verb.add_argument(
        "--out",
        type=Path,
        help="PNG (or .npy) to write (default: PHOTO-unmasked.png), - to pipe a PNG on; of several pictures the "
        "folder to write to",
    )
    verb.add_argument("--strategy", help="random (default), block, grid, indices or drawing")
    verb.add_argument("--ratio", help="share hidden, above 0 and below 1 (default 0.75)")
    verb.add_argument("--hidden-count", type=int, help="patches to hide, instead of --ratio")
    verb.add_argument("--seed", type=int, help="same seed, same mask (default: drawn and shown)")
    verb.add_argument("--indices", help="hidden patches, row by row from 0, like 0,1,14,15")
    verb.add_argument("--drawing", type=Path, help="black and white picture, white = hidden")
    verb.add_argument(
        "--view",
        help="of a model of normalised pixels: predicted (where trained to), estimated, normalised or oracle; the "
        "default is the first it has",
    )
    verb.add_argument("--fit", help="square (default) or whole: the whole picture at its aspect")
    verb.add_argument(
        "--crop", help="LEFT,TOP,SIDE of the square in pixels of the upright photo (default: centre)"
    )
    verb.add_argument("--grid", help="ROWSxCOLUMNS of patches with --fit whole, each 4 to 40")
    verb.add_argument(
        "--cover",
        help="single (default), complete: complementary masks, every patch predicted, or ensemble: several seeds",
    )
    verb.add_argument("--samples", type=int, help="seeds of an ensemble, 2 to 32 (default 8)")
    verb.add_argument(
        "--positions", help="both (default) or hidden_only: decoder positions of hidden patches alone"
    )
    verb.add_argument(
        "--like", type=Path, help="a picture made here: use its settings; other flags override them"
    )
    verb.add_argument(
        "--panels", help="panels side by side, comma-separated list (default masked,reconstruction,original)"
    )
    verb.add_argument(
        "--full-size",
        action="store_true",
        help="lay one panel (default pasted) over the photo at its own size",
    )
    verb.add_argument("--interpolation", action="store_true", help="also score linear interpolation")
    verb.add_argument(
        "--json",
        action="store_true",
        help="print the service's JSON answer instead of a PNG; of several pictures one line each",
    )
    _add_model(verb)

    verb = verbs.add_parser("embed", help="what the encoder makes of whole photos, as arrays")
    verb.set_defaults(verb=embed)
    verb.add_argument("photos", type=Path, nargs="+", metavar="PHOTO", help="pictures, or folders of them")
    verb.add_argument("--out", type=Path, required=True, help=".npz to write: features, names, model, ...")
    verb.add_argument(
        "--kind", default="cls", help="cls (default) or mean: one vector a photo; patch: one for each patch"
    )
    _add_model(verb)

    verb = verbs.add_parser("classify", help="what photos show, by a classifier that evaluate finetune left")
    verb.set_defaults(verb=classify)
    verb.add_argument(
        "weights", type=Path, help="finetune-NAME.safetensors in the --out of evaluate finetune"
    )
    verb.add_argument("photos", type=Path, nargs="+", metavar="PHOTO", help="pictures, or folders of them")
    verb.add_argument("--json", action="store_true", help="a line each, with all its probabilities")
    verb.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")


def _add_model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--weights",
        type=Path,
        help="weight file, folder, or a name of `weights list` (default: the shipped mini)",
    )
    verb.add_argument("--device", help="cpu, cuda, ... (default: the GPU where there is one)")


def reconstruct(given: argparse.Namespace) -> str | None:
    """Make the picture, or those of several; returns what to print, unless it was printed on the way."""
    # A folder counts as several, however many it holds.
    several = len(given.photos) > 1 or given.photos[0].is_dir()
    if given.photos[0].suffix == ".npy" and not several:
        return _array(given)
    from model.checkpoints.files import replacing
    from model.images import file_of
    from model.reconstruct import load
    from model.result import check_panels

    like = _settings(given.like) if given.like else None
    options = _options(given, like)
    panels = _panels(given, like)
    check_panels(panels, options.cover)
    if given.json:
        _refuse_beside(given, ("out", "full_size"), "is about the picture that --json does not write")
    if several:
        _reconstruct_all(given, options, panels, like)
        return None
    out = _place(given, ".png")
    photo = file_of(given.photos[0])
    result = load(given.weights, given.device)(photo, options)
    if given.json:
        return json.dumps(result.to_dict(panels))
    picture = _picture(given, result, photo, panels)
    told = _told(result, like)
    if out is None:
        sys.stdout.buffer.write(picture)
        sys.stderr.write(told + "\n")
        return None
    with replacing(out) as part:
        part.write_bytes(picture)
    return f"{out}: {told}"


def _reconstruct_all(
    given: argparse.Namespace, options: Options, panels: tuple[str, ...], like: Settings | None
) -> None:
    """A picture, or with ``--json`` a line, for each of several; printed as they are done."""
    from tqdm import tqdm

    from model.checkpoints.files import make_folder, replacing
    from model.reconstruct import load

    options.check()
    photos = find(given.photos)
    outs = {} if given.json else _places(given, photos)
    model = load(given.weights, given.device)
    model.view_of(options)  # what all would be refused for is refused at once
    if options.fit == "square":
        options.masks(model.grid)
    if not given.json:
        make_folder(given.out)

    def finish(name: str, job: Job, prediction: Prediction) -> str:
        result = model.finish(job, prediction)
        if given.json:
            return json.dumps({"photo": name, "result": result.to_dict(panels)})
        picture = _picture(given, result, photos[name], panels)
        with replacing(outs[name]) as part:
            part.write_bytes(picture)
        return f"{outs[name]}: {_told(result, like)}"

    done = 0
    for name, made in each(photos, lambda data: model.prepare(data, options), model.run, finish):
        if not isinstance(made, UnmaskError):
            done += 1
            tqdm.write(made)
        elif given.json:
            problem = {"code": made.code, "detail": f"{made} {made.hint}"}
            tqdm.write(json.dumps({"photo": name, "problem": problem}))
    refuse_broken(done, len(photos))


def embed(given: argparse.Namespace) -> str:
    """Write what the encoder makes of the photos; returns what to print."""
    import numpy as np

    from model.checkpoints.files import make_folder, replacing
    from model.options import unknown_choice
    from model.reconstruct import EMBEDDINGS, load

    if given.kind not in EMBEDDINGS:
        raise unknown_choice("kind", given.kind, EMBEDDINGS)
    out = _place(given, ".npz")
    assert out is not None  # only pictures are printed
    photos = find(given.photos)
    model = load(given.weights, given.device)
    make_folder(out.parent)
    ended = each(
        photos,
        lambda data: model.prepare_embedding(data, given.kind),
        model.embed_all,
        lambda name, look, features: features,
    )
    rows = {name: made for name, made in ended if not isinstance(made, UnmaskError)}
    if rows:
        facts = {"model": model.name, "model_digest": model.digest, "kind": given.kind}
        with replacing(out) as part, part.open("wb") as file:
            np.savez(file, features=np.stack(list(rows.values())), names=list(rows), **facts)
    refuse_broken(len(rows), len(photos))
    shape = " x ".join(map(str, next(iter(rows.values())).shape))
    return f"{out}: {len(rows)} photo{'s' * (len(rows) != 1)}, {shape} numbers each ({given.kind} of {model.name})."


def classify(given: argparse.Namespace) -> None:
    """Print the likeliest classes of each photo, as they are done."""
    from tqdm import tqdm

    from model.devices import find_device
    from model.evaluate.classifier import Classifier

    photos = find(given.photos)
    classifier = Classifier.read(given.weights, find_device(given.device))
    done = 0
    for name, found in each(photos, classifier.prepare, classifier.run, lambda name, image, found: found):
        if isinstance(found, UnmaskError):
            continue
        done += 1
        if given.json:
            line = json.dumps({"photo": name, "model": classifier.name, "probabilities": found})
        else:
            likeliest = list(found.items())[:_LIKELIEST]
            line = f"{name}: " + ", ".join(f"{of} {100 * share:.1f} %" for of, share in likeliest)
        tqdm.write(line)
    refuse_broken(done, len(photos))


def _places(given: argparse.Namespace, photos: Mapping[str, Path]) -> dict[str, Path]:
    """The file to write for each of several pictures.

    Raises:
        MaskError: There is no folder for them, or it is one of those that are read.
    """
    out, wrong = given.out or Path("-"), None
    # Names without their suffixes, unless two would then be one.
    whole = len({Path(name).with_suffix("") for name in photos}) < len(photos)
    places = {name: out / (f"{name}.png" if whole else Path(name).with_suffix(".png")) for name in photos}
    inputs = {path.resolve() for path in (*_inputs(given), *photos.values())}
    if str(out) == "-" or out.suffix.lower() == ".png" or (out.exists() and not out.is_dir()):
        wrong = f"is {given.out or 'missing'}; the results of {len(photos)} pictures need a folder"
    elif taken := [
        path for path in (out, *out.resolve().parents, *places.values()) if path.resolve() in inputs
    ]:
        wrong = f"is {out}, but {taken[0]} is read"
    if wrong:
        raise MaskError(
            f"out {wrong}.",
            code="out",
            hint="Give a folder that holds no photos with --out, or --json to print them.",
            field="out",
        )
    return places


def _inputs(given: argparse.Namespace) -> list[Path]:
    """The paths on the command line that are read."""
    return [*given.photos, *filter(None, map(vars(given).get, ("like", "drawing", "weights")))]


def _place(given: argparse.Namespace, suffix: str) -> Path | None:
    """The file to write, refused before the work where it cannot be; None for the standard output.

    Raises:
        MaskError: It is a folder, is one of the files to read, or its name promises another format.
    """
    photo: Path = given.photos[0]
    out: Path = given.out or photo.parent / f"{photo.stem}-unmasked{suffix}"
    if suffix == ".png" and str(out) == "-":
        return None
    inputs = _inputs(given)
    wrong = None
    if out.is_dir():
        wrong = "is a folder"
    elif any(out.exists() and path.exists() and out.samefile(path) for path in inputs):
        wrong = "is one of the files to read"
    elif out.suffix.lower() != suffix:
        wrong = f"does not end in {suffix}, which is what is written"
    if wrong:
        raise MaskError(
            f"out: {out} {wrong}.", code="out", hint=f"Name another file, *{suffix}.", field="out"
        )
    return out


def _array(given: argparse.Namespace) -> str:
    """The same for an array, which models of any number of channels take."""
    import numpy as np

    from model import arrays
    from model.checkpoints import registry, store
    from model.checkpoints.files import replacing
    from model.devices import find_device

    _refuse_beside(
        given,
        ("like", "panels", "full_size", "json"),
        f"is about pictures, but {given.photos[0].name} is an array",
    )
    out = _place(given, ".npy")
    assert out is not None  # only pictures are printed
    device = find_device(given.device)
    checkpoint = store.read(given.weights or registry.shipped())
    checkpoint.network.to(device)
    result = arrays.repaint(checkpoint, arrays.read(given.photos[0]), _options(given, None))
    with replacing(out) as part, part.open("wb") as file:
        np.save(file, result.values)
    seed = "" if result.seed is None else f", seed {result.seed}"
    return (
        f"{out}: {_hid(result.masks)} "
        f"({given.strategy or 'random'}{seed}); nmse {result.nmse:.3f} (a plain fill: {result.fill_nmse:.3f})."
    )


def _refuse_beside(given: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Nothing is ignored silently."""
    for name in names:
        if getattr(given, name):
            flag = name.replace("_", "-")
            raise MaskError(f"{flag} {why}.", code=flag, hint=f"Leave out --{flag}.", field=name)


def _options(given: argparse.Namespace, like: Settings | None) -> Options:
    from model.options import REPLAYED, Options

    changes: dict[str, Any] = {
        name: getattr(given, name) for name in REPLAYED if getattr(given, name) is not None
    }
    if given.indices is not None:
        changes["indices"] = _indices(given.indices)
    if given.drawing:
        changes["drawing"] = given.drawing
    base = Options() if like is None else Options.from_settings(like)
    if base.indices is not None and changes.keys() & {"strategy", "drawing"}:
        base = replace(base, indices=None)  # another way to hide takes the mask's place
    for name, other in (("crop", "fit"), ("grid", "fit"), ("samples", "cover")):
        if other in changes:  # they belong together
            alone: dict[str, Any] = {name: None}
            base = replace(base, **alone)
    if changes.keys() & {"ratio", "hidden_count"}:
        base = replace(base, ratio=None, hidden_count=None)
    return replace(base, interpolation=given.interpolation, **changes)


def _panels(given: argparse.Namespace, like: Settings | None) -> tuple[str, ...]:
    from model.result import TRIPTYCH

    panels: tuple[str, ...] = ("pasted",) if given.full_size else TRIPTYCH
    if given.panels is not None:
        panels = tuple(name.strip() for name in given.panels.split(","))
    elif like is not None and like.get("panels") and (not given.full_size or len(like["panels"]) == 1):
        panels = tuple(like["panels"])
    if given.full_size and len(panels) != 1:
        raise MaskError(
            f"--full-size lays one panel over the photo, but {len(panels)} are named.",
            code="panels",
            hint="Name one with --panels.",
            field="panels",
        )
    return panels


def _picture(
    given: argparse.Namespace, result: Reconstruction, photo: Photo, panels: tuple[str, ...]
) -> bytes:
    from model import provenance

    if not given.full_size:
        return result.sheet(panels)
    return provenance.write(result.full_size(photo, panels[0]), result.settings(panels))


def _told(result: Reconstruction, like: Settings | None) -> str:
    job, own, fill = result.job, result.metrics, result.metrics["plain_fill"]
    seed = "" if job.seed is None else f", seed {job.seed}"
    others = f"a plain fill: {fill['colour_error_percent']:.1f} %"
    if interpolation := result.metrics.get("interpolation"):
        others += f", linear interpolation: {interpolation['colour_error_percent']:.1f} %"
    other_model = ""
    if like and like.get("model_digest") not in (None, result.digest):
        other_model = (
            f" These are not the weights that made the --like picture ({like.get('model', 'unnamed')})."
        )
    return (
        f"{_hid(job.masks)} ({job.options.strategy}{seed}); "
        f"colours there are off by {own['colour_error_percent']:.1f} % on average ({others}).{other_model}"
    )


def _hid(masks: Sequence[Mask]) -> str:
    counts, patches = [mask.hidden_count for mask in masks], f"of {masks[0].hidden.size} patches"
    if len(set(counts)) > 1:
        return f"hid {' and then '.join(map(str, counts))} {patches}"
    return f"hid {counts[0]} {patches}" + (f" at a time, {len(masks)} times" if len(masks) > 1 else "")


def _settings(path: Path) -> Settings:
    from model import images, provenance

    settings = provenance.read(images.file_of(path))
    if settings is None:
        raise ImageError(
            f"{path} carries no settings.",
            code="settings",
            hint="Give a picture as it was written here; programs that save it again often drop them.",
            field="like",
        )
    return settings


def _indices(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise MaskError(
            "--indices is not a list of whole numbers.",
            code="mask-indices",
            hint="Write them like 0,1,14,15.",
            field="indices",
        ) from None
