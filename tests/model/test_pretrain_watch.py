"""What a run shows: sheets of the same photos with an index, events for TensorBoard, the batch that broke it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.errors import DataError
from model.pretrain.data import Photos
from model.pretrain.launch import pretrain
from model.pretrain.loop import learning_rate
from model.pretrain.samples import Sampler
from model.pretrain.watch import _memory_gib
from tests.training import equal, run_until, toy


def _index(out: Path) -> Any:
    return json.loads((out / "pictures/index.json").read_text())


def test_sheets_are_drawn_from_step_0_on_and_listed_for_the_page(folder: Path, tmp_path: Path) -> None:
    recipe = toy(steps=7, log_every=2, picture_every=3)
    pretrain(recipe, [folder], tmp_path / "run", device="cpu")
    index = _index(tmp_path / "run")
    assert index["pictures"] == [
        {"step": step, "samples": 4 * step, "file": f"step-{step:07d}.webp"} for step in (0, 4, 6, 7)
    ]
    assert index["photos"] == ["astronaut", "bricks", "cat", "coffee", "eye", "galaxies"]
    for entry in index["pictures"]:
        with Image.open(tmp_path / "run/pictures" / str(entry["file"])) as sheet:
            assert (sheet.format, sheet.size) == ("WEBP", (3 * 64, 6 * 64))


def test_masks_and_photos_stay_and_what_is_painted_changes(folder: Path, tmp_path: Path) -> None:
    pretrain(toy(steps=3, lr=1e-2, picture_every=3), [folder], tmp_path / "run", device="cpu")
    sheets = []
    for step in (0, 3):
        with Image.open(tmp_path / f"run/pictures/step-{step:07d}.webp") as sheet:
            sheets.append(np.asarray(sheet, dtype=int))
    first, last = sheets
    # Without the borders: WebP lets colours run over from one panel to the next.
    masked, pasted, original = np.abs(first - last).reshape(-1, 3, 64, 3)[:, :, 16:48].mean(axis=(0, 2, 3))
    assert masked < 0.5
    assert original < 4  # WebP's own noise
    assert pasted > 2 * original, (masked, pasted, original)


def test_a_resumed_run_lists_every_sheet_once(folder: Path, tmp_path: Path) -> None:
    recipe = toy(picture_every=1, checkpoint_every=4)
    whole = pretrain(recipe, [folder], tmp_path / "whole", device="cpu")
    run_until(recipe, folder, tmp_path / "parts", 5)
    # What a killed process may have listed after its last state.
    place = tmp_path / "parts/pictures"
    place.mkdir()
    listed = [{"step": step, "samples": 4 * step, "file": f"step-{step:07d}.webp"} for step in range(6)]
    (place / "index.json").write_text(json.dumps({"photos": [], "pictures": listed}))
    assert equal(whole, pretrain(recipe, [folder], tmp_path / "parts", resumed=True, device="cpu"))
    assert _index(tmp_path / "parts") == _index(tmp_path / "whole")


def test_a_model_of_normalised_pixels_is_drawn_too(folder: Path, tmp_path: Path) -> None:
    pretrain(toy(steps=1, target="norm_pixel"), [folder], tmp_path / "run", device="cpu")
    assert [entry["step"] for entry in _index(tmp_path / "run")["pictures"]] == [0, 1]


def test_every_line_of_the_log_has_what_the_page_reads(folder: Path, tmp_path: Path) -> None:
    pretrain(toy(), [folder], tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["samples"] for line in lines] == [4, 8, 12, 16, 20, 24]
    assert all({"loss", "lr", "images_per_second", "broken"} <= line.keys() for line in lines)


def test_an_epoch_of_the_bar_is_one_of_the_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(toy(steps=6, batch_size=8, crops=2), [folder], tmp_path, device="cpu")
    assert "epoch=2.00" in capsys.readouterr().err  # of 12 photos, two crops each: 6 steps of 8 are two


def test_the_log_tells_the_learning_rate_itself(folder: Path, tmp_path: Path) -> None:
    recipe = toy(lr=3e-7, warmup_steps=3)
    pretrain(recipe, [folder], tmp_path / "run", device="cpu")
    told = [json.loads(line)["lr"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert told == pytest.approx([3e-7 * learning_rate(recipe, step) for step in range(6)], rel=1e-5)


def test_tensorboard_gets_curves_and_sheets(folder: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pretrain(toy(picture_every=3), [folder], tmp_path / "run", device="cpu")
    events = accumulator.EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert events.Scalars("lr")[0].value == pytest.approx(1e-3)
    assert [event.step for event in events.Images("pictures")] == [0, 3, 6]
    with Image.open(io.BytesIO(events.Images("pictures")[0].encoded_image_string)) as sheet:
        assert sheet.size == (3 * 64, 6 * 64)


def test_a_loss_that_is_not_finite_leaves_the_keys_of_its_batch(folder: Path, tmp_path: Path) -> None:
    recipe = toy(steps=200, lr=1e38, optimiser="adamw", log_every=5)
    with pytest.raises(DataError, match=r"not-finite-0000001\.json"):
        pretrain(recipe, [folder], tmp_path, device="cpu")
    record = json.loads((tmp_path / "not-finite-0000001.json").read_text())
    photos = Photos.open([folder])
    expected = next(Sampler(photos, recipe).batches(4, 1, slice(None)))[1]
    assert record["step"] == 1
    assert [(entry["number"], int(entry["key"])) for entry in record["samples"]] == [
        (sample.number, int(sample.key)) for sample in expected
    ]
    assert record["samples"][0]["photo"] == photos.entries[expected[0].number].name


def test_the_memory_shown_is_in_gib_whatever_the_system_counts_in(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for platform in ("linux", "darwin"):
        monkeypatch.setattr("sys.platform", platform)
        shown[platform] = _memory_gib(torch.device("cpu"))
    assert shown["linux"] == pytest.approx(1024 * shown["darwin"], rel=0.1)
