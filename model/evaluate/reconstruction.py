"""How well a model repaints photos it has never seen, beside classical fills of the same holes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from model import views
from model.errors import DataError, ImageError, MaskError
from model.evaluate import bounds, pages, plots, state
from model.evaluate.accuracy import wilson
from model.evaluate.fills import FILLS, METRICS, figures, norm_pixel_loss, resampled
from model.images import encode
from model.masking import SAMPLERS, hidden_count
from model.options import Options
from model.pretrain.data import Photos, places
from model.reconstruct import Reconstructor
from model.result import Job
from model.views import VIEWS

SOURCES = ("model", *FILLS)
_COLUMN = {name: place for place, name in enumerate(METRICS)}
_PSNR, _SSIM = _COLUMN["psnr_db"], _COLUMN["ssim"]
_PLAIN = ("nmse", "psnr_db", "ssim", "colour_error_percent")
#: What the painted photos have, over what the true ones have: of means, so that plain photos do not outweigh.
_RATIOS = {
    "sharpness": ("inner_steps", "true_inner_steps"),
    "seam_ratio": ("steps", "true_steps"),
    "fine_detail": ("detail", "true_detail"),
}
#: At most so much is rounding.
_NOTHING = 1e-12
#: Figures of a report, with their names for people.
_WORDS = {
    "nmse": "nmse",
    "norm_pixel_unexplained": "unexplained",
    "psnr_db": "PSNR dB",
    "ssim": "SSIM",
    "colour_error_percent": "colour error %",
    "sharpness": "sharpness",
    "seam_ratio": "seam ratio",
    "fine_detail": "fine detail",
}
#: Photos in one pass.
_BATCH = 8
#: Photos below which the draws lie too close together: an interval of five holds the truth in 83 of 100 cases.
_FEW = 10
#: Photos of each kind (best, median, worst) on the contact sheet.
_SHOWN = 3


@dataclass(frozen=True)
class Setting:
    """One kind of mask.

    Raises:
        MaskError: Its strategy is not a sampled one, or its ratio gives no mask.
    """

    strategy: str
    ratio: str

    def __post_init__(self) -> None:
        if self.strategy not in SAMPLERS:
            raise MaskError(
                f"strategy is {self.strategy!r:.60}; it must be one of {', '.join(SAMPLERS)}.",
                code="mask-strategy",
                hint="Only these give every photo a mask of its own.",
                field="strategy",
            )
        hidden_count(self.ratio, 1)  # refuses what hides nothing or everything

    def words(self) -> str:
        """For people."""
        return f"{self.strategy} {100 * self.share:g}%"

    @property
    def share(self) -> float:
        """The ratio as a number."""
        return float(Fraction(self.ratio))


def evaluate(
    reconstructor: Reconstructor,
    photos: Photos,
    *,
    strategies: Sequence[str] = ("random",),
    ratios: Sequence[str] = ("0.75",),
    view: str | None = None,
    limit: int | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Scores over the hidden pixels of many photos, for every strategy at every ratio.

    Args:
        reconstructor: The model.
        photos: Centre crops are taken of each.
        strategies: Sampled ones; photo number n is masked with seed n, so every model sees equal masks.
        ratios: Shares hidden.
        view: How a normalised prediction becomes a picture; None for the model's first.
        limit: Take only this many photos, evenly spaced.
        out: Folder for the report, its plots and the contact sheet; None for none.

    Returns:
        JSON-ready: the model, and for each of ``settings`` the mean of every figure with its 95 % interval, for the
        model and each fill, the shares of photos on which the model beats linear interpolation, the model's figures
        for each photo, and ``norm_pixel_loss`` of a model of normalised pixels, see ``fills``. None are the bounds
        that one photo cannot give, and ratios to what no photo has, such as the sharpness of blank ones.

    Raises:
        DataError: A photo cannot be used; named.
        MaskError: A strategy or ratio gives no mask; before the first photo.
        RecipeError: ``limit`` leaves no photo.
    """
    numbers = _chosen(photos, limit)
    settings = list(dict.fromkeys(Setting(*pair) for pair in itertools.product(strategies, ratios)))
    measured = [_measure(reconstructor, photos, numbers, setting, view) for setting in settings]
    tables = [table for table, _ in measured]
    shown = view or reconstructor.views[0]
    facts = {
        "model": reconstructor.name,
        "digest": reconstructor.digest,
        "asked": _asked(reconstructor, photos, strategies, ratios, view, limit),
        "photos": len(numbers),
        "view": shown,
        "view_note": VIEWS[shown],
        "settings": [_summary(setting, *of) for setting, of in zip(settings, measured, strict=True)],
    }
    if out:
        sheet = _contact_sheet(reconstructor, photos, numbers, settings[0], view, tables[0])
        pages.write(
            out, _name(reconstructor), f"Reconstruction: {reconstructor.name}",
            facts, list(_blocks(_name(reconstructor), facts, settings, tables, sheet)),
        )  # fmt: skip
    return facts


def answer(
    reconstructor: Reconstructor, photos: Photos, out: Path, *,
    strategies: Sequence[str], ratios: Sequence[str], view: str | None = None, limit: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What ``evaluate`` says, from the folder where it was asked before.

    Raises:
        DataError: The folder holds the answer to another question.
    """
    return state.answered(
        out / f"{_name(reconstructor)}.json",
        _asked(reconstructor, photos, strategies, ratios, view, limit),
        lambda: evaluate(
            reconstructor, photos, strategies=strategies, ratios=ratios, view=view, limit=limit, out=out
        ),
    )


def _name(reconstructor: Reconstructor) -> str:
    """Name of an answer's files."""
    return f"reconstruct-{state.stem(reconstructor.name)}"


def _asked(
    reconstructor: Reconstructor, photos: Photos, strategies: Sequence[str], ratios: Sequence[str],
    view: str | None, limit: int | None,
) -> str:  # fmt: skip
    """Digest of what decides the answer."""
    numbers = _chosen(photos, limit)  # of all the photos: a photo's number is the seed of its mask
    which = [numbers, places(photos.entries[number] for number in numbers)]
    shown = view or reconstructor.views[0]
    return state.digest(reconstructor.identity, which, list(strategies), list(ratios), shown, METRICS)


def _chosen(photos: Photos, limit: int | None) -> list[int]:
    """Numbers of as many photos, evenly spaced; RecipeError for none."""
    bounds.check(limit=limit)
    count = min(limit or len(photos), len(photos))
    chosen: list[int] = np.linspace(0, len(photos) - 1, count).astype(int).tolist()
    return chosen


def _options(setting: Setting, view: str | None, number: int) -> Options:
    # Similarity is scored once, here, beside that of the other sources.
    return Options(strategy=setting.strategy, ratio=setting.ratio, seed=number, view=view, ssim=False)


def _measure(
    reconstructor: Reconstructor, photos: Photos, numbers: list[int], setting: Setting, view: str | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
    """``[N, sources, metrics]``, and the loss ``[N]`` of a model of normalised pixels; ``[0]`` for another."""
    rows, losses = [], []
    normalised = reconstructor.loaded.facts.config.target != "pixel"
    with tqdm(total=len(numbers), desc=setting.words(), unit="photo") as bar:
        for start in range(0, len(numbers), _BATCH):
            part = numbers[start : start + _BATCH]
            jobs = [_prepared(reconstructor, photos, n, _options(setting, view, n)) for n in part]
            for job, prediction in zip(jobs, reconstructor.run(jobs), strict=True):
                original = reconstructor.finish(job, prediction).compared
                hidden = views.pixel_mask(job.hidden, job.grid, reconstructor.patch_size)
                rows.append(figures(original, prediction.pixels, hidden, reconstructor.patch_size))
                if normalised:
                    losses.append(_loss(reconstructor, job))
                bar.update()
    return np.stack(rows), np.array(losses)


def _prepared(reconstructor: Reconstructor, photos: Photos, number: int, options: Options) -> Job:
    try:
        return reconstructor.prepare(photos.read(number), options)
    except ImageError as error:  # its words are for who sent one picture
        entry = photos.entries[number]
        raise DataError(
            f"{entry.place} cannot be used: {error}",
            code="data-broken",
            hint="Remove or replace this picture.",
            field="data",
        ) from error


def _loss(reconstructor: Reconstructor, job: Job) -> float:
    """Of what the network says, before any view made a picture of it."""
    config, mask = reconstructor.loaded.facts.config, job.mask
    pixels = job.pixels[..., : config.channels]
    pred = reconstructor.loaded.engine_for(mask.grid).run(
        pixels[None], mask.ids_keep[None], mask.ids_restore[None], job.options.positions
    )[0, :, : config.patch_values]
    image = views.Colours.of(config).normalised(pixels)
    return norm_pixel_loss(image, pred, mask.hidden, config.patch_size)


def _summary(setting: Setting, table: NDArray[np.float64], losses: NDArray[np.float64]) -> dict[str, Any]:
    """Means, intervals and shares of one table ``[N, sources, metrics]``, and of losses ``[N]`` where there are any."""
    draws, chosen = resampled(table)
    drawn, means = _reported(draws), _reported(table.mean(axis=0))
    scores = {
        source: {of: _interval(means[of][place], drawn[of][:, place], len(table)) for of in _WORDS}
        for place, source in enumerate(SOURCES)
    }
    model, other = table[:, 0], table[:, SOURCES.index("interpolation")]
    gain = model[:, _PSNR] - other[:, _PSNR]
    shares = {
        "share_psnr_1db_above_interpolation": gain >= 1,
        "share_ssim_above_interpolation": model[:, _SSIM] > other[:, _SSIM],
    }
    return {
        "strategy": setting.strategy,
        "ratio": setting.share,
        "scores": scores,
        "psnr_db_above_interpolation": _resampled_interval(gain, chosen),
        **{name: _share(flags) for name, flags in shares.items()},
        **({"norm_pixel_loss": _resampled_interval(losses, chosen)} if len(losses) else {}),
        "each_photo": _each_photo(model),
    }


def _reported(means: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Figures from means over photos ``[..., metrics]``; NaN for a ratio to nothing."""
    of = {name: means[..., column] for name, column in _COLUMN.items()}
    return {
        **{name: of[name] for name in _PLAIN},
        # A standardised patch is scaled by one factor, never turned over: no agreement counts as none.
        "norm_pixel_unexplained": 1 - np.square(np.maximum(of["agreement"], 0)),
        **{
            name: np.divide(
                of[part], of[whole], out=np.full_like(of[part], np.nan), where=of[whole] > _NOTHING
            )
            for name, (part, whole) in _RATIOS.items()
        },
    }


def _each_photo(table: NDArray[np.float64]) -> dict[str, list[float]]:
    """Figures of each photo of ``[N, metrics]``, for comparisons in pairs.

    Those of the sharpness are made so that their mean is the ratio of means: it, and how far each photo moves it, to
    first order (the delta method). So means of them, over photos drawn again, spread as the ratio does.
    """
    each = {name: table[:, _COLUMN[name]] for name in _PLAIN}
    ratio = _reported(table.mean(axis=0, keepdims=True))["sharpness"]
    if np.isfinite(ratio).all():
        painted, true = (table[:, _COLUMN[name]] for name in _RATIOS["sharpness"])
        each["sharpness"] = ratio + (painted - ratio * true) / true.mean()
    return {name: values.round(5).tolist() for name, values in each.items()}


def _resampled_interval(values: NDArray[np.float64], chosen: NDArray[np.int64]) -> dict[str, float | None]:
    return _interval(values.mean(), values[chosen].mean(axis=1), len(values))


def _share(flags: NDArray[np.bool_]) -> dict[str, float | None]:
    """Of photos; drawn again, none or all of them would have an interval of no width."""
    return _told(
        flags.mean(), *(wilson(int(flags.sum()), len(flags)) if len(flags) > 1 else (np.nan, np.nan))
    )


def _interval(mean: float, draws: NDArray[np.float64], photos: int) -> dict[str, float | None]:
    known = draws[np.isfinite(draws)]  # one draw may be of nothing but blank photos
    low, high = np.percentile(known, [2.5, 97.5]) if photos > 1 and len(known) else (np.nan, np.nan)
    return _told(mean, low, high)


def _told(mean: float, low: float, high: float) -> dict[str, float | None]:
    """``mean``, ``low`` and ``high``; None for what so many photos, or these, cannot tell."""
    values = {"mean": mean, "low": low, "high": high}
    return {name: round(float(value), 4) if math.isfinite(value) else None for name, value in values.items()}


def _contact_sheet(
    reconstructor: Reconstructor, photos: Photos, numbers: list[int], setting: Setting, view: str | None,
    table: NDArray[np.float64],
) -> bytes:  # fmt: skip
    """Columns of best, median and worst photos by the model's nmse; each as masked, pasted, original, at half size."""
    order = np.argsort(table[:, 0, _COLUMN["nmse"]], kind="stable")
    count = min(_SHOWN, len(order))
    middle = (len(order) - count) // 2
    columns = [order[:count], order[middle : middle + count], order[::-1][:count]]
    sheet = []
    for column in columns:
        rows = []
        for place in column.tolist():
            number = numbers[place]
            result = reconstructor(photos.read(number), _options(setting, view, number))
            rows.append(views.side_by_side([result.panel(name) for name in ("masked", "pasted", "original")]))
        sheet.append(np.concatenate(rows, axis=0))
    whole = views.side_by_side(sheet, gap=24)
    half = cv2.resize(whole, (whole.shape[1] // 2, whole.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return encode(np.asarray(half, dtype=np.uint8), "PNG")


def _blocks(
    name: str, facts: dict[str, Any], settings: list[Setting], tables: list[NDArray[np.float64]], sheet: bytes
) -> Iterator[pages.Block]:
    yield (
        f"{facts['photos']} photos, centre crops, photo n masked with seed n; means over hidden pixels, "
        "95 % intervals by drawing the photos again (of shares of the photos Wilson's). "
        f"View: {facts['view']}. {facts['view_note']} The row true_means "
        "is not a model: it reads the mean colour of every hidden patch from the answer, which any picture "
        "un-normalised with the truth has too. Unexplained: the share of the hidden patches' variance, each patch "
        "standardised, that is left when the painted patches are standardised and scaled too."
    )
    if facts["photos"] < _FEW:
        yield (
            f"{facts['photos']} photos are few: the intervals are too narrow."
            if facts["photos"] > 1
            else "One photo: there is no interval."
        )
    for setting, row in zip(settings, facts["settings"], strict=True):
        yield pages.Heading(f"{setting.words()} hidden")
        yield pages.Table(
            ("", *_WORDS.values()),
            [(of, *(_cell(scores[metric]) for metric in _WORDS)) for of, scores in row["scores"].items()],
        )
        yield (
            f"At least 1 dB above linear interpolation on {_percent(row['share_psnr_1db_above_interpolation'])} of the "
            f"photos, SSIM above it on {_percent(row['share_ssim_above_interpolation'])}."
        )
        if loss := row.get("norm_pixel_loss"):
            yield f"Loss of the normalised target, as in training: {_cell(loss)}."
    yield pages.Heading("Best, median, worst")
    yield pages.Figure(
        f"{name}-sheet", sheet,
        f"{settings[0].words()}: best, median and worst photos by nmse; masked, painted, original",
    )  # fmt: skip
    yield pages.Figure(f"{name}-gain", _gains(settings, tables), "Gain over interpolation, all photos")
    if len({row["ratio"] for row in facts["settings"]}) > 1:
        for metric in ("nmse", "norm_pixel_unexplained", "ssim"):
            yield pages.Figure(f"{name}-{metric}", _by_ratio(facts, metric), f"{metric} by ratio")


def _gains(settings: list[Setting], tables: list[NDArray[np.float64]]) -> str:
    series = {}
    other = SOURCES.index("interpolation")
    for setting, table in zip(settings, tables, strict=True):
        gain = np.sort(table[:, 0, _PSNR] - table[:, other, _PSNR])
        places = np.linspace(0, len(gain) - 1, min(len(gain), 101)).astype(int)
        share = 100 * (places + 0.5) / len(gain)
        series[setting.words()] = (share.tolist(), gain[places].tolist())
    return plots.lines("PSNR above linear interpolation", "photos, sorted, percent", "dB", series)


def _by_ratio(facts: dict[str, Any], metric: str) -> str:
    series: dict[str, tuple[list[float], list[float]]] = {}
    for row in sorted(facts["settings"], key=lambda row: row["ratio"]):
        for source in ("model", "interpolation", "telea"):
            xs, ys = series.setdefault(f"{source} {row['strategy']}", ([], []))
            xs.append(row["ratio"])
            ys.append(row["scores"][source][metric]["mean"])
    return plots.lines(f"{metric} over hidden pixels", "ratio hidden", metric, series)


def _percent(value: dict[str, float | None]) -> str:
    return _cell(value, ".1%")


def _cell(value: dict[str, float | None], form: str = ".4g") -> str:
    mean, low, high = (
        "–" if value[of] is None else format(value[of], form) for of in ("mean", "low", "high")
    )
    return f"{mean} (–)" if "–" in (low, high) else f"{mean} ({low} to {high})"
