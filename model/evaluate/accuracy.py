"""How many photos were named correctly, how sure that is, and what was taken for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.evaluate import pages, plots
from model.evaluate.labelled import Labels


@dataclass(frozen=True)
class Accuracy:
    """Answers against the truth.

    Attributes:
        counts: ``[C, C] int64``: row the truth, column the answer.
        classes: Their names.
        right: ``[N] bool``: each photo, so that two answers about the same photos can be compared in pairs.
    """

    counts: NDArray[np.int64]
    classes: tuple[str, ...]
    right: NDArray[np.bool_]

    @classmethod
    def of(cls, answers: Labels, truth: Labels, classes: tuple[str, ...]) -> Accuracy:
        """Count answers ``[N]`` against the truth ``[N]``."""
        size = len(classes)
        counts = np.bincount(truth * size + answers, minlength=size * size).reshape(size, size)
        return cls(counts.astype(np.int64), classes, answers == truth)

    @property
    def percent(self) -> float:
        """Share right, in percent."""
        return 100 * float(np.trace(self.counts)) / int(self.counts.sum())

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true share lies at 95 %, in percent: what these photos alone leave open."""
        low, high = wilson(int(np.trace(self.counts)), int(self.counts.sum()))
        return 100 * low, 100 * high

    @property
    def cells(self) -> tuple[float, float, float]:
        """Percent and its interval, as a row of a report has them."""
        low, high = self.interval
        return round(self.percent, 2), round(low, 2), round(high, 2)

    def figure(self, report: str, title: str = "Truth (rows), answer") -> pages.Figure:
        """The confusion matrix, for a report of this name."""
        content = plots.confusion(title, self.counts, self.classes)
        return pages.Figure(
            f"{report}-confusion", content, "Confusion matrix: rows are the truth, columns the answer"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; a class without a photo has no share that was right, None."""
        rows = self.counts.sum(axis=1)
        return {
            "percent": round(self.percent, 3),
            "interval_95": [round(bound, 3) for bound in self.interval],
            "photos": int(self.counts.sum()),
            "classes": {
                name: round(100 * float(self.counts[place, place]) / int(rows[place]), 2)
                if rows[place]
                else None
                for place, name in enumerate(self.classes)
            },
            "confusion": self.counts.tolist(),
            "each_photo": self.right.astype(int).tolist(),
        }


def wilson(right: int, photos: int) -> tuple[float, float]:
    """The 95 % interval of a share, within 0..1: of some width also where it is none or all of the photos."""
    from scipy.stats import binomtest  # slow to import

    bounds = binomtest(right, photos).proportion_ci(method="wilson")
    return float(bounds.low), float(bounds.high)
