"""Ablation tables: each shipped one can be read, and one runs end to end, goes on after a stop, and is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.__main__ import main
from model.ablate import report, runs, tables
from model.ablate.tables import Claim
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


def _row(**each_photo: Any) -> dict[str, Any]:
    """A row of a table as far as a claim looks at it."""
    return {
        "figures": {name: float(np.mean(values)) for name, values in each_photo.items()},
        "each_photo": {name: list(values) for name, values in each_photo.items()},
    }


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
    claim = Claim("a is better", "linear", higher="a", lower="b")

    def found(a: int, b: int) -> report.Found:
        """Of 1,000 photos the first are named rightly."""
        return {
            name: _row(linear=[100] * right + [0] * (1000 - right)) for name, right in (("a", a), ("b", b))
        }

    assert report.judge(claim, found(700, 600), {})["verdict"] == "agrees"
    assert report.judge(claim, found(600, 700), {})["verdict"] == "disagrees"
    assert report.judge(claim, found(601, 600), {})["verdict"] == "undecided"
    assert report.judge(claim, {}, {})["verdict"] == "not measured"
    assert report.judge(claim, found(700, 600), {"linear": 11})["verdict"] == "undecided", (
        "seeds differ as much"
    )
    assert report.judge(claim, found(700, 600), {"linear": 9})["verdict"] == "agrees"


def test_rows_are_compared_photo_by_photo() -> None:
    claim = Claim("a paints worse", "nmse", higher="a", lower="b")
    hard = np.random.default_rng(0).uniform(0, 2, 200)  # photos differ far more than the two models do
    other = np.random.default_rng(1).permutation(hard)
    assert report.judge(claim, {"a": _row(nmse=hard + 0.02), "b": _row(nmse=hard)}, {})["verdict"] == "agrees"
    unpaired = {"a": _row(nmse=other + 0.02), "b": _row(nmse=hard)}
    assert report.judge(claim, unpaired, {})["verdict"] == "undecided"


def test_a_loss_or_a_speed_has_no_photos_and_must_differ_by_two_percent() -> None:
    claim = Claim("a is faster", "images_per_second", higher="a", lower="b")

    def verdict(a: float, b: float) -> str:
        rows = {
            name: {"figures": {"images_per_second": speed}, "each_photo": {}}
            for name, speed in (("a", a), ("b", b))
        }
        return report.judge(claim, rows, {})["verdict"]

    assert (verdict(110, 100), verdict(101, 100), verdict(100, 110)) == ("agrees", "undecided", "disagrees")


def test_two_spreads_over_the_rows_are_compared() -> None:
    claim = Claim("the probe is more sensitive", "finetune", spread_below="linear")
    rng = np.random.default_rng(0)
    right = {
        share: (100.0 * (np.arange(1000) < 1000 * share))[rng.permutation(1000)] for share in (0.4, 0.5, 0.6)
    }
    sensitive = {f"{share}": _row(linear=of, finetune=right[0.5]) for share, of in right.items()}
    assert report.judge(claim, sensitive, {})["verdict"] == "agrees"
    assert report.judge(claim, {"one": sensitive["0.4"]}, {})["verdict"] == "not measured"
    turned = {name: _row(linear=right[0.5], finetune=right[float(name)]) for name in sensitive}
    assert report.judge(claim, turned, {})["verdict"] == "disagrees"


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
        "--seeds",
        "1",
        "--recipe",
        str(recipe),
        "--data",
        str(train),
    ]
    arguments += ["--test", str(test), "--device", "cpu", "--out", str(tmp_path / "out"), "--json"]
    assert main(arguments) == 0
    loss, encoder, blocks = json.loads(capsys.readouterr().out)
    assert [(of.seed, of.loss_on, of.mask_tokens) for of in trained] == [
        (0, "hidden", "decoder"), (1, "hidden", "decoder"), (0, "all", "decoder"), (0, "hidden", "encoder"),
    ]  # fmt: skip
    assert loss["rows"][0]["figures"] == encoder["rows"][1]["figures"]
    assert {row["samples"] for answer in (loss, encoder) for row in answer["rows"]} == {16}
    assert [row.get("error") for row in blocks["rows"]] == [None] * 4 + ["the encoder has 2 blocks."] * 3
    page = (tmp_path / "out" / "ablations.md").read_text()
    assert "2 seeds of the unchanged recipe" in page
    assert "(table-loss.md)" in page
    assert 'href="table-loss.html"' in (tmp_path / "out" / "ablations.html").read_text()
    seeds = json.loads((tmp_path / "out" / "table-seeds.json").read_text())["rows"]
    assert seeds[0]["figures"] == encoder["rows"][1]["figures"]
    assert seeds[0]["figures"]["nmse"] != seeds[1]["figures"]["nmse"]
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
