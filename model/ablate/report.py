"""Our table beside the paper's, and where the trends agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.ablate.runs import Setting
from model.ablate.tables import FIGURES, Claim, Row, Table
from model.evaluate import pages, plots
from model.evaluate.fills import resampled

Found = dict[str, dict[str, Any]]
Difference = Callable[[NDArray[np.float64]], NDArray[np.float64]]

_SCALE = (
    "Ours: a small network, a few minutes, few photos. The paper's: ViT-L, 800 epochs of ImageNet-1k. "
    "Only the trends can be compared, never the figures."
)
_INTERVAL = (
    "In brackets the 95 % interval of the difference, by drawing the photos to judge by again, the same ones for both "
    "rows; {plain}. {seeds}. Undecided: the interval holds 0."
)
#: Half an interval, as a share of the larger value, where there are no photos to draw again: of losses, and of speeds
#: where no seeds tell it. One network's speed differed by a factor of 1.5 for the machine's load alone.
_ALIKE, _LOAD = 0.02, 1 / 3
#: Student's t at 97.5 % for 1 to 10 degrees of freedom; more are taken as 10, which only widens.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Seeds:
    """What the seed alone changes.

    Attributes:
        runs: Of one recipe, a seed each.
        deviations: Sample standard deviation of each figure over them; nothing for fewer than two.
    """

    runs: int = 1
    deviations: Mapping[str, float] = field(default_factory=dict)

    def half_width(self, figure: str) -> float:
        """Half the 95 % interval of the difference of two runs that only their seeds set apart; 0 if not known."""
        if figure not in self.deviations:
            return 0.0
        return _STUDENT[min(self.runs - 1, len(_STUDENT)) - 1] * math.sqrt(2) * self.deviations[figure]


def write(
    table: Table, setting: Setting, rows: list[dict[str, Any]], seeds: Seeds | None = None
) -> tuple[Path, list[dict[str, str]]]:
    """Write the report of a table.

    Args:
        table: Which.
        setting: What it was run with.
        rows: As ``runs.run`` gave them.
        seeds: What they alone change, from ``spread``; None where none were run.

    Returns:
        The Markdown file, and every claim with its verdict.
    """
    found = {row["name"]: row for row in rows if "figures" in row}
    verdicts = [judge(claim, found, seeds or Seeds()) for claim in table.claims]
    facts = {
        "table": table.name, "title": table.title, "budget_min": setting.budget_min, "samples": setting.samples,
        "tuned": setting.tuned, "equal": setting.equal, "recipe": setting.recipe, "label_share": setting.label_share,
        "seeds": setting.seeds, "rows": without_photos(rows), "claims": verdicts,
    }  # fmt: skip
    blocks: list[pages.Block] = [f"{_SCALE} {_length(setting)}", _table(table, found)]
    blocks += [f"{row['name']} could not be run: {row['error']}" for row in rows if "error" in row]
    if verdicts:
        blocks += [
            pages.Heading("The claims, and what these runs say"),
            pages.Table(
                ("claim", "ours", "verdict"), [(of["words"], of["ours"], of["verdict"]) for of in verdicts]
            ),
            _undecided(setting),
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
    lines = [
        (pages.Link(table.title, f"table-{table.name}"), of["words"], of["ours"], of["verdict"])
        for table, claims in judged
        for of in claims
    ]
    counts = {
        verdict: sum(line[-1] == verdict for line in lines)
        for verdict in ("agrees", "disagrees", "undecided", "not measured")
    }
    blocks: list[pages.Block] = [
        f"{_SCALE} {_length(setting)}",
        "Claims by verdict: " + ", ".join(f"{verdict} {count}" for verdict, count in counts.items()) + ".",
        pages.Table(("table", "claim", "ours", "verdict"), lines),
        _undecided(setting),
    ]
    return pages.write(
        setting.out,
        "ablations",
        "The paper's ablations, run here",
        {"claims": {table.title: claims for table, claims in judged}},
        blocks,
    )


def spread(rows: list[dict[str, Any]]) -> Seeds:
    """What the seed alone changes, by rows of one recipe; of the figures that all of them have."""
    figures = [row["figures"] for row in rows if "figures" in row]
    shared = [name for name in FIGURES if len(figures) > 1 and all(name in of for of in figures)]
    return Seeds(len(figures), {name: float(np.std([of[name] for of in figures], ddof=1)) for name in shared})


def without_photos(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the figures of each photo, which are long."""
    return [{key: value for key, value in row.items() if key != "each_photo"} for row in rows]


def _undecided(setting: Setting) -> str:
    if not setting.seeds:
        return _INTERVAL.format(
            plain="for losses 2 % to either side, for speeds a third, as much as other work on the machine changes",
            seeds="One run a row: what another seed changes is not in it",
        )
    return _INTERVAL.format(
        plain="for losses and speeds 2 % to either side",
        seeds="Widened by what the seed alone changes, as the standard deviation over "
        f"{setting.seeds + 1} seeds of the unchanged recipe tells it (table-seeds, Student's t)",
    )


def _length(setting: Setting) -> str:
    if setting.samples is not None:
        tuned = f"and {setting.tuned:,} in fine-tuning" if setting.tuned else "and was not fine-tuned"
        return f"A row of length 1 saw {setting.samples:,} photos in pre-training (recipe {setting.recipe}) {tuned}."
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
        figures = own["figures"] if own else {}
        return (
            row.name,
            own["samples"] if own else None,
            *(figures.get(name) for name in ours),
            *(row.paper.get(name) for name in papers),
        )

    return pages.Table(header, [cells(row) for row in table.rows])


def judge(claim: Claim, found: Found, seeds: Seeds) -> dict[str, str]:
    """Whether a claim holds in our rows: ``agrees``, ``disagrees``, ``undecided`` or ``not measured``.

    It is decided where 0 lies outside the 95 % interval of the difference: each side is what the photos leave open
    and what the seed changes, by the root of the sum of squares.

    Args:
        claim: What to check.
        found: Rows by name.
        seeds: What they alone change.
    """
    verdict = {"words": claim.words, "figure": claim.figure, "ours": "–", "verdict": "not measured"}
    compared = _compared(claim, found)
    if compared is None:
        return verdict
    values, words, difference = compared
    figures = np.array([found[row]["figures"][figure] for row, figure in values])
    here = float(difference(figures))
    if all(figure in found[row]["each_photo"] for row, figure in values):
        draws, _ = resampled(np.stack([found[row]["each_photo"][figure] for row, figure in values], axis=1))
        low, high = np.percentile(difference(draws), [2.5, 97.5])
        # A spread drawn again is larger on average, so that the interval may lie beside what was found.
        sides = np.maximum([here - low, high - here], 0)
    else:
        unknown = claim.figure == "images_per_second" and claim.figure not in seeds.deviations
        sides = np.full(2, (_LOAD if unknown else _ALIKE) * np.abs(figures).max())
    seeded = math.hypot(*(seeds.half_width(figure) for figure in {figure for _, figure in values}))
    low, high = here - math.hypot(sides[0], seeded), here + math.hypot(sides[1], seeded)
    verdict["ours"] = f"{words}; {here:+.3g} ({low:.3g} to {high:.3g})"
    if low <= 0 <= high:
        verdict["verdict"] = "undecided"
    else:
        verdict["verdict"] = "agrees" if here > 0 else "disagrees"
    return verdict


def _compared(claim: Claim, found: Found) -> tuple[list[tuple[str, str]], str, Difference] | None:
    """Rows and figures, words, and what of their means ``[..., K]`` should be above 0; None if not measured."""
    if claim.spread_below is None:
        pair = [(str(name), claim.figure) for name in (claim.higher, claim.lower)]
        if any(figure not in found.get(name, {}).get("figures", {}) for name, figure in pair):
            return None
        words = ", ".join(f"{name}: {found[name]['figures'][claim.figure]:.4g}" for name, _ in pair)
        return pair, words, _first_less_second
    names = [name for name, row in found.items() if {claim.figure, claim.spread_below} <= set(row["figures"])]
    if len(names) < 2:
        return None
    sides = [[(name, figure) for name in names] for figure in (claim.spread_below, claim.figure)]
    wide, narrow = (np.ptp([found[name]["figures"][figure] for name, figure in side]) for side in sides)

    def spreads(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.ptp(means[..., : len(names)], -1) - np.ptp(means[..., len(names) :], -1))

    return sides[0] + sides[1], f"spread {narrow:.4g} against {wide:.4g}", spreads


def _first_less_second(means: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(means[..., 0] - means[..., 1])


def _plots(table: Table, found: Found) -> list[pages.Block]:
    """Ours and the paper's, each on its own axis, where the rows are more than two."""
    figures: list[pages.Block] = []
    done = [row for row in table.rows if row.name in found]
    if len(done) < 3:
        return figures
    for name in ("linear", "finetune"):
        for whose, values in (
            ("ours", [found[row.name]["figures"].get(name) for row in done]),
            ("paper", [row.paper.get(name) for row in done]),
        ):
            points = [(place, value) for place, value in enumerate(values, 1) if value is not None]
            if len(points) < 3:
                continue
            series = {whose: ([float(place) for place, _ in points], [float(value) for _, value in points])}
            label = "row: " + ", ".join(f"{place} = {row.name}" for place, row in enumerate(done, 1))
            title = f"{FIGURES[name]}, {whose}"
            figures.append(
                pages.Figure(
                    f"table-{table.name}-{name}-{whose}", plots.lines(title, "row", "percent", series), label
                )
            )
    return figures
