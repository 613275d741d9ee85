"""The encoder under detection and segmentation, on a tiny generated set in COCO's format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from model.checkpoints import store
from model.config import SIZES
from model.errors import CheckpointError, DataError, RecipeError
from model.evaluate import transfer
from model.evaluate.coco import Scenes, average_precision
from model.evaluate.features import load_encoder
from model.network import MAE
from tests.pictures import encoded

CPU = torch.device("cpu")


def _set(folder: Path, count: int, seed: int) -> Path:
    """Red squares and green triangles on grey, one of each a photo."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        pixels = np.full((64, 64, 3), 110, dtype=np.uint8)
        pixels += random.integers(0, 12, pixels.shape, dtype=np.uint8)
        for class_, left in ((1, 2), (2, 34)):
            side = int(random.integers(16, 26))
            top, left = int(random.integers(0, 64 - side)), left + int(random.integers(0, 28 - side + 1))
            corners = [(left, top), (left + side, top), (left + side, top + side), (left, top + side)]
            outline = corners if class_ == 1 else corners[1:]
            colour = (220, 30, 30) if class_ == 1 else (30, 200, 30)
            cv2.fillPoly(pixels, [np.array(outline, dtype=np.int32)], colour)
            flat = [float(value) for corner in outline for value in corner]
            annotations.append(
                {"image_id": number, "category_id": 10 * class_, "segmentation": [flat], "iscrowd": 0}
            )
        (folder / f"{number}.png").write_bytes(encoded(pixels))
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
    categories = [{"id": 10, "name": "square"}, {"id": 20, "name": "triangle"}]
    facts = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def encoder_file(tmp_path: Path) -> Path:
    network = MAE(SIZES["debug"])
    network.init_weights(torch.Generator().manual_seed(0))
    store.write(tmp_path / "debug.safetensors", network, name="debug", card={})
    return tmp_path / "debug.safetensors"


def test_a_coco_folder_is_read_with_classes_and_outlines(tmp_path: Path) -> None:
    scenes = Scenes.open(_set(tmp_path / "set", 2, 0))
    assert scenes.classes == ("square", "triangle")
    image, classes, masks = scenes.scene(0, 128)
    assert image.shape == (3, 128, 128)
    assert classes.tolist() == [1, 2]
    red = image[:, masks[0] > 0].mean(dim=1)
    assert red[0] > 0.75 > 0.3 > red[1]


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations\.json"):
        Scenes.open(tmp_path)


def test_an_interrupted_training_does_not_go_on_with_other_photos_or_outlines(
    encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, other = Scenes.open(_set(tmp_path / "train", 2, 1)), Scenes.open(_set(tmp_path / "other", 2, 2))
    settings = transfer.Settings(task="segment", steps=2, batch_size=2, width=8)

    def train_on(scenes: Scenes) -> dict[str, Any]:
        encoder = load_encoder(encoder_file)
        return transfer.evaluate(encoder, scenes, train, tmp_path / "out", settings, CPU, save_every=1)

    def killed(*given: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "_segmented", killed)
    with pytest.raises(KeyboardInterrupt):
        train_on(train)
    monkeypatch.undo()
    for scenes in (other, replace(train, digest=other.digest)):
        with pytest.raises(CheckpointError, match="other weights, photos or settings"):
            train_on(scenes)
    assert len(train_on(train)["curve"]) == 2


def test_average_precision_is_full_for_the_truth_and_falls_with_misses_and_false_finds() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[0, :4], masks[1, 4:] = 1, 1
    classes = torch.tensor([1, 2])
    truth = [(classes, masks)]
    assert average_precision([(torch.ones(2), classes, masks)], truth, 2) == {"ap": 100, "ap50": 100}
    missed = average_precision([(torch.ones(1), classes[:1], masks[:1])], truth, 2)
    assert missed["ap"] == 50
    wrong = average_precision([(torch.tensor([0.9, 0.8]), torch.tensor([2, 2]), masks)], truth, 2)
    assert wrong["ap50"] == pytest.approx(25)  # class 2: a false find before the right one


RECIPES = sorted((Path(transfer.__file__).parent / "recipes").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_it_was_run_and_what_is_given_comes_on_top(recipe: Path) -> None:
    header = recipe.read_text()
    assert f"--recipe {recipe.stem} " in header
    assert "# Result: not run here." in header
    settings = transfer.load_settings(recipe.stem, {"batch_size": 4, "seed": None})
    assert (settings.batch_size, settings.seed) == (4, 0)
    assert settings.task == ("detect" if "coco" in recipe.stem else "segment")
    epochs = settings.steps * transfer.load_settings(str(recipe), {}).batch_size
    assert epochs == pytest.approx(100 * {"detect": 118_287, "segment": 20_210}[settings.task], rel=1e-4)


def test_a_recipe_that_is_not_there_or_has_unknown_keys_is_refused(tmp_path: Path) -> None:
    assert len(RECIPES) == 4
    with pytest.raises(RecipeError, match="known are paper-ade20k-base"):
        transfer.load_settings("paper-lvis", {})
    for text, says in (
        ("speed = 3", "speed is no key"),
        ("steps =", "no valid TOML"),
        ('task = "fly"', "detect or"),
    ):
        (tmp_path / "own.toml").write_text(text)
        with pytest.raises(RecipeError, match=says):
            transfer.load_settings(str(tmp_path / "own.toml"), {})


@pytest.mark.slow
@pytest.mark.parametrize(("task", "score", "least"), [("segment", "miou", 60), ("detect", "ap50", 20)])
def test_a_short_training_learns_to_find_shapes(
    task: str, score: str, least: float, encoder_file: Path, tmp_path: Path
) -> None:
    train, test = Scenes.open(_set(tmp_path / "train", 16, 1)), Scenes.open(_set(tmp_path / "test", 6, 2))
    settings = transfer.Settings(
        task=task,  # type: ignore[arg-type]
        steps=80, batch_size=4, width=32, proposals=32, lr=3e-3, layer_decay=1.0,
    )  # fmt: skip
    facts = transfer.evaluate(load_encoder(encoder_file), train, test, tmp_path / "out", settings, CPU)
    losses = [line["loss"] for line in facts["curve"]]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    assert facts["scores"][score] > least
    assert (tmp_path / "out" / f"transfer-{task}-debug.html").is_file()
