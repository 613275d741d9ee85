"""An ablation table: rows that change a recipe, the paper's figures for them, and what the paper says follows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model import presets
from model.errors import RecipeError
from model.pretrain.recipe import KEYS

#: What of the labels a table may ask for.
MEASURES = ("linear", "finetune")
#: Figures a row may have, with their words.
FIGURES = {
    "linear": "linear probe %",
    "finetune": "fine-tuned %",
    "knn": "20-NN %",
    "loss": "training loss",
    "nmse": "nmse",
    "norm_pixel_unexplained": "unexplained",
    "ssim": "SSIM",
    "sharpness": "sharpness",
    "images_per_second": "photos/s",
}
#: How much more of a figure still counts as no more, for ``Claim.at_most``: what two runs of recipe ``ablation`` must
#: differ by for the seed and the photos to tell them apart (five seeds, 3,707 photos: 4 and 2.6 points, 7 % of an nmse
#: of 0.8). Less has no meaning at this length. They follow from the seeds' rows alone, but were set after the runs.
MARGINS = {"linear": 4.0, "finetune": 2.6, "nmse": 0.056}


@dataclass(frozen=True)
class Row:
    """One model of a table.

    Attributes:
        name: As in the paper, or what it is here.
        recipe: Changes of the recipe.
        length: Steps, as a multiple of the table's shortest.
        blocks: Last blocks that are tuned, for a table about partial fine-tuning.
        paper: The paper's figures (ViT-L, ImageNet-1k), by the names of ``FIGURES``.
    """

    name: str
    recipe: dict[str, Any] = field(default_factory=dict)
    length: float = 1.0
    blocks: float | None = None
    paper: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """What the paper says, so that it can be checked: one of four relations.

    Attributes:
        words: In its own terms.
        figure: Of ``FIGURES``.
        higher: Row that should have more of it than ``lower``. Or
        lower: the other row.
        at_most: Two rows: the first should have no more of it than the second, but for its margin (``MARGINS``): "no
            better", "as well", "no worse". Or
        between: three rows: each should have more of it than the one before. Or
        spread_below: the figure whose spread over all rows should be larger.
    """

    words: str
    figure: str
    higher: str | None = None
    lower: str | None = None
    at_most: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    spread_below: str | None = None

    @property
    def rows(self) -> set[str]:
        """Rows that it names."""
        return ({self.higher, self.lower} - {None}) | {*self.at_most, *self.between}  # type: ignore[return-value]

    @property
    def figures(self) -> set[str]:
        """Figures that it is about."""
        return {self.figure} | ({self.spread_below} if self.spread_below else set())


@dataclass(frozen=True)
class Table:
    """One of the paper's tables or figures.

    Attributes:
        name: As on the command line.
        title: For people.
        measure: Of ``MEASURES``, what is measured beside neighbours and reconstruction.
        rows: In the paper's order.
        claims: What to check.
        note: What a reader of the rows should know.
    """

    name: str
    title: str
    measure: tuple[str, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    note: str = ""

    def only(self, names: list[str] | None) -> Table:
        """The table with some of its rows, and the claims that are about them.

        Args:
            names: A row's name each, or several with commas between; None for all rows.

        Raises:
            RecipeError: There is no such row.
        """
        if names is None:
            return self
        known = [row.name for row in self.rows]
        wanted = {name.strip() for text in names for name in ([text] if text in known else text.split(","))}
        if unknown := sorted(wanted - set(known)):
            told = ", ".join(map(repr, known))
            raise _bad("rows", f"table {self.name} has no row {unknown[0]!r}; it has {told}")
        rows = tuple(row for row in self.rows if row.name in wanted)
        # A spread is one over all rows.
        whole = [claim for claim in self.claims if claim.spread_below is None or rows == self.rows]
        claims = tuple(claim for claim in whole if claim.rows <= wanted)
        return replace(self, rows=rows, claims=claims)


def names() -> list[str]:
    """Of all shipped tables."""
    return presets.names("model.ablate", "tables")


def load(name_or_path: str) -> Table:
    """Read a table by name or file.

    Raises:
        RecipeError: There is none, or it is not such a table.
    """
    values = presets.read(name_or_path, "model.ablate", "tables", "table")
    name = Path(name_or_path).stem
    try:
        rows = tuple(Row(**row | {"name": str(row["name"])}) for row in values.pop("row"))
        claims = tuple(_claim(claim) for claim in values.pop("claim", ()))
        measure = tuple(values.pop("measure"))
        table = Table(name=name, measure=measure, rows=rows, claims=claims, **values)
    except (ValueError, KeyError, TypeError) as error:
        raise _bad("table", f"{name_or_path} is not a table of rows: {error}") from error
    for kind, given, known in (
        ("measure", measure, MEASURES),
        ("recipe", [key for row in rows for key in row.recipe], sorted(KEYS)),
        ("paper", [figure for row in rows for figure in row.paper], FIGURES),
        ("figure", [figure for claim in claims for figure in claim.figures], FIGURES),
        ("claim's row", [name for claim in claims for name in claim.rows], [row.name for row in rows]),
    ):
        if unknown := sorted(set(given) - set(known)):
            raise _bad(kind, f"{name_or_path} names the {kind} {unknown[0]!r}; known are {', '.join(known)}")
    for claim in claims:
        if claim.at_most and claim.figure not in MARGINS:
            raise _bad("claim", f"{claim.figure} has no margin for at_most; there are {', '.join(MARGINS)}")
    return table


def _claim(values: dict[str, Any]) -> Claim:
    named: dict[str, Any] = {key: tuple(values[key]) for key in ("at_most", "between") if key in values}
    return Claim(**values | named)


def of_seeds(seed: int, further: int) -> Table:
    """The unchanged recipe with its seed and with others: what the seed alone changes."""
    rows = [Row(f"seed {seed + n}", {"seed": seed + n}) for n in range(further + 1)]
    return Table("seeds", "The seed alone", ("linear", "finetune"), tuple(rows), ())


def _bad(field: str, message: str) -> RecipeError:
    return RecipeError(f"{message}.", code="ablation", hint="Correct the name or the file.", field=field)
