"""Our table beside the paper's, and where the trends agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
_UNDECIDED = (
    "In brackets the 95 % interval of the difference, by drawing the photos to judge by again, the same ones for both "
    "rows; for losses and speeds, 2 % to either side. Undecided: the interval holds 0"
)
#: Relative difference below which losses and speeds, which have no interval, count as alike.
_ALIKE = 0.02


def write(
    table: Table, setting: Setting, rows: list[dict[str, Any]], apart: Mapping[str, float] | None = None
) -> tuple[Path, list[dict[str, str]]]:
    """Write the report of a table.

    Args:
        table: Which.
        setting: What it was run with.
        rows: As ``runs.run`` gave them.
        apart: How far seeds alone set the figures apart, from ``spread``.

    Returns:
        The Markdown file, and every claim with its verdict.
    """
    found = {row["name"]: row for row in rows if "figures" in row}
    verdicts = [judge(claim, found, apart or {}) for claim in table.claims]
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
    kinds = {
        "agrees": "agree",
        "disagrees": "disagree",
        "undecided": "are undecided",
        "not measured": "were not measured",
    }
    counts = {words: sum(line[-1] == name for line in lines) for name, words in kinds.items()}
    blocks: list[pages.Block] = [
        f"{_SCALE} {_length(setting)}",
        "Of the claims here " + ", ".join(f"{count} {words}" for words, count in counts.items()) + ".",
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


def spread(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How far apart the figures of rows lie, largest less smallest, of those that all rows have."""
    figures = [row["figures"] for row in rows]
    shared = [name for name in FIGURES if all(name in of for of in figures)]
    return {name: max(of[name] for of in figures) - min(of[name] for of in figures) for name in shared}


def without_photos(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the figures of each photo, which are long."""
    return [{key: value for key, value in row.items() if key != "each_photo"} for row in rows]


def _undecided(setting: Setting) -> str:
    if not setting.seeds:
        return f"{_UNDECIDED}. One run a row: the spread between seeds is not measured."
    return (
        f"{_UNDECIDED}, or the difference is no larger than that between the best and the worst of "
        f"{setting.seeds + 1} seeds of the unchanged recipe (table-seeds)."
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


def judge(claim: Claim, found: Found, apart: Mapping[str, float]) -> dict[str, str]:
    """Whether a claim holds in our rows: ``agrees``, ``disagrees``, ``undecided`` or ``not measured``.

    Args:
        claim: What to check.
        found: Rows by name.
        apart: How far seeds alone set each figure apart.
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
    else:
        low, high = here - _ALIKE * np.abs(figures).max(), here + _ALIKE * np.abs(figures).max()
    verdict["ours"] = f"{words}; {here:+.3g} ({low:.3g} to {high:.3g})"
    if low <= 0 <= high or abs(here) <= max(apart.get(figure, 0.0) for _, figure in values):
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
