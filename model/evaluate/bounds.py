"""What the numbers of every question may be: one table for the settings, their recipes and the command line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from model.errors import RecipeError
from model.masking import MAX_SEED

#: Names, whether they are whole, what they must be in words, and in code.
_BOUNDS: tuple[tuple[str, bool, str, Callable[[float], bool]], ...] = (
    ("k limit steps batch_size side width proposals samples repeat", True, "at least 1", lambda of: of >= 1),
    ("workers warmup_epochs tuned seeds", True, "at least 0", lambda of: of >= 0),
    ("seed", True, f"0 to {MAX_SEED}", lambda of: 0 <= of <= MAX_SEED),
    ("epochs minutes budget lr base_lr layer_decay", False, "above 0", lambda of: of > 0),
    ("weight_decay mixup cutmix", False, "at least 0", lambda of: of >= 0),
    ("warmup_share smoothing erasing", False, "within 0..1", lambda of: 0 <= of <= 1),
    ("label_share", False, "above 0 and at most 1", lambda of: 0 < of <= 1),
    ("drop_path", False, "at least 0 and below 1", lambda of: 0 <= of < 1),
    ("ema", False, "above 0 and below 1", lambda of: 0 < of < 1),
)
_BOUND = {name: (whole, words, inside) for names, whole, words, inside in _BOUNDS for name in names.split()}
#: Of anything: far beyond sense, and short of what overflows where steps and rates are worked out.
_LARGEST = 10**10


def check(**given: Any) -> None:
    """Refuse numbers with which a figure would mean nothing.

    Args:
        given: By name; None and names that are not in the table pass.

    Raises:
        RecipeError: One is out of its bounds, not finite, or not a number; named.
    """
    for name, value in given.items():
        if name not in _BOUND or value is None:
            continue
        whole, words, inside = _BOUND[name]
        number = type(value) is int or (type(value) is float and not whole and math.isfinite(value))
        if number and inside(value) and value > _LARGEST:
            number, words = False, "at most 1e10"
        if not number or not inside(value):
            raise RecipeError(
                f"{name} is {value!r}; it must be {'a whole number, ' if whole else ''}{words}.",
                code="settings",
                hint="Correct it on the command line or in the recipe.",
                field=name,
            )
