"""Our table beside the paper's, and where the trends agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.ablate.runs import Setting
from model.ablate.tables import FIGURES, MARGINS, Claim, Row, Table
from model.evaluate import pages, plots
from model.evaluate.fills import resampled

Found = dict[str, dict[str, Any]]

_SCALE = (
    "Ours: a small network, a few minutes, few photos. The paper's: ViT-L, 800 epochs of ImageNet-1k. "
    "Only the trends can be compared, never the figures."
)
_INTERVAL = (
    "In brackets the 95 % interval of the difference, by drawing the test photos again, the same ones for both "
    "rows; {plain}. {seeds}. Undecided: the interval holds 0; for a claim of no more, its margin: as much as two runs "
    "must differ by to be told apart."
)
_TUNED = (
    "† Rests on fine-tuning, which is short here: it says how quickly a head learns on these encoders, and is neither "
    "for nor against the paper."
)
#: Half an interval, as a share of the larger value, where there are no photos to draw again: of losses, and of speeds
#: where no seeds tell it. One network's speed differed by a factor of 1.5 for the machine's load alone.
_ALIKE, _LOAD = 0.02, 1 / 3
#: Figures that say of each photo whether it was named rightly, in percent; and two photos that each row alone names so,
#: added where two rows are compared: drawn again, a few photos on which the rows never differ, or never the other way
#: round, would decide by their silence. Source: Bonett and Price 2012, adjusted Wald interval of paired proportions.
_SHARES = ("linear", "finetune", "knn")
_EITHER = 100 * np.eye(2)


@dataclass(frozen=True)
class Spread:
    """What the seed alone changes in a figure of a row.

    Attributes:
        deviation: Standard deviation.
        freedom: The degrees of freedom it was found with.
    """

    deviation: float
    freedom: int

    def of(self, rows: int) -> float:
        """What the spread of so many rows that only their seeds set apart stays below at 95 %.

        Tukey's studentised range; for two rows that is Student's t times the root of 2: half the interval of their
        difference.
        """
        return _range(rows, self.freedom) * self.deviation


Seeds = Mapping[str, Spread]
"""By figure; none that fewer than two runs tell."""


@cache
def _range(rows: int, freedom: int) -> float:
    from scipy.stats import studentized_range  # slow to import

    return float(studentized_range.ppf(0.95, rows, freedom))


@dataclass(frozen=True)
class _Difference:
    """What a claim is about.

    Attributes:
        values: Row and figure, K of them.
        of: What is asked of their means ``[..., K]``.
        rows: How many are compared at once.
    """

    values: list[tuple[str, str]]
    of: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    rows: int


def write(
    table: Table, setting: Setting, rows: list[dict[str, Any]], seeds: Seeds
) -> tuple[Path, list[dict[str, str]]]:
    """Write the report of a table.

    Args:
        table: Which.
        setting: What it was run with.
        rows: As ``runs.run`` gave them.
        seeds: What they alone change, from ``spread``.

    Returns:
        The Markdown file, and every claim with its verdict.
    """
    found = {row["name"]: row for row in rows if "figures" in row}
    verdicts = [judge(claim, found, seeds) for claim in table.claims]
    facts = {
        "table": table.name, "title": table.title, "budget_min": setting.budget_min, "samples": setting.seen,
        "tuned": setting.tuned, "equal": setting.equal, "recipe": setting.recipe, "label_share": setting.label_share,
        "seeds": setting.seeds, "repeat": setting.repeat, "rows": without_photos(rows), "claims": verdicts,
    }  # fmt: skip
    blocks: list[pages.Block] = [f"{_SCALE} {_length(setting)} {table.note}".rstrip(), _table(table, found)]
    blocks += [f"{row['name']} could not be run: {row['error']}" for row in rows if "error" in row]
    if verdicts:
        blocks += [
            pages.Heading("The claims, and what these runs say"),
            pages.Table(
                ("claim", "ours", "verdict"),
                [
                    (_marked(claim), of["ours"], of["verdict"])
                    for claim, of in zip(table.claims, verdicts, strict=True)
                ],
            ),
            *_notes(setting, table.claims),
        ]
    blocks += _plots(table, found)
    return pages.write(setting.out, f"table-{table.name}", table.title, facts, blocks), verdicts


def write_all(setting: Setting, judged: Sequence[tuple[Table, list[dict[str, str]]]]) -> Path:
    """Write the page that holds the verdicts of several tables, ``ablations``.

    Args:
        setting: What they were run with.
        judged: Tables and their verdicts.

    Returns:
        The Markdown file.
    """
    each = [(table, *pair) for table, of in judged for pair in zip(table.claims, of, strict=True)]
    lines = [
        (pages.Link(table.title, f"table-{table.name}"), _marked(claim), of["ours"], of["verdict"])
        for table, claim, of in each
    ]
    others = [of["verdict"] for _, claim, of in each if "finetune" not in claim.figures]
    blocks: list[pages.Block] = [
        f"{_SCALE} {_length(setting)}",
        f"{len(each)} claims by verdict: {_counts([of['verdict'] for *_, of in each])}. The {len(others)} that do not "
        f"rest on fine-tuning: {_counts(others)}. Each is judged by itself at 95 %: were nothing different anywhere, "
        f"about {0.05 * len(each):.0f} would be decided all the same.",
        pages.Table(("table", "claim", "ours", "verdict"), lines),
        *_notes(setting, [claim for _, claim, _ in each]),
    ]
    return pages.write(
        setting.out,
        "ablations",
        "The paper's ablations, run here",
        {"claims": {table.title: claims for table, claims in judged}},
        blocks,
    )


def spread(groups: Iterable[list[dict[str, float]]], averaged: int = 1) -> Seeds:
    """What the seed alone changes in a row, its variance pooled over groups of runs.

    Args:
        groups: Figures of runs that nothing else sets apart.
        averaged: How many runs a row's figures are the means of.
    """
    each = list(groups)
    seeds = {}
    for name in FIGURES:
        values = [[run[name] for run in runs if name in run] for runs in each]
        squares = sum(float(np.var(of)) * len(of) for of in values if of)
        if freedom := sum(len(of) - 1 for of in values if of):
            seeds[name] = Spread(math.sqrt(squares / freedom / averaged), freedom)
    return seeds


def without_photos(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the figures of each photo, which are long."""
    return [{key: value for key, value in row.items() if key != "each_photo"} for row in rows]


def _counts(verdicts: Sequence[str]) -> str:
    kinds = ("agrees", "disagrees", "undecided", "not measured")
    return ", ".join(f"{kind} {verdicts.count(kind)}" for kind in kinds)


def _marked(claim: Claim) -> str:
    return claim.words + (" †" if "finetune" in claim.figures else "")


def _notes(setting: Setting, claims: Sequence[Claim]) -> list[str]:
    return [_interval_words(setting)] + [_TUNED] * any("finetune" in claim.figures for claim in claims)


def _interval_words(setting: Setting) -> str:
    if not setting.seeds and setting.repeat == 1:
        return _INTERVAL.format(
            plain="for losses 2 % to either side, for speeds a third, as much as other work on the machine changes",
            seeds="One run per row: what another seed changes is not in it",
        )
    told = (
        f"over {setting.seeds + 1} seeds of the unchanged recipe tells it (table-seeds"
        if setting.seeds
        else f"within the rows tells it (pooled; a row is the mean of {setting.repeat} seeds, ± their own deviation"
    )
    return _INTERVAL.format(
        plain="for losses and speeds 2 % to either side",
        seeds=f"Widened by what the seed alone changes, as the standard deviation {told}; Student's t, for a spread "
        "over more rows Tukey's range); not between rows that tune one pre-trained encoder",
    )


def _length(setting: Setting) -> str:
    if setting.seen is not None:
        tuned = f"and {setting.tuned:,} in fine-tuning" if setting.tuned else "and was not fine-tuned"
        return f"A row of length 1 saw {setting.seen:,} photos in pre-training (recipe {setting.recipe}) {tuned}."
    return f"All rows have equal {setting.equal}; the whole table had {setting.budget_min:g} minutes."


def _table(table: Table, found: Found) -> pages.Table:
    ours = [name for name in FIGURES if any(name in row["figures"] for row in found.values())]
    papers = [name for name in FIGURES if any(name in row.paper for row in table.rows)]
    header = (
        "",
        "samples",
        *(FIGURES[name] for name in ours),
        *(f"paper: {FIGURES[name]}" for name in papers),
    )

    def cells(row: Row) -> tuple[str | float | int | None, ...]:
        own = found.get(row.name)
        return (
            row.name,
            own["samples"] if own else None,
            *(_cell(own, name) for name in ours),
            *(row.paper.get(name) for name in papers),
        )

    return pages.Table(header, [cells(row) for row in table.rows])


def _cell(row: dict[str, Any] | None, figure: str) -> str | float | None:
    """A figure of a row, and what its seeds' runs deviate by where there are several."""
    if row is None or figure not in row["figures"]:
        return None
    value: float = row["figures"][figure]
    deviation = row.get("deviations", {}).get(figure)
    return value if deviation is None else f"{value:.4g} ± {deviation:.2g}"


def judge(claim: Claim, found: Found, seeds: Seeds) -> dict[str, str]:
    """Whether a claim holds in our rows: ``agrees``, ``disagrees``, ``undecided`` or ``not measured``.

    It is decided where 0, or the margin of a claim of no more, lies outside the 95 % interval of the difference: each
    side is what the photos leave open and what the seed changes, by the root of the sum of squares. A row between two
    has two differences, and both decide.

    Args:
        claim: What to check.
        found: Rows by name.
        seeds: What they alone change.
    """
    verdict = {"words": claim.words, "figure": claim.figure, "ours": "–", "verdict": "not measured"}
    compared = _compared(claim, found)
    if compared is None:
        return verdict
    words, differences = compared
    intervals = [_interval(difference, found, seeds) for difference in differences]
    border = MARGINS[claim.figure] if claim.at_most else 0.0
    verdict["ours"] = "; ".join(
        [words, *(f"{here:+.3g} ({_bounds(low, high)})" for here, low, high in intervals)]
    ) + (f", margin {border:g}" if claim.at_most else "")
    above, below = (
        [low > border for _, low, _ in intervals],
        [high < border for _, _, high in intervals],
    )
    for_it, against = (below, above) if claim.at_most else (above, below)
    verdict["verdict"] = "agrees" if all(for_it) else "disagrees" if any(against) else "undecided"
    return verdict


def _bounds(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}" if math.isfinite(low) else "–"


def _interval(difference: _Difference, found: Found, seeds: Seeds) -> tuple[float, float, float]:
    """What was found, and the 95 % interval about it."""
    values = difference.values
    figures = np.array([found[row]["figures"][figure] for row, figure in values])
    here = float(difference.of(figures))
    if all(figure in found[row]["each_photo"] for row, figure in values):
        each = np.stack([found[row]["each_photo"][figure] for row, figure in values], axis=1)
        paired = len(values) == 2 and values[0][1] in _SHARES
        draws, _ = resampled(np.concatenate([each, _EITHER]) if paired else each)
        low, high = np.percentile(difference.of(draws), [2.5, 97.5])
        # A spread drawn again is larger on average, so that the interval may lie beside what was found. One photo,
        # drawn again, is the same one: it leaves everything open.
        sides = np.maximum([here - low, high - here], 0) if len(each) > 1 else np.full(2, np.inf)
    else:
        name = values[0][1]
        unknown = name == "images_per_second" and name not in seeds
        sides = np.full(2, (_LOAD if unknown else _ALIKE) * np.abs(figures).max())
    # Rows that tune one pre-trained encoder share whatever its seed did.
    shared = len({str(found[row].get("runs", row)) for row, _ in values}) == 1
    names = {figure for _, figure in values if figure in seeds}
    seeded = 0.0 if shared else math.hypot(*(seeds[name].of(difference.rows) for name in names))
    return here, here - math.hypot(sides[0], seeded), here + math.hypot(sides[1], seeded)


def _compared(claim: Claim, found: Found) -> tuple[str, list[_Difference]] | None:
    """Words, and the differences that decide; None if not measured."""
    if claim.spread_below is not None:
        return _spreads(claim.figure, claim.spread_below, found)
    rows = claim.between or claim.at_most or (str(claim.higher), str(claim.lower))
    if any(claim.figure not in found.get(name, {}).get("figures", {}) for name in rows):
        return None
    words = ", ".join(f"{name}: {found[name]['figures'][claim.figure]:.4g}" for name in rows)
    pairs = [(second, first) for first, second in pairwise(rows)] if claim.between else [rows]
    return words, [
        _Difference([(name, claim.figure) for name in pair], _first_less_second, 2) for pair in pairs
    ]


def _spreads(narrow: str, wide: str, found: Found) -> tuple[str, list[_Difference]] | None:
    names = [name for name, row in found.items() if {narrow, wide} <= set(row["figures"])]
    if len(names) < 2:
        return None
    sides = [[(name, figure) for name in names] for figure in (wide, narrow)]
    ranges = [np.ptp([found[name]["figures"][figure] for name, figure in side]) for side in sides]

    def difference(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.ptp(means[..., : len(names)], -1) - np.ptp(means[..., len(names) :], -1))

    words = f"spread {ranges[1]:.4g} against {ranges[0]:.4g}"
    return words, [_Difference(sides[0] + sides[1], difference, len(names))]


def _first_less_second(means: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(means[..., 0] - means[..., 1])


def _plots(table: Table, found: Found) -> Iterator[pages.Figure]:
    """Ours and the paper's, each on its own axis, where the rows are more than two."""
    done = [row for row in table.rows if row.name in found]
    label = "row: " + ", ".join(f"{place} = {row.name}" for place, row in enumerate(done, 1))
    for name in ("linear", "finetune"):
        for whose, values in (
            ("ours", [found[row.name]["figures"].get(name) for row in done]),
            ("paper", [row.paper.get(name) for row in done]),
        ):
            points = [(place, value) for place, value in enumerate(values, 1) if value is not None]
            if len(points) < 3:
                continue
            series = {whose: ([float(place) for place, _ in points], [float(value) for _, value in points])}
            plot = plots.lines(f"{FIGURES[name]}, {whose}", "row", "percent", series)
            yield pages.Figure(f"table-{table.name}-{name}-{whose}", plot, label)
