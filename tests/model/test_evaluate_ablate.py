"""Ablation tables: each shipped one can be read, and one runs end to end, goes on after a stop, and is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.__main__ import main
from model.ablate import report, runs, tables
from model.ablate.tables import Claim, Row, Table
from model.errors import RecipeError
from model.pretrain.launch import pretrain
from model.pretrain.recipe import Recipe, load_recipe
from tests.pictures import encoded, photo

_TINY = """
name = "tiny"
size = "debug"
steps = 4
batch_size = 4
lr = 1e-3
[masking]
random = 1.0
"""


def _photos(folder: Path, count: int) -> Path:
    for name, colour in (("blue", (0, 0, 160)), ("red", (160, 0, 0))):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = photo(72, 68, 100 * number + len(name)) // 3 + np.array(colour, dtype=np.uint8)
            (folder / name / f"{number}.png").write_bytes(encoded(pixels.astype(np.uint8)))
    return folder


@pytest.mark.parametrize("name", tables.names())
def test_every_row_of_a_shipped_table_is_a_recipe_that_can_be_trained(name: str) -> None:
    table = tables.load(name)
    assert len({row.name for row in table.rows}) == len(table.rows) > 1
    for row in table.rows:
        assert row.paper or name == "recipe", "what is beside the paper"
        load_recipe("ablation", **row.recipe)
    known = {row.name for row in table.rows}
    for claim in table.claims:
        assert {claim.higher, claim.lower} - {None} <= known


def test_an_unknown_table_or_row_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="1a, 1b"):
        tables.load("9z")
    with pytest.raises(RecipeError, match="it has 1, 2, 4, 8, 12"):
        tables.load("1a").only(["3"])


def test_a_claim_is_judged_by_the_difference_and_its_uncertainty() -> None:
    rows = (Row("a", {}, 1, None, {}), Row("b", {}, 1, None, {}))
    claim = Claim("a is better", "linear", higher="a", lower="b")
    table = Table("t", "T", ("linear",), rows, (claim,))

    def found(a: float, b: float, half: float) -> report.Found:
        return {
            name: {"figures": {"linear": value}, "intervals": {"linear": [value - half, value + half]}}
            for name, value in (("a", a), ("b", b))
        }

    assert report.judge(claim, table, found(70, 60, 2))["verdict"] == "agrees"
    assert report.judge(claim, table, found(60, 70, 2))["verdict"] == "disagrees"
    assert report.judge(claim, table, found(61, 60, 2))["verdict"] == "undecided"
    assert report.judge(claim, table, {})["verdict"] == "not measured"


@pytest.mark.slow
def test_a_table_runs_within_seconds_at_the_debug_size_and_goes_on_after_a_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(_TINY)
    train, test = _photos(tmp_path / "train", 6), _photos(tmp_path / "test", 2)
    arguments = [
        "ablate",
        "1f",
        "--budget",
        "0.02",
        "--data",
        str(train),
        "--test",
        str(test),
        "--device",
        "cpu",
    ]
    arguments += [
        "--recipe",
        str(recipe),
        "--rows",
        "random 75 %,grid 75 %",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    trained = runs._trained

    def stopped(recipe: Recipe, setting: runs.Setting) -> Path:
        if "grid" in recipe.masking:
            raise KeyboardInterrupt
        return trained(recipe, setting)

    monkeypatch.setattr(runs, "_trained", stopped)
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    monkeypatch.undo()
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "runs").rglob("*.json*")}
    assert any("finetune" in file.name for file in done)
    assert main(arguments) == 0
    assert {file: file.stat().st_mtime_ns for file in done} == done, "nothing is done again"
    answer = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in answer["rows"]] == ["random 75 %", "grid 75 %"]
    for row in answer["rows"]:
        assert set(row["figures"]) == set(tables.FIGURES)
        assert row["samples"] == answer["rows"][0]["samples"]
    assert {claim["words"] for claim in answer["claims"]} >= {"Grid paints sharper than random."}
    words = Path(answer["report"]).read_text()
    assert "paper: linear probe %" in words
    assert "73.5" in words


@pytest.mark.slow
def test_tables_in_one_folder_run_the_row_they_share_once_and_end_in_a_page_of_all_claims(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(_TINY)
    train, test = _photos(tmp_path / "train", 6), _photos(tmp_path / "test", 2)
    trained: list[Recipe] = []

    def noted(recipe: Recipe, *rest: Any, **more: Any) -> None:
        trained.append(recipe)
        pretrain(recipe, *rest, **more)

    monkeypatch.setattr("model.ablate.runs.pretrain", noted)
    arguments = [
        "ablate",
        "loss",
        "1c",
        "fig9",
        "--samples",
        "16",
        "--tuned",
        "8",
        "--recipe",
        str(recipe),
        "--data",
        str(train),
    ]
    arguments += ["--test", str(test), "--device", "cpu", "--out", str(tmp_path / "out"), "--json"]
    assert main(arguments) == 0
    loss, encoder, blocks = json.loads(capsys.readouterr().out)
    assert [(of.loss_on, of.mask_tokens) for of in trained] == [
        ("hidden", "decoder"), ("all", "decoder"), ("hidden", "encoder"),
    ]  # fmt: skip
    assert loss["rows"][0]["figures"] == encoder["rows"][1]["figures"]
    assert {row["samples"] for answer in (loss, encoder) for row in answer["rows"]} == {16}
    assert [row.get("error") for row in blocks["rows"]] == [None] * 4 + ["the encoder has 2 blocks."] * 3
    page = (tmp_path / "out" / "ablations.md").read_text()
    for answer in (loss, encoder, blocks):
        for claim in answer["claims"]:
            assert claim["words"] in page


def test_a_row_that_cannot_be_trained_does_not_stop_the_table(tmp_path: Path) -> None:
    rows = [{"name": "pixel", "error": "no"}]
    setting = runs.Setting(
        recipe="small", size=None, data=(), labelled=(), test=(), photos=(), out=tmp_path, budget_min=1
    )
    written, verdicts = report.write(tables.load("1d").only(["pixel"]), setting, rows)
    assert "pixel could not be run: no" in written.read_text()
    assert verdicts == []
