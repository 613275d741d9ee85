"""The report on repainting: figures beside fills, with intervals, for several masks at once."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from model.__main__ import main
from model.checkpoints import store
from model.config import IMAGE_MEAN, IMAGE_STD, SIZES, MAEConfig
from model.errors import DataError, MaskError, RecipeError
from model.evaluate import pages, plots, reconstruction, state
from model.evaluate.accuracy import wilson
from model.evaluate.fills import (
    FILLS,
    METRICS,
    border_steps,
    figures,
    fine_detail,
    inner_steps,
    norm_pixel_agreement,
    resampled,
)
from model.evaluate.reconstruction import SOURCES, Setting, answer, evaluate
from model.images import load_square
from model.masking import sample_mask
from model.network import MAE
from model.options import Options
from model.pretrain.data import Photos
from model.reconstruct import Reconstructor
from model.scores import Floats
from tests.pictures import encoded, photo


def _picture() -> tuple[Floats, np.ndarray]:
    original = photo(64, 64).astype(np.float32) / np.float32(255)
    hidden = np.zeros((64, 64), dtype=bool)
    hidden[16:48, 16:32] = True
    return original, hidden


def test_the_truth_has_no_normalised_loss_and_grey_has_all_of_it() -> None:
    original, hidden = _picture()
    assert norm_pixel_agreement(original, original, hidden, 16) == pytest.approx(1, abs=1e-5)
    mean, std = (np.array(of, dtype=np.float32) for of in (IMAGE_MEAN, IMAGE_STD))
    dimmed = (
        mean + (original - mean) * np.float32(0.5) + 0.1 * std
    )  # mean and contrast of a patch do not count
    assert norm_pixel_agreement(original, dimmed, hidden, 16) == pytest.approx(1, abs=1e-4)
    grey = np.broadcast_to(mean + 0.3 * std, original.shape).astype(np.float32)
    assert norm_pixel_agreement(original, grey, hidden, 16) == 0


def test_the_loss_of_normalised_pixels_is_the_networks_own_with_nothing_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = MAE(MAEConfig.from_dict({**SIZES["debug"].to_dict(), "target": "norm_pixel"})).eval()
    network.init_weights(torch.Generator().manual_seed(0))
    store.write(tmp_path / "norm.safetensors", network, name="norm", card={})
    (tmp_path / "0.png").write_bytes(encoded(photo(64, 64)))
    arguments = ["evaluate", "reconstruct", str(tmp_path / "norm.safetensors"), "--data", str(tmp_path)]
    assert main([*arguments, "--device", "cpu", "--json"]) == 0
    setting = json.loads(capsys.readouterr().out)["settings"][0]
    mask = sample_mask("random", (4, 4), 12, 0)
    image = network.normalise(torch.tensor(photo(64, 64)).permute(2, 0, 1)[None] / 255)
    with torch.no_grad():
        keep, restore = (torch.from_numpy(ids)[None] for ids in (mask.ids_keep, mask.ids_restore))
        pred = network.decode(network.encode(image, keep), restore)
        loss = network.loss(image, pred, torch.from_numpy(mask.hidden)[None])
    assert setting["norm_pixel_loss"]["mean"] == pytest.approx(float(loss), abs=1e-3)
    assert (
        setting["scores"]["model"]["norm_pixel_unexplained"]["mean"] <= 1 < setting["norm_pixel_loss"]["mean"]
    )


def test_the_agreement_gives_the_loss_of_the_papers_target_at_the_best_scale() -> None:
    original, hidden = _picture()
    candidate = cv2.GaussianBlur(original, (0, 0), 4).astype(np.float32)
    network = MAE(MAEConfig.from_dict({**SIZES["debug"].to_dict(), "target": "norm_pixel"}))
    places = torch.from_numpy(hidden[::16, ::16].reshape(-1))

    def patches(image: Floats) -> torch.Tensor:
        return network.target(network.normalise(torch.from_numpy(image).permute(2, 0, 1)[None]))[0, places]

    true, other = patches(original), patches(candidate)
    losses = [float((scale * other - true).square().mean()) for scale in np.linspace(0, 1, 201)]
    r = norm_pixel_agreement(original, candidate, hidden, 16)
    assert 1 - r * r == pytest.approx(min(losses), abs=5e-3)


def test_the_true_means_are_the_means_of_the_hidden_patches() -> None:
    original, hidden = _picture()
    filled = FILLS["true_means"](original, hidden, 16)
    np.testing.assert_allclose(filled[20, 20], original[16:32, 16:32].mean(axis=(0, 1)), rtol=1e-5)
    assert np.array_equal(filled[~hidden], original[~hidden])


def test_each_classical_fill_is_the_one_that_its_name_says() -> None:
    original, hidden = _picture()
    pixels = (original * 255).round().astype(np.uint8)
    telea, navier_stokes = (FILLS[name](original, hidden, 16) for name in ("telea", "navier_stokes"))
    for filled, method in ((telea, cv2.INPAINT_TELEA), (navier_stokes, cv2.INPAINT_NS)):
        wanted = cv2.inpaint(pixels, hidden.astype(np.uint8), 3, method)
        np.testing.assert_allclose(filled, wanted / 255, atol=1e-6)
    assert not np.allclose(telea, navier_stokes)


def test_a_blurred_picture_is_less_sharp_than_the_photo_and_a_flat_one_not_at_all() -> None:
    original, hidden = _picture()
    blurred = cv2.GaussianBlur(original, (0, 0), 3).astype(np.float32)
    steps = inner_steps(original, hidden, 16)
    assert steps > 0
    assert inner_steps(blurred, hidden, 16) < 0.95 * steps
    assert inner_steps(np.full_like(original, 0.5), hidden, 16) == 0


def test_steps_inside_patches_are_counted_down_and_across() -> None:
    _, hidden = _picture()
    stripes = np.broadcast_to(0.25 * (np.arange(64) % 2)[:, None, None], (64, 64, 3)).astype(np.float32)
    for image in (stripes, stripes.swapaxes(0, 1)):
        assert inner_steps(image, hidden, 16) == pytest.approx(0.25)
    assert inner_steps(stripes + stripes.swapaxes(0, 1), hidden, 16) == pytest.approx(0.25 * np.sqrt(2))
    assert inner_steps(stripes[:48], hidden[:48], 16) == pytest.approx(0.25)  # and where it is no square


def test_steps_at_borders_are_counted_there_and_nowhere_else() -> None:
    original, hidden = _picture()
    flat = np.full_like(original, 0.5)
    assert border_steps(flat, hidden, 16) == 0
    raised = np.where(hidden[..., None], flat + np.float32(0.25), flat)
    assert border_steps(raised, hidden, 16) == pytest.approx(0.25)
    lined = flat.copy()
    lined[:, 40] = 1  # inside visible patches
    lined[32] = 1  # at a border of two hidden patches, and of two visible ones
    assert border_steps(lined, hidden, 16) == 0
    assert border_steps(flat, np.zeros_like(hidden), 16) == 0


def test_fine_detail_is_power_above_half_nyquist_in_hidden_patches() -> None:
    _, hidden = _picture()
    x = np.arange(64)

    def waves(cycles: float) -> Floats:
        wave = 0.5 + 0.25 * np.sin(2 * np.pi * cycles * x)
        return np.broadcast_to(wave[None, :, None], (64, 64, 3)).astype(np.float32)

    assert fine_detail(waves(0.4), hidden, 16) == pytest.approx(0.25**2 / 2, rel=0.1)  # all of its variance
    assert fine_detail(waves(0.06), hidden, 16) < 1e-3 * fine_detail(waves(0.4), hidden, 16)
    painted = np.where(hidden[..., None], np.float32(0.5), waves(0.4))
    assert fine_detail(painted, hidden, 16) == pytest.approx(0, abs=1e-9)


def test_a_perfect_model_scores_perfectly_and_every_fill_has_a_row() -> None:
    original, hidden = _picture()
    rows = figures(original, original, hidden, 16)
    assert rows.shape == (1 + len(FILLS), len(METRICS))
    assert rows[0, 0] == 0
    assert (rows[1:, 0] > 0).all()


def test_intervals_hold_the_mean_and_shrink_with_the_number_of_photos() -> None:
    values = np.random.default_rng(1).normal(size=400)
    widths = []
    for count in (25, 400):
        draws, _ = resampled(values[:count])
        low, high = np.percentile(draws, [2.5, 97.5])
        assert low < values[:count].mean() < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_a_summary_says_what_its_table_holds() -> None:
    table = np.random.default_rng(0).uniform(0.1, 3, (40, len(SOURCES), len(METRICS)))
    said = reconstruction._summary(Setting("random", "0.75"), table, np.array([]))
    nmse, psnr, ssim = (table[..., METRICS.index(name)] for name in ("nmse", "psnr_db", "ssim"))
    line = SOURCES.index("interpolation")
    for values, told in (
        (nmse[:, 0], said["scores"]["model"]["nmse"]),
        (nmse[:, SOURCES.index("telea")], said["scores"]["telea"]["nmse"]),
        (psnr[:, 0] - psnr[:, line], said["psnr_db_above_interpolation"]),
    ):
        low, high = np.percentile(resampled(values)[0], [2.5, 97.5])
        assert told == pytest.approx({"mean": values.mean(), "low": low, "high": high}, abs=1e-4)
    for flags, told in (
        (psnr[:, 0] - psnr[:, line] >= 1, said["share_psnr_1db_above_interpolation"]),
        (ssim[:, 0] > ssim[:, line], said["share_ssim_above_interpolation"]),
    ):
        low, high = wilson(int(flags.sum()), 40)
        assert told == pytest.approx({"mean": flags.mean(), "low": low, "high": high}, abs=1e-4)


def test_none_or_all_of_a_few_photos_are_not_told_with_certainty() -> None:
    table = np.ones((20, len(SOURCES), len(METRICS)))
    table[:, 0, METRICS.index("psnr_db")] = 3
    said = reconstruction._summary(Setting("random", "0.75"), table, np.array([]))
    every, none = (said[f"share_{of}_above_interpolation"] for of in ("psnr_1db", "ssim"))
    assert every == {"mean": 1.0, "low": 0.8389, "high": 1.0}  # Wilson, by hand: 20 / (20 + 1.96 ** 2)
    assert none == {"mean": 0.0, "low": 0.0, "high": 0.1611}


def test_the_curves_show_the_gain_over_interpolation_and_the_means() -> None:
    table = np.random.default_rng(0).uniform(0.1, 3, (5, len(SOURCES), len(METRICS)))
    settings = [Setting("random", ratio) for ratio in ("0.5", "0.75")]
    psnr = table[..., METRICS.index("psnr_db")]
    gain = sorted((psnr[:, 0] - psnr[:, SOURCES.index("interpolation")]).tolist())
    curve = {"random 50%": ([10, 30, 50, 70, 90], gain)}
    assert reconstruction._gains(settings[:1], [table]) == plots.lines(
        "PSNR above linear interpolation", "photos, sorted, percent", "dB", curve
    )
    rows = [
        reconstruction._summary(setting, table * (1 + n), np.array([])) for n, setting in enumerate(settings)
    ]
    means = {
        f"{source} random": (
            [0.5, 0.75],
            [round(n * table[:, SOURCES.index(source), METRICS.index("ssim")].mean(), 4) for n in (1, 2)],
        )
        for source in ("model", "interpolation", "telea")
    }
    assert reconstruction._by_ratio({"settings": rows[::-1]}, "ssim") == plots.lines(
        "ssim over hidden pixels", "ratio hidden", "ssim", means
    )


def test_photo_n_is_masked_with_seed_n(reconstructor: Reconstructor, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(photo(80, 72, number)))
    row = evaluate(reconstructor, Photos.open([tmp_path]))["settings"][0]
    alone = [
        reconstructor(encoded(photo(80, 72, number)), Options(seed=number)).metrics["nmse"]
        for number in range(3)
    ]
    assert alone != sorted(alone), "else their order would not show"
    assert row["each_photo"]["nmse"] == pytest.approx(alone, abs=1e-4)


def test_the_sheet_shows_the_best_the_median_and_the_worst_photos(
    reconstructor: Reconstructor, tmp_path: Path
) -> None:
    photos, greys = tmp_path / "photos", np.array([130, 10, 250, 70, 190])
    photos.mkdir()
    for number, grey in enumerate(greys):
        (photos / f"{number}.png").write_bytes(encoded(np.full((64, 64, 3), grey, dtype=np.uint8)))
    row = evaluate(reconstructor, Photos.open([photos]), out=tmp_path)["settings"][0]
    order = np.argsort(row["each_photo"]["nmse"])
    sheet = np.asarray(Image.open(tmp_path / f"reconstruct-{reconstructor.name}-sheet.png"))
    originals = sheet[16::32, 88::116, 0]  # the last third of every column of three photos, at half size
    best, median, worst = originals.T
    assert best.tolist() == greys[order[:3]].tolist()
    assert median.tolist() == greys[order[1:4]].tolist()
    assert worst.tolist() == greys[order[:1:-1]].tolist()


def _blank(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"blank-{number}.png").write_bytes(encoded(np.full((64, 64, 3), 200, dtype=np.uint8)))
    return folder


def test_a_blank_photo_among_others_leaves_the_sharpness_as_it_is(
    reconstructor: Reconstructor, tmp_path: Path
) -> None:
    photos = _blank(tmp_path / "photos", 1)
    for number in range(2):
        (photos / f"{number}.png").write_bytes(encoded(photo(80, 72, number)))
    row = evaluate(reconstructor, Photos.open([photos]))["settings"][0]
    sharpness = row["scores"]["model"]["sharpness"]
    # An eighth of the draws is of the blank one alone, which tells no ratio.
    assert sharpness["mean"] < 20
    assert sharpness["low"] <= sharpness["mean"] <= sharpness["high"] < 100
    assert row["scores"]["true_means"]["sharpness"]["mean"] == 0


def test_the_sharpness_of_blank_photos_alone_is_not_told(
    reconstructor: Reconstructor, tmp_path: Path
) -> None:
    facts = evaluate(reconstructor, Photos.open([_blank(tmp_path / "photos", 2)]), out=tmp_path / "out")
    row = facts["settings"][0]
    for figure in ("sharpness", "seam_ratio", "fine_detail"):
        assert row["scores"]["model"][figure] == {"mean": None, "low": None, "high": None}
    assert "sharpness" not in row["each_photo"]
    assert "– (–)" in (tmp_path / "out" / f"reconstruct-{reconstructor.name}.md").read_text()


def test_figures_of_each_photo_have_the_mean_and_the_spread_of_the_sharpness() -> None:
    rng = np.random.default_rng(0)
    table = rng.uniform(0.1, 1, (200, len(METRICS)))
    painted, true = (METRICS.index(name) for name in ("inner_steps", "true_inner_steps"))
    table[:, painted] = 0.4 * table[:, true] * rng.uniform(0.5, 1.5, 200)
    each = np.array(reconstruction._each_photo(table)["sharpness"])
    assert each.mean() == pytest.approx(table[:, painted].mean() / table[:, true].mean(), abs=1e-5)
    drawn, _ = resampled(table)
    ratios = drawn[:, painted] / drawn[:, true]
    np.testing.assert_allclose(
        np.percentile(resampled(each)[0], [2.5, 97.5]), np.percentile(ratios, [2.5, 97.5]), rtol=0.01
    )


def test_one_photo_has_no_interval_and_few_are_said_to_be_few(
    reconstructor: Reconstructor, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(2):
        (photos / f"{number}.png").write_bytes(encoded(photo(80, 72, number)))
    for limit, says in (
        (1, "One photo: there is no interval."),
        (2, "2 photos are few: the intervals are too narrow."),
    ):
        out = tmp_path / str(limit)
        row = evaluate(reconstructor, Photos.open([photos]), limit=limit, out=out)["settings"][0]
        report = (out / f"reconstruct-{reconstructor.name}.md").read_text()
        assert says in report
        for value in (row["scores"]["model"]["nmse"], row["share_psnr_1db_above_interpolation"]):
            assert value["mean"] is not None
            assert (value["low"] is None) == (value["high"] is None) == (limit == 1)
        assert ("(–)" in report) == (limit == 1)


def test_an_answer_with_other_figures_than_todays_is_refused(
    reconstructor: Reconstructor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0.png").write_bytes(encoded(photo(80, 72)))
    asked: dict[str, Any] = {"strategies": ["random"], "ratios": ["0.75"]}
    photos = Photos.open([tmp_path])
    with monkeypatch.context() as patch:
        patch.setattr(reconstruction, "METRICS", (*METRICS, "sharpness"))
        answer(reconstructor, photos, tmp_path / "out", **asked)
    with pytest.raises(DataError, match="other weights, photos or settings"):
        answer(reconstructor, photos, tmp_path / "out", **asked)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("/../../../escaped", "-..-..-..-escaped"),
        ("facebook/vit-mae-base", "facebook-vit-mae-base"),
        ("..", "-"),
        (".hidden", "-hidden"),
        ("a\\b\0c\nd\x7f", "a-b-c-d-"),
        ("caf\udce9", "caf-"),
        ("", "model"),
        ("é" * 200, "é" * 50),
        ("mini", "mini"),
    ],
)
def test_a_models_name_becomes_a_files_stem_that_stays_in_its_folder(name: str, stem: str) -> None:
    assert state.stem(name) == stem


def test_a_weight_files_name_does_not_lead_the_report_out_of_its_folder(
    debug_network: MAE, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "0.png").write_bytes(encoded(photo(80, 72)))
    weights, out = tmp_path / "m.safetensors", tmp_path / "deep" / "in" / "out"
    store.write(weights, debug_network, name="/../../../escaped (1)", card={})
    arguments = ["evaluate", "reconstruct", str(weights), "--data", str(photos), "--out", str(out)]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "m.safetensors", "deep"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    report = out / "reconstruct--..-..-..-escaped (1).md"
    assert json.loads(report.with_suffix(".json").read_text())["model"] == "/../../../escaped (1)"
    links = re.findall(r"\]\(([^)]*)\)", report.read_text().replace("(1).md", ""))
    assert links
    assert all((out / unquote(link)).is_file() for link in links), links


def test_a_matrix_has_a_line_a_row_in_a_reports_json(tmp_path: Path) -> None:
    facts = {
        "answer": {"confusion": [[1, 2], [3, 4]], "each": [], "none": {}},
        "curve": [{"step": 1}],
        "name": "é",
    }
    pages.write(tmp_path, "report", "Report", facts, [])
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text) == facts
    assert "   [1, 2],\n   [3, 4]\n" in text


def test_a_reports_words_are_never_markup_and_what_is_not_known_is_a_dash(tmp_path: Path) -> None:
    svg = plots.lines("a<b>", "x<b>", "y<b>", {"s<b>": ([1], [1])})
    matrix = str(plots.confusion("m<b>", np.eye(2, dtype=np.int64), ["c<b>", "d<b>"]))
    blocks: list[pages.Block] = [
        "<b>", pages.Heading("<b>"), pages.Figure("f", svg + matrix, "<b>"),
        pages.Table(("<b>", "<b>"), [("<b>", None), (pages.Link("<b>", "other"), 1.0)]),
    ]  # fmt: skip
    pages.write(tmp_path, "report", "<b>", {}, blocks)
    html = (tmp_path / "report.html").read_text()
    assert "<b>" not in html
    assert html.count("&lt;b&gt;") == 18
    assert "<td>–</td>" in html
    assert "| <b> | – |" in (tmp_path / "report.md").read_text()


def test_a_curve_that_rises_goes_up_and_to_the_right() -> None:
    svg = plots.lines("Curve", "x", "y", {"rising": ([1, 2, 4], [1, 3, 4])})
    points = re.findall(r'<circle cx="([^"]+)" cy="([^"]+)"', svg)
    across, down = np.array(points, dtype=float).T
    assert np.diff(across) == pytest.approx(np.diff(across)[0] * np.array([1, 2]), abs=0.2)
    assert np.diff(down)[0] < 0
    assert np.diff(down) == pytest.approx(np.diff(down)[1] * np.array([2, 1]), abs=0.2)


def test_what_was_taken_for_what_has_the_truth_in_rows() -> None:
    svg = str(plots.confusion("Two", np.array([[3, 1], [0, 5]]), ["cat", "dog"]))
    shades = re.findall(r'<rect x="(\d+)" y="(\d+)"[^>]+fill="rgb\((\d+),', svg)
    cells = {(int(y), int(x)): int(red) for x, y, red in shades}
    assert [cells[place] for place in sorted(cells)] == [64, 191, 255, 0], "the more of its row, the bluer"
    numbers = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]+>(\d)<', svg)
    found = {number: (float(x), float(y)) for x, y, number in numbers}
    assert found.keys() == {"3", "1", "5"}
    assert found["3"][1] == found["1"][1] < found["5"][1]
    assert found["3"][0] < found["1"][0] == found["5"][0]


def test_names_of_classes_have_room_beside_the_matrix() -> None:
    names = ["Yellow-bellied Flycatcher (male)", "猫" * 20, "x" * 300]
    svg = str(plots.confusion("Birds", np.eye(3, dtype=np.int64), names))
    width = int(re.findall(r'width="(\d+)"', svg)[0])
    beside = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end"[^>]*>([^<]+)<', svg)
    assert [name for _, name in beside] == [names[0], names[1], "x" * 31 + "…"]
    slanted = re.findall(r'<text x="([\d.]+)" y="(\d+)" transform="rotate\(-45[^>]*>([^<]+)<', svg)
    for (x, name), (at, y, above) in zip(beside, slanted, strict=True):
        room = 6.5 * len(name) if name[0].isascii() else 12 * len(name)  # pixels, roughly
        assert above == name
        assert float(x) > room
        assert float(y) - 24 > room * 0.7, "below the title"
        assert width - float(at) > room * 0.7


def test_what_was_taken_for_what_of_a_thousand_classes_is_a_small_picture() -> None:
    counts = np.random.default_rng(0).integers(0, 2, (1000, 1000))
    counts[3], counts[3, 5] = 0, 7
    picture = plots.confusion("Many", counts, [str(number) for number in range(1000)])
    assert isinstance(picture, bytes)
    assert len(picture) < 2_000_000
    pixels = np.asarray(Image.open(io.BytesIO(picture)))
    assert pixels.shape == (1000, 1000, 3)
    assert pixels[3, 5].tolist() == [0, 114, 178]
    assert pixels[3, 6].tolist() == [255, 255, 255]
    assert isinstance(plots.confusion("Few", counts[:53, :53], [str(n) for n in range(53)]), str)
    assert isinstance(plots.confusion("More", counts[:54, :54], [str(n) for n in range(54)]), bytes)


def test_a_kept_answer_is_not_taken_for_one_of_other_photos_or_masks(
    reconstructor: Reconstructor, tmp_path: Path
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(photo(80, 72, number)))
    photos = Photos.open([tmp_path])
    asked: dict[str, Any] = {"strategies": ["random"], "ratios": ["0.75"], "limit": 2}
    first = answer(reconstructor, photos, tmp_path / "out", **asked)
    assert answer(reconstructor, photos, tmp_path / "out", **asked) == first
    for change in ({"limit": 3}, {"ratios": ["0.5"]}, {"strategies": ["block"]}):
        with pytest.raises(DataError, match="other weights, photos or settings"):
            answer(reconstructor, photos, tmp_path / "out", **asked | change)
    with pytest.raises(DataError, match="other weights, photos or settings"):
        answer(reconstructor, Photos(photos.entries[1:]), tmp_path / "out", **asked)
    with pytest.raises(RecipeError, match="limit is 0; it must be a whole number, at least 1"):
        answer(reconstructor, photos, tmp_path / "out", **asked | {"limit": 0})


def test_a_broken_photo_is_named(reconstructor: Reconstructor, tmp_path: Path) -> None:
    (tmp_path / "whole.png").write_bytes(encoded(photo(80, 72)))
    (tmp_path / "broken.jpg").write_bytes(encoded(photo(80, 72), "JPEG")[:700])
    with pytest.raises(DataError, match=r"/broken\.jpg cannot be used: image is damaged"):
        evaluate(reconstructor, Photos.open([tmp_path]))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"ratios": ["0.5", "75"]}, "ratio is 75; it must be a number above 0 and below 1"),
        (
            {"strategies": ["random", "indices"]},
            "strategy is 'indices'; it must be one of random, block, grid.$",
        ),
    ],
    ids=str,
)
def test_every_kind_of_mask_is_checked_before_the_first_photo(
    wrong: dict[str, Any], says: str, reconstructor: Reconstructor, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(encoded(photo(80, 72), "JPEG")[:700])  # would be met first
    with pytest.raises(MaskError, match=says):
        evaluate(reconstructor, Photos.open([tmp_path]), **wrong)


def test_one_command_measures_several_masks_and_writes_a_report(
    debug_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.png").write_bytes(encoded(photo(80, 72, number)))
    arguments = ["evaluate", "reconstruct", str(debug_file), "--data", str(photos), "--device", "cpu"]
    arguments += ["--ratio", "0.5,0.75", "--strategy", "random,block", "--out", str(out), "--json"]
    assert main(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [(row["strategy"], row["ratio"]) for row in facts["settings"]] == [
        ("random", 0.5), ("random", 0.75), ("block", 0.5), ("block", 0.75),
    ]  # fmt: skip
    assert facts["view"] == "pixels"
    assert "norm_pixel_loss" not in facts["settings"][0], "of no target that this model has"
    for row in facts["settings"]:
        for scores in row["scores"].values():
            assert all(value["low"] <= value["mean"] <= value["high"] for value in scores.values())
            assert scores.keys() >= {"seam_ratio", "fine_detail"}
    assert facts == json.loads((out / "reconstruct-debug.json").read_text())
    sheet = load_square((out / "reconstruct-debug-sheet.png").read_bytes(), 32)
    assert sheet.std() > 0
    assert (
        "Navier" in (out / "reconstruct-debug.md").read_text()
        or "navier_stokes" in (out / "reconstruct-debug.md").read_text()
    )
    assert (out / "reconstruct-debug.html").read_text().count("<svg") == 4
    (out / "reconstruct-debug.html").unlink()
    assert main(arguments[:-1]) == 0
    assert not (out / "reconstruct-debug.html").exists(), "the answer was kept, not made again"
    assert "at least 1 dB above interpolation" in capsys.readouterr().out
