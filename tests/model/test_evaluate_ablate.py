"""Ablation tables: each shipped one can be read, and one runs end to end, goes on after a stop, and is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.__main__ import main
from model.ablate import report, runs, tables
from model.ablate.report import Spread
from model.ablate.tables import Claim
from model.errors import CheckpointError, DataError, RecipeError
from model.evaluate import linear
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


def _setting(out: Path, **changes: Any) -> runs.Setting:
    plain: dict[str, Any] = {
        "recipe": "ablation",
        "size": None,
        "data": (),
        "labelled": (),
        "test": (),
        "photos": (),
    }
    return runs.Setting(**plain | {"device": "cpu", "out": out} | changes)


def _plain(**speeds_or_losses: tuple[float, float]) -> report.Found:
    """Rows a and b, of figures without photos."""
    return {
        name: {"figures": {of: pair[place] for of, pair in speeds_or_losses.items()}, "each_photo": {}}
        for place, name in enumerate("ab")
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
        assert claim.rows <= known
        relations = (claim.higher and claim.lower, claim.at_most, claim.between, claim.spread_below)
        assert sum(map(bool, relations)) == 1


def test_an_unknown_table_or_row_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="1a, 1b"):
        tables.load("9z")
    with pytest.raises(RecipeError, match="it has '1', '2', '4', '8', '12'"):
        tables.load("1a").only(["3"])


def test_rows_are_chosen_by_name_commas_in_a_name_included() -> None:
    table = tables.load("1e")
    chosen = table.only(["none, crop + colour jitter", "crop, fixed size"])
    assert [row.name for row in chosen.rows] == ["none", "crop, fixed size", "crop + colour jitter"]


def test_a_claim_about_the_spread_of_all_rows_is_not_made_about_some() -> None:
    table = tables.load("1a")
    assert any(claim.spread_below for claim in table.only([row.name for row in table.rows]).claims)
    assert not any(claim.spread_below for claim in table.only(["1", "2"]).claims)


@pytest.mark.parametrize(
    ("written", "wrong"),
    [
        ('name = "a"\nlenght = 2', "lenght"),
        ('name = "a"\nrecipe = { decoder_dept = 1 }', "decoder_dept"),
        ('name = "a"\npaper = { linaer = 73.5 }', "linaer"),
        ('name = "a"\n[[claim]]\nwords = "w"\nfigure = "linear"\nhigher = "a"\nlower = "c"', "'c'"),
        ('name = "a"\n[[claim]]\nwords = "w"\nfigure = "linaer"\nhigher = "a"', "linaer"),
    ],
)
def test_a_misspelt_key_or_name_in_a_table_is_refused(written: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(f'title = "t"\nmeasure = ["linear"]\n[[row]]\n{written}\n')
    with pytest.raises(RecipeError, match=wrong):
        tables.load(str(tmp_path / "t.toml"))


def test_a_row_may_change_all_that_a_recipes_file_may_hold(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(
        'title = "t"\nmeasure = []\n[[row]]\nname = "a"\nrecipe = { base_lr = 1e-3, crops = 2 }\n'
    )
    assert tables.load(str(tmp_path / "t.toml")).rows[0].recipe == {"base_lr": 1e-3, "crops": 2}


def test_a_measure_that_is_not_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text('title = "t"\nmeasure = ["linaer"]\n[[row]]\nname = "a"\n')
    with pytest.raises(RecipeError, match="linaer"):
        tables.load(str(tmp_path / "t.toml"))


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


def _found(**right: int) -> report.Found:
    """Rows whose first photos of 10,000 are named rightly."""
    return {name: _row(linear=[100] * of + [0] * (10_000 - of)) for name, of in right.items()}


def test_no_more_than_is_held_against_its_margin_and_not_against_nothing() -> None:
    claim = Claim("a is no better", "linear", at_most=("a", "b"))

    def verdict(a: int, b: int, deviation: float = 0.0) -> str:
        return report.judge(claim, _found(a=a, b=b), {"linear": Spread(deviation, 4)})["verdict"]

    assert verdict(6000, 6000) == "agrees", "as good is no better"
    assert verdict(6200, 6000) == "agrees", "better by 2 of 4 points"
    assert verdict(6000, 7000) == "agrees"
    assert verdict(6700, 6000) == "disagrees"
    assert verdict(6400, 6000) == "undecided"
    # 2.776 * 1.414 * 2 = 7.9 points that a seed alone may change
    assert verdict(6000, 6000, deviation=2.0) == "undecided", "nothing found is not nothing there"
    assert "margin 4" in report.judge(claim, _found(a=1, b=2), {})["ours"]


def test_a_row_between_two_is_above_the_one_and_below_the_other() -> None:
    claim = Claim("b is between", "linear", between=("a", "b", "c"))

    def verdict(a: int, b: int, c: int) -> str:
        return report.judge(claim, _found(a=a, b=b, c=c), {})["verdict"]

    assert verdict(5000, 6000, 7000) == "agrees"
    assert verdict(5000, 7000, 6000) == "disagrees"
    assert verdict(6000, 5000, 7000) == "disagrees"
    assert verdict(5000, 6000, 6001) == "undecided"
    assert report.judge(claim, _found(a=1, b=2), {})["verdict"] == "not measured"


def test_a_claim_of_no_more_needs_a_margin(tmp_path: Path) -> None:
    table = (
        'title = "t"\nmeasure = ["linear"]\n'
        + "".join(f'[[row]]\nname = "{name}"\n' for name in "ab")
        + '[[claim]]\nwords = "w"\nfigure = "ssim"\nat_most = ["a", "b"]\n'
    )
    (tmp_path / "t.toml").write_text(table)
    with pytest.raises(RecipeError, match="ssim has no margin"):
        tables.load(str(tmp_path / "t.toml"))


def test_rows_that_tune_one_pre_trained_encoder_are_not_widened_by_seeds_of_pre_training() -> None:
    claim = Claim("a is better", "linear", higher="a", lower="b")
    seeds = {"linear": Spread(5.0, 4)}
    rows = _found(a=6500, b=6000)
    assert report.judge(claim, rows, seeds)["verdict"] == "undecided"
    one = {name: row | {"runs": ["abc"]} for name, row in rows.items()}
    assert report.judge(claim, one, seeds)["verdict"] == "agrees"
    two = {name: row | {"runs": [name]} for name, row in rows.items()}
    assert report.judge(claim, two, seeds)["verdict"] == "undecided"


def test_a_spread_of_many_rows_of_noise_is_not_taken_for_sensitivity() -> None:
    claim = Claim("the probe is more sensitive", "finetune", spread_below="linear")
    rng = np.random.default_rng(0)
    agreed = 0
    for _ in range(300):
        noise = rng.normal(
            scale=2.0, size=15
        )  # of the probe, ten rows and five seeds; fine-tuning does not move
        rows = {
            str(n): {"figures": {"linear": 40 + of, "finetune": 25.0}, "each_photo": {}}
            for n, of in enumerate(noise[:10])
        }
        seeds = report.spread([[{"linear": of, "finetune": 25.0} for of in noise[10:]]])
        agreed += report.judge(claim, rows, seeds)["verdict"] == "agrees"
    assert agreed <= 0.08 * 300


def test_claims_that_rest_on_fine_tuning_are_marked_and_counted_apart(tmp_path: Path) -> None:
    table = tables.load("1d").only(["pixel", "PCA", "normalised pixel", "token"])
    setting = _setting(tmp_path, samples=8, tuned=8, seeds=4)
    rows = [
        {"name": row.name, "samples": 8, **_row(linear=[0, 100], finetune=[0, 100])} for row in table.rows
    ]
    written, verdicts = report.write(table, setting, rows, {})
    assert "raw ones. †" in written.read_text()
    assert "normalised pixels. |" in written.read_text(), "the probe's claim is not"
    page = report.write_all(setting, [(table, verdicts)]).read_text()
    for text in (written.read_text(), page):
        assert "† Rests on fine-tuning, which is short here" in text
    assert "3 claims by verdict" in page
    assert "The 1 that do not rest on fine-tuning" in page


def test_the_interval_is_widened_by_what_the_seed_changes() -> None:
    claim = Claim("a is worse", "loss", higher="a", lower="b")
    rows = _plain(loss=(1.0, 0.9))

    def judged(deviation: float, runs: int) -> tuple[str, str]:
        verdict = report.judge(claim, rows, {"loss": Spread(deviation, runs - 1)})
        return verdict["verdict"], verdict["ours"]

    # 2 % of 1, and t * sqrt(2) * s: 2.776 * 1.414 * 0.02 = 0.0785, together 0.081
    assert judged(0.02, 5) == ("agrees", "a: 1, b: 0.9; +0.1 (0.019 to 0.181)")
    assert judged(0.02, 3)[0] == "undecided", "the same deviation of fewer seeds says less"
    assert judged(0.03, 5)[0] == "undecided"
    assert judged(0.03, 40)[0] == "agrees"


def test_what_seeds_change_is_pooled_over_rows_and_less_in_their_means() -> None:
    one = [{"loss": loss, "linear": 50.0} for loss in (1.0, 1.1, 1.2)]
    two = [{"loss": loss} for loss in (4.0, 4.2)]
    alone = report.spread([one])
    assert alone["loss"].deviation == pytest.approx(0.1)
    assert alone["loss"].freedom == 2
    assert alone["linear"] == Spread(0, 2)
    pooled = report.spread([one, two], 4)
    assert pooled["loss"].deviation == pytest.approx((0.04 / 3 / 4) ** 0.5)
    assert pooled["loss"].freedom == 3
    assert pooled["linear"].freedom == 2, "of the rows that have it"
    assert report.spread([one[:1], []]) == {}


def test_of_rows_that_only_their_seeds_set_apart_one_in_twenty_is_decided() -> None:
    claim = Claim("a is higher", "loss", higher="a", lower="b")
    rng = np.random.default_rng(0)
    decided = 0
    for _ in range(1000):
        losses = rng.normal(size=7)
        seeds = report.spread([[{"loss": float(loss)} for loss in losses[:5]]])
        rows = _plain(loss=(float(losses[5]), float(losses[6])))
        decided += report.judge(claim, rows, seeds)["verdict"] != "undecided"
    assert 30 <= decided <= 65


def test_of_rows_of_several_seeds_each_one_in_twenty_is_decided_too() -> None:
    claim = Claim("a is higher", "loss", higher="a", lower="b")
    rng = np.random.default_rng(0)
    decided = 0
    for _ in range(1000):
        losses = rng.normal(size=(4, 3))  # rows, seeds
        seeds = report.spread([[{"loss": float(loss)} for loss in row] for row in losses], 3)
        rows = _plain(loss=(float(losses[0].mean()), float(losses[1].mean())))
        decided += report.judge(claim, rows, seeds)["verdict"] != "undecided"
    assert 30 <= decided <= 65


def test_rows_are_compared_photo_by_photo() -> None:
    claim = Claim("a paints worse", "nmse", higher="a", lower="b")
    hard = np.random.default_rng(0).uniform(0, 2, 200)  # photos differ far more than the two models do
    other = np.random.default_rng(1).permutation(hard)
    paired = {"a": _row(nmse=hard + 0.02), "b": _row(nmse=hard)}
    assert report.judge(claim, paired, {})["verdict"] == "agrees"
    unpaired = {"a": _row(nmse=other + 0.02), "b": _row(nmse=hard)}
    assert report.judge(claim, unpaired, {})["verdict"] == "undecided"


def test_a_loss_has_no_photos_and_must_differ_by_two_percent_a_speed_by_a_third_unless_seeds_were_run() -> (
    None
):
    def verdict(figure: str, a: float, b: float, seeds: report.Seeds) -> str:
        claim = Claim("a has more", figure, higher="a", lower="b")
        return report.judge(claim, _plain(**{figure: (a, b)}), seeds)["verdict"]

    losses = [verdict("loss", *pair, {}) for pair in ((110, 100), (101, 100), (100, 110))]
    assert losses == ["agrees", "undecided", "disagrees"]
    speeds = [verdict("images_per_second", *pair, {}) for pair in ((140, 100), (160, 100), (100, 160))]
    assert speeds == ["undecided", "agrees", "disagrees"]
    timed = {"images_per_second": Spread(5.0, 4)}  # 2.776 * 1.414 * 5 = 19.6
    assert [verdict("images_per_second", faster, 100, timed) for faster in (118, 123)] == [
        "undecided",
        "agrees",
    ]


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
    # Three rows of noise stay within 5.04 deviations of five seeds (Tukey): 15.1 of either figure is less than the
    # difference of 20, of both together it is more.
    assert report.judge(claim, sensitive, {"linear": Spread(3.0, 4)})["verdict"] == "agrees"
    both = {"linear": Spread(3.0, 4), "finetune": Spread(3.0, 4)}
    assert report.judge(claim, sensitive, both)["verdict"] == "undecided"


def test_one_photo_decides_no_claim() -> None:
    claim = Claim("a paints worse", "nmse", higher="a", lower="b")
    verdict = report.judge(claim, {"a": _row(nmse=[2.0]), "b": _row(nmse=[1.0])}, {})
    assert (verdict["verdict"], verdict["ours"]) == ("undecided", "a: 2, b: 1; +1 (–)")


def test_a_few_photos_on_which_two_rows_never_differ_do_not_make_them_equal() -> None:
    claim = Claim("a is no better", "linear", at_most=("a", "b"))

    def verdict(photos: int) -> str:
        alike = [100.0, 0.0] * (photos // 2)
        return report.judge(claim, {name: _row(linear=alike) for name in "ab"}, {})["verdict"]

    assert [verdict(photos) for photos in (10, 20, 200)] == ["undecided", "undecided", "agrees"]


@pytest.mark.parametrize("photos", [10, 20, 50])
def test_of_rows_that_are_worse_by_the_margin_hardly_any_are_taken_for_no_worse(photos: int) -> None:
    claim = Claim("a is no better", "linear", at_most=("a", "b"))
    rng = np.random.default_rng(0)
    taken = 0
    for _ in range(100):
        drawn = rng.uniform(
            size=photos
        )  # a alone is right on 7 of 100, b alone on 3, and the margin is 4 points
        rows = {
            "a": _row(linear=100 * (drawn < 0.57)),
            "b": _row(linear=100 * ((drawn < 0.5) | (drawn > 0.97))),
        }
        taken += report.judge(claim, rows, {})["verdict"] == "agrees"
    assert taken <= 10


def test_why_a_row_cannot_be_run_stands_in_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(row: tables.Row, setting: runs.Setting) -> float:
        if row.name != "hidden":
            raise DataError("No.", code="no", hint="Never.")
        return 1.0

    monkeypatch.setattr(runs, "_seconds_a_step", timed)
    table, setting = tables.load("loss"), _setting(tmp_path, budget_min=10)
    steps, failed = runs._steps(table, setting)
    assert list(steps) == ["hidden"]
    assert list(failed.values()) == ["No. Never."]
    assert [file.name for file in (tmp_path / "loss").iterdir()] == ["plan.json"]
    monkeypatch.undo()  # the rows are not timed again
    assert runs._steps(table, setting) == (steps, failed)
    monkeypatch.setattr(runs, "_row", lambda row, *rest: {"name": row.name, "figures": {}})
    train, test = (_photos(tmp_path / "train", 1),), (_photos(tmp_path / "test", 1),)
    setting = replace(setting, data=train, labelled=train, test=test, photos=test)
    assert [row.get("error") for row in runs.run(table, setting)] == [None, "No. Never."]


def test_another_budget_is_not_answered_from_the_plan_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_seconds_a_step", lambda row, setting: 1.0)
    table = tables.load("loss")
    first = runs._steps(table, _setting(tmp_path, budget_min=10))
    assert runs._steps(table, _setting(tmp_path, budget_min=10)) == first
    for change in ({"budget_min": 20}, {"budget_min": 10, "equal": "minutes"}):
        with pytest.raises(DataError, match="other weights, photos or settings"):
            runs._steps(table, _setting(tmp_path, **change))


def test_other_photos_make_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def noted(recipe: Recipe, data: Any, folder: Path, **more: Any) -> None:
        folders.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr("model.ablate.runs.pretrain", noted)
    recipe = load_recipe("ablation", steps=4)
    one, two = _photos(tmp_path / "one", 2), _photos(tmp_path / "two", 2)
    for data in (one, one, two):
        with pytest.raises(KeyboardInterrupt):
            runs._trained(recipe, _setting(tmp_path, data=(data,)))
    assert folders[0] == folders[1] != folders[2]


def test_a_kept_repainting_is_not_taken_for_one_of_other_photos(debug_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe("ablation", steps=4)
    setting = _setting(tmp_path, photos=(_photos(tmp_path / "one", 2),), limit=3)
    first = runs._repainted(debug_file, recipe, setting)
    kept = tmp_path / "judged" / "reconstruct-debug.json"
    made = kept.stat().st_mtime_ns
    assert runs._repainted(debug_file, recipe, setting) == first
    assert kept.stat().st_mtime_ns == made
    for change in (
        replace(setting, limit=2),
        replace(setting, photos=(_photos(tmp_path / "two", 2),)),
    ):
        with pytest.raises(DataError, match="other weights, photos or settings"):
            runs._repainted(debug_file, recipe, change)


def test_a_device_that_is_not_there_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Device 'abacus'"):
        runs.run(tables.load("loss"), _setting(tmp_path, samples=8, device="abacus"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--samples", "-5"], "samples is -5; it must be a whole number, at least 1"),
        (["--samples", "64", "--tuned", "-1"], "tuned is -1; it must be a whole number, at least 0"),
        (["--samples", "64", "--seeds", "-1"], "seeds is -1; it must be a whole number, at least 0"),
        (["--samples", "64", "--repeat", "0"], "repeat is 0; it must be a whole number, at least 1"),
        (["--budget", "1", "--repeat", "2"], "repeat is 2, but --budget leaves no time for further seeds"),
        (["--samples", "64", "--label-share", "7"], "label_share is 7.0; it must be above 0 and at most 1"),
        (["--samples", "64", "--equal", "minutes"], "equal is 'minutes', but rows of --samples"),
        (["--budget", "0"], "budget is 0.0; it must be above 0"),
        (["--budget", "1", "--tuned", "64"], "tuned is 64, but --budget decides"),
        (["--samples", "64", "--workers", "0"], "workers is 0, but decoding needs at least one thread"),
        (["--samples", "64", "--photos", "nowhere"], "There is nothing at nowhere"),
        (["--samples", "64", "--labelled", "test"], "4 of 4 test photos are also training photos"),
        (["--samples", "64", "--size", "huge"], "size: 'huge' is unknown; take one of"),
        (["--samples", "64", "--out", "train/red/0.png"], "0.png cannot be made or written to"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused_before_the_first_row(
    wrong: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    _photos(tmp_path / "train", 2)
    _photos(tmp_path / "test", 2)
    asked = ["ablate", "loss", "--data", "train", "--test", "test", "--out", "out", "--device", "cpu"]
    assert main([*asked, *wrong]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_report_says_how_many_photos_a_row_saw_and_not_how_many_were_asked_for(tmp_path: Path) -> None:
    setting = _setting(tmp_path, samples=64)  # four batches of 32 are the fewest
    table = tables.load("loss").only(["hidden"])
    steps, _ = runs._steps(table, setting)
    written, _ = report.write(table, setting, [], {})
    assert steps == {"hidden": 4}
    assert "A row of length 1 saw 128 photos" in written.read_text()


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
        "random 75 %",
        "--rows",
        "grid 75 %",
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
    assert main(arguments) == 130
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
    assert not list((tmp_path / "out").glob("speed*")), "what was trained to tell its speed"
    words = Path(answer["report"]).read_text()
    assert "paper: linear probe %" in words
    assert "73.5" in words


@pytest.mark.slow
def test_repeated_rows_are_the_means_of_their_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.toml").write_text(_TINY)
    train, test = _photos(tmp_path / "train", 6), _photos(tmp_path / "test", 2)
    asked = ["ablate", "1f", "--samples", "16", "--data", str(train), "--test", str(test), "--device", "cpu"]
    asked += ["--recipe", str(tmp_path / "tiny.toml"), "--rows", "random 75 %,grid 75 %"]
    asked += ["--out", str(tmp_path / "out"), "--json"]
    assert main([*asked, "--repeat", "2"]) == 0
    answer = json.loads(capsys.readouterr().out)
    row = answer["rows"][0]
    assert len(row["runs"]) == len(set(row["runs"])) == 2
    made = set((tmp_path / "out" / "runs").iterdir())
    assert len(made) == 4
    report_of = Path(answer["report"]).read_text()
    assert " ± " in report_of
    assert "a row is the mean of 2 seeds" in report_of
    assert main([*asked, "--seeds", "1"]) == 0
    assert set((tmp_path / "out" / "runs").iterdir()) == made, "the same runs"
    seeds = json.loads((tmp_path / "out" / "table-seeds.json").read_text())["rows"]
    for name in ("loss", "nmse", "knn"):
        pair = [of["figures"][name] for of in seeds]
        assert row["figures"][name] == pytest.approx(np.mean(pair), abs=1e-4)
        assert row["deviations"][name] == pytest.approx(np.std(pair, ddof=1), abs=1e-4)
        assert [of[name] for of in row["each_run"]] == pair


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


@pytest.mark.slow
def test_a_row_that_cannot_be_trained_does_not_stop_the_table(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(_TINY)
    (tmp_path / "t.toml").write_text(
        'title = "t"\nmeasure = []\n[[row]]\nname = "lost"\nrecipe = { lr = 1e38 }\n[[row]]\nname = "whole"\n'
    )
    train, test = _photos(tmp_path / "train", 4), _photos(tmp_path / "test", 2)
    setting = _setting(
        tmp_path / "out", recipe=str(tmp_path / "tiny.toml"), samples=64,
        data=(train,), labelled=(train,), test=(test,), photos=(test,),
    )  # fmt: skip
    table = tables.load(str(tmp_path / "t.toml"))
    lost, whole = rows = runs.run(table, setting)
    assert "The loss is nan" in lost["error"]
    assert whole["figures"]["loss"] > 0
    written, _ = report.write(table, setting, rows, {})
    assert "lost could not be run: The loss is nan" in written.read_text()


@pytest.mark.slow
def test_a_row_whose_probe_comes_apart_does_not_stop_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "PLAIN_RATE", float("inf"))
    (tmp_path / "tiny.toml").write_text(_TINY)
    (tmp_path / "t.toml").write_text(
        'title = "t"\nmeasure = ["linear"]\n[[row]]\nname = "a"\n[[row]]\nname = "b"\nrecipe = { lr = 1e-4 }\n'
    )
    train, test = _photos(tmp_path / "train", 4), _photos(tmp_path / "test", 2)
    setting = _setting(
        tmp_path / "out", recipe=str(tmp_path / "tiny.toml"), samples=16,
        data=(train,), labelled=(train,), test=(test,), photos=(test,),
    )  # fmt: skip
    rows = runs.run(tables.load(str(tmp_path / "t.toml")), setting)
    assert [row["name"] for row in rows] == ["a", "b"]
    for row in rows:
        assert "after the last epoch" in row["error"]
