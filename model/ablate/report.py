"""Our table beside the paper's, and where the trends agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.ablate.runs import Setting
from model.ablate.tables import FIGURES, Claim, Row, Table
from model.evaluate import pages, plots

Found = dict[str, dict[str, Any]]

_SCALE = (
    "Ours: a small network, a few minutes, few photos. The paper's: ViT-L, 800 epochs of ImageNet-1k. "
    "Only the trends can be compared, never the figures."
)
_UNDECIDED = (
    "Undecided: the difference is within what the photos to judge by leave open at 95 %; for losses and "
    "speeds, below 2 %. One run a row: the spread between seeds is not measured."
)
#: Relative difference below which losses and speeds, which have no interval, count as alike.
_ALIKE = 0.02


def write(table: Table, setting: Setting, rows: list[dict[str, Any]]) -> tuple[Path, list[dict[str, str]]]:
    """Write the report of a table.

    Args:
        table: Which.
        setting: What it was run with.
        rows: As ``runs.run`` gave them.

    Returns:
        The Markdown file, and every claim with its verdict.
    """
    found = {row["name"]: row for row in rows if "figures" in row}
    verdicts = [judge(claim, table, found) for claim in table.claims]
    facts = {
        "table": table.name, "title": table.title, "budget_min": setting.budget_min, "samples": setting.samples,
        "tuned": setting.tuned, "equal": setting.equal, "recipe": setting.recipe, "label_share": setting.label_share,
        "rows": rows, "claims": verdicts,
    }  # fmt: skip
    blocks: list[pages.Block] = [f"{_SCALE} {_length(setting)}", _table(table, found)]
    blocks += [f"{row['name']} could not be run: {row['error']}" for row in rows if "error" in row]
    if verdicts:
        blocks += [
            pages.Heading("The claims, and what these runs say"),
            pages.Table(
                ("claim", "ours", "verdict"), [(of["words"], of["ours"], of["verdict"]) for of in verdicts]
            ),
            _UNDECIDED,
        ]
    blocks += _plots(table, found)
    return pages.write(setting.out, f"table-{table.name}", table.title, facts, blocks), verdicts


def write_all(setting: Setting, judged: dict[str, list[dict[str, str]]]) -> Path:
    """Write the page that holds the verdicts of several tables, ``ablations``.

    Args:
        setting: What they were run with.
        judged: The verdicts of each table, by its title.

    Returns:
        The Markdown file.
    """
    lines = [
        (title, of["words"], of["ours"], of["verdict"]) for title, claims in judged.items() for of in claims
    ]
    counts = {name: sum(line[-1] == name for line in lines) for name in ("agrees", "disagrees", "undecided")}
    blocks: list[pages.Block] = [
        f"{_SCALE} {_length(setting)}",
        "Of the claims here: " + ", ".join(f"{count} {name}" for name, count in counts.items()) + ".",
        pages.Table(("table", "claim", "ours", "verdict"), lines),
        _UNDECIDED,
    ]
    return pages.write(
        setting.out, "ablations", "The paper's ablations, run here", {"claims": judged}, blocks
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


def judge(claim: Claim, table: Table, found: Found) -> dict[str, str]:
    """Whether a claim holds in our rows: ``agrees``, ``disagrees``, ``undecided`` or ``not measured``."""
    values = {name: row["figures"].get(claim.figure) for name, row in found.items()}
    verdict = {"words": claim.words, "figure": claim.figure, "ours": "–", "verdict": "not measured"}
    if claim.spread_below is not None:
        own = [value for value in values.values() if value is not None]
        other = [
            row["figures"][claim.spread_below]
            for row in found.values()
            if claim.spread_below in row["figures"]
        ]
        if len(own) < 2 or len(other) < 2:
            return verdict
        spreads = max(own) - min(own), max(other) - min(other)
        verdict["ours"] = f"spread {spreads[0]:.4g} against {spreads[1]:.4g}"
        verdict["verdict"] = "agrees" if spreads[0] < spreads[1] else "disagrees"
        return verdict
    higher, lower = values.get(claim.higher or ""), values.get(claim.lower or "")
    if higher is None or lower is None:
        return verdict
    verdict["ours"] = f"{claim.higher}: {higher:.4g}, {claim.lower}: {lower:.4g}"
    bounds = [found[name or ""]["intervals"].get(claim.figure) for name in (claim.higher, claim.lower)]
    if all(bounds):
        noise = sum(((high - low) / 2) ** 2 for low, high in bounds) ** 0.5
    else:
        noise = _ALIKE * max(abs(higher), abs(lower))
    if abs(higher - lower) <= noise:
        verdict["verdict"] = "undecided"
    else:
        verdict["verdict"] = "agrees" if higher > lower else "disagrees"
    return verdict


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
