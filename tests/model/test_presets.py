"""Recipes and tables by path or by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model.ablate import tables
from model.errors import RecipeError
from model.evaluate.transfer import load_settings
from model.pretrain.recipe import load_recipe


@pytest.mark.parametrize(
    ("load", "shipped", "kind"),
    [
        (load_recipe, "small-gpu", "recipe"),
        (lambda name: load_settings(name, {}), "paper-ade20k-base", "recipe"),
        (tables.load, "fig5", "table"),
    ],
    ids=["pretrain", "transfer", "ablate"],
)
def test_a_name_finds_what_is_shipped_and_all_else_is_refused_with_what_to_do(
    load: Callable[[str], object], shipped: str, kind: str, tmp_path: Path
) -> None:
    assert load(shipped)
    (tmp_path / "latin.toml").write_bytes("# é\n".encode("latin-1"))
    (tmp_path / "cut.toml").write_text("steps =")
    for asked, says in {
        "nothing": f"no file or {kind} called 'nothing'; known are .*{shipped}",
        "x" * 300: r"cannot be read \(File name too long\)",
        str(tmp_path): f"no file or {kind} called",  # a folder
        str(tmp_path / "latin.toml"): r"latin\.toml is not valid TOML",
        str(tmp_path / "cut.toml"): r"cut\.toml is not valid TOML",
    }.items():
        with pytest.raises(RecipeError, match=f"^{kind}: .*{says}") as caught:
            load(asked)
        assert caught.value.field == kind
