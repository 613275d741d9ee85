"""The encoder under detection and segmentation, on a tiny generated set in COCO's format."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from model.__main__ import main
from model.checkpoints import store
from model.config import SIZES
from model.errors import CheckpointError, DataError, RecipeError
from model.evaluate import transfer
from model.evaluate.coco import Finds, Scenes, average_precision, mask_overlaps
from model.evaluate.features import load_encoder
from model.network import MAE
from tests.pictures import encoded, photo

CPU = torch.device("cpu")


def _set(folder: Path, count: int, seed: int, turned: bool = False) -> Path:
    """Red squares and green triangles on grey, one of each a photo; ``turned``: the file names triangles first."""
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
    categories = [{"id": 10, "name": "square"}, {"id": 20, "name": "triangle"}][:: -1 if turned else 1]
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
    scene = scenes.scene(0, 128)
    assert scene.image.shape == (3, 128, 128)
    assert scene.classes.tolist() == [1, 2]
    red = scene.image[:, scene.masks[0] > 0].mean(dim=1)
    assert red[0] > 0.75 > 0.3 > red[1]


def test_classes_are_numbered_by_name_whatever_their_order_in_the_file(tmp_path: Path) -> None:
    train = Scenes.open(_set(tmp_path / "train", 1, 0))
    turned = _set(tmp_path / "turned", 1, 0, turned=True)
    assert Scenes.open(turned).classes == ("triangle", "square")
    test = Scenes.open(turned, train.classes)
    assert test.classes == train.classes
    assert test.scene(0, 64).classes.tolist() == train.scene(0, 64).classes.tolist() == [1, 2]


def test_a_class_that_was_not_learned_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'triangle' occurs in the test photos"):
        Scenes.open(_set(tmp_path / "test", 1, 0), ("square",))


def test_two_parts_that_number_their_classes_otherwise_or_share_a_photo_are_refused(
    encoder_file: Path, tmp_path: Path
) -> None:
    train = Scenes.open(_set(tmp_path / "train", 1, 0))
    turned = Scenes.open(_set(tmp_path / "turned", 1, 0, turned=True))
    for test, says in ((turned, "other classes"), (train, "1 of 1 test photos are also")):
        with pytest.raises(DataError, match=says):
            transfer.evaluate(
                load_encoder(encoder_file), train, test, tmp_path / "out", transfer.Settings(), CPU
            )


def test_a_side_that_is_not_in_whole_patches_is_refused(encoder_file: Path, tmp_path: Path) -> None:
    train, test = (Scenes.open(_set(tmp_path / name, 1, 0)) for name in ("train", "test"))
    with pytest.raises(RecipeError, match="side is 70; it must be a multiple of 16"):
        transfer.evaluate(
            load_encoder(encoder_file), train, test, tmp_path / "out", transfer.Settings(side=70), CPU
        )


def _put(folder: Path, pixels: Any) -> None:
    """Another first photo, and its size in the annotations."""
    (folder / "0.png").write_bytes(encoded(pixels))
    facts = json.loads((folder / "annotations.json").read_text())
    facts["images"][0] |= {"height": len(pixels), "width": len(pixels[0])}
    (folder / "annotations.json").write_text(json.dumps(facts))


def test_polygons_of_one_thing_that_overlap_are_all_of_it(tmp_path: Path) -> None:
    folder = _set(tmp_path / "set", 1, 0)
    facts = json.loads((folder / "annotations.json").read_text())
    squares = [[0, 0, 39, 0, 39, 39, 0, 39], [20, 20, 59, 20, 59, 59, 20, 59]]
    facts["annotations"] = [facts["annotations"][0] | {"segmentation": squares}]
    (folder / "annotations.json").write_text(json.dumps(facts))
    mask = Scenes.open(folder).scene(0, 64).masks[0]
    assert int(mask.sum()) == 2 * 40 * 40 - 20 * 20


def test_annotations_of_a_picture_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = _set(tmp_path / "set", 1, 0)
    (folder / "0.png").write_bytes(encoded(photo(32, 64)))
    with pytest.raises(
        DataError, match=r"0\.png is \d+ x \d+ pixels upright; its annotations are for 64 x 64"
    ):
        Scenes.open(folder).scene(0, 64)


def test_a_mirrored_photo_takes_its_things_along_and_leaves_its_padding(tmp_path: Path) -> None:
    folder = _set(tmp_path / "set", 1, 0)
    _put(folder, photo(40, 64))
    scenes = Scenes.open(folder)
    plain, mirrored = scenes.scene(0, 64), scenes.scene(0, 64, flip=True)
    assert plain.size == mirrored.size == (64, 40)
    assert torch.equal(mirrored.image[..., :40], plain.image[..., :40].flip(-1))
    assert torch.equal(mirrored.masks[..., :40], plain.masks[..., :40].flip(-1))
    assert float(mirrored.image[..., 40:].abs().max()) == 0


def test_padding_is_neither_learned_nor_counted_and_nothing_is_no_class(tmp_path: Path) -> None:
    folder = _set(tmp_path / "set", 1, 0)
    wide = np.full((32, 64, 3), 110, dtype=np.uint8)
    _put(folder, wide)
    facts = json.loads((folder / "annotations.json").read_text())
    facts["annotations"] = facts["annotations"][:1]
    facts["annotations"][0]["segmentation"] = [[0, 0, 31, 0, 31, 31, 0, 31]]
    (folder / "annotations.json").write_text(json.dumps(facts))
    scenes = Scenes.open(folder)
    wanted = transfer._semantic(scenes.scene(0, 64))
    assert (wanted[32:] == transfer._PADDING).all()
    assert (wanted[:32, :32] == 1).all()
    assert (wanted[:32, 32:] == 0).all()

    class Left(torch.nn.Module):
        """Class 1 in the left half from top to bottom, over the padding too; nothing elsewhere."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            scores = torch.zeros(len(images), 3, 64, 64)
            scores[:, 1, :, :32] = 1
            scores[:, 0, :, 32:] = 1
            return scores

    assert transfer._segmented(Left(), scenes, 64, CPU) == {"miou": 100}

    class Nothing(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.eye(3)[0].view(1, 3, 1, 1).expand(len(images), 3, 64, 64)

    assert transfer._segmented(Nothing(), scenes, 64, CPU) == {"miou": 0}


def test_vectors_and_the_class_token_do_not_decay_and_rates_fall_towards_the_input(
    encoder_file: Path,
) -> None:
    settings = transfer.Settings(task="segment", width=8, layer_decay=0.5, weight_decay=0.1)
    model = transfer.build(load_encoder(encoder_file), 2, settings)
    of = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in transfer._groups(model, settings)
        for parameter in group["params"]
    }
    named = {name: of[id(parameter)] for name, parameter in model.named_parameters()}
    assert named["head.weight"] == (1.0, 0.1)
    assert named["head.bias"] == (1.0, 0.0)
    assert named["backbone.network.blocks.1.mlp.fc1.weight"] == (0.5, 0.1)
    assert named["backbone.network.blocks.0.norm1.weight"] == (0.25, 0.0)
    assert named["backbone.network.cls_token"] == (0.125, 0.0)
    assert named["backbone.network.patch_embed.proj.weight"] == (0.125, 0.1)


def test_anchors_are_those_of_the_usual_pyramid(encoder_file: Path) -> None:
    encoder = load_encoder(encoder_file)
    model: Any = transfer.build(encoder, 2, transfer.Settings(side=1024, width=8))
    assert model.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    maps = model.backbone(torch.zeros(1, 3, 128, 128))
    assert [tuple(level.shape[-2:]) for level in maps.values()] == [
        (side, side) for side in (32, 16, 8, 4, 2)
    ]


def test_things_without_polygons_and_crowds_are_counted_and_nothing_else_is_refused(tmp_path: Path) -> None:
    file = _set(tmp_path / "set", 3, 0) / "annotations.json"
    assert Scenes.open(file.parent).told == "3 photos, 6 things"
    facts = json.loads(file.read_text())
    for number, one in enumerate(facts["annotations"]):
        one["iscrowd"] = int(number == 0)
        if number < 5:
            one["segmentation"] = {"size": [64, 64], "counts": "abc"}
    file.write_text(json.dumps(facts))
    left_out = "left out: things without polygons (4), crowds (1)"
    assert Scenes.open(file.parent).told == f"3 photos, 1 things; {left_out}"
    del facts["annotations"][5]
    file.write_text(json.dumps(facts))
    with pytest.raises(DataError, match=re.escape(f"on its pictures: 3 photos, 0 things; {left_out}")):
        Scenes.open(file.parent)


@pytest.mark.parametrize("left_behind", [[], [10, 10, 30, 30]], ids=["nothing", "a line"])
def test_what_a_tool_left_behind_is_no_polygon(left_behind: list[int], tmp_path: Path) -> None:
    file = _set(tmp_path / "set", 1, 0) / "annotations.json"
    before = Scenes.open(file.parent).scene(0, 64)
    facts = json.loads(file.read_text())
    facts["annotations"][0]["segmentation"].append(left_behind)
    facts["annotations"].append({"image_id": 0, "category_id": 10, "segmentation": [left_behind]})
    file.write_text(json.dumps(facts))
    scenes = Scenes.open(file.parent)
    assert scenes.told == "1 photos, 2 things; left out: things without polygons (1)"
    assert torch.equal(scenes.scene(0, 64).masks, before.masks)


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations\.json"):
        Scenes.open(tmp_path)


def test_an_interrupted_training_does_not_go_on_with_other_photos_or_outlines(
    encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, other, test = (
        Scenes.open(_set(tmp_path / name, 2, seed)) for seed, name in enumerate(("train", "other", "test"))
    )
    settings = transfer.Settings(task="segment", steps=2, batch_size=2, width=8)

    def train_on(scenes: Scenes, seed: int = 0) -> dict[str, Any]:
        encoder = load_encoder(encoder_file)
        return transfer.answer(
            encoder, scenes, test, tmp_path / "out", replace(settings, seed=seed), CPU, save_every=1
        )

    def killed(*given: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "_segmented", killed)
    with pytest.raises(KeyboardInterrupt):
        train_on(train)
    monkeypatch.undo()
    for scenes in (other, replace(train, digest=other.digest)):
        with pytest.raises(CheckpointError, match="other weights, photos or settings"):
            train_on(scenes)
    done = train_on(train)
    assert len(done["curve"]) == 2
    assert "training: 2 photos, 4 things." in capsys.readouterr().err
    monkeypatch.setattr(transfer, "_segmented", killed)
    assert train_on(train) == done, "what is done is not done again"
    with pytest.raises(DataError, match="other weights, photos or settings"):
        train_on(other)
    with pytest.raises(KeyboardInterrupt):  # begun, beside the first
        train_on(train, seed=1)


def test_average_precision_is_full_for_the_truth_and_falls_with_misses_and_false_finds() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[0, :4], masks[1, 4:] = 1, 1
    classes = torch.tensor([1, 2])

    def precision(scores: list[float], labels: list[int], found: torch.Tensor) -> dict[str, float]:
        overlaps = mask_overlaps(found, masks)
        finds = Finds(torch.tensor(scores), torch.tensor(labels), overlaps, classes)
        return average_precision([finds], 2)

    assert precision([1, 1], [1, 2], masks) == {"ap": 100, "ap50": 100}
    assert precision([1], [1], masks[:1])["ap"] == 50
    wrong = precision([0.9, 0.8], [2, 2], masks)
    assert wrong["ap50"] == pytest.approx(25)  # class 2: a false find before the right one


def test_of_many_finds_of_one_thing_the_surest_counts_whatever_their_order_on_the_photo() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[0, :4], masks[1, 4:] = 1, 1
    truth = torch.tensor([2, 2])
    found = masks[[0, 0, 1, 1]]
    found[1, 0] = 0  # three rows of four: overlap 0.75
    scores, labels = torch.tensor([0.2, 0.9, 0.8, 0.95]), torch.tensor([2, 2, 2, 1])
    empty = Finds(torch.zeros(0), torch.zeros(0, dtype=torch.int64), np.zeros((0, 2)), truth[:0])
    finds = Finds(scores, labels, mask_overlaps(found, masks), truth)
    # Up to 0.75 the two surest are both right; above, the less sure whole mask is: wrong, right, right.
    right, late = 100.0, 100 * 2 / 3
    ap = average_precision([empty, finds], 2)
    assert ap["ap50"] == right
    assert ap["ap"] == pytest.approx((6 * right + 4 * late) / 10)


def test_a_mask_and_the_true_one_overlap_in_the_share_of_their_pixels() -> None:
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (torch.rand(number, 32, 32, generator=draw) > 0.4 for number in (3, 2))
    shared, union = ((ours[:, None] & theirs).sum((2, 3)), (ours[:, None] | theirs).sum((2, 3)))
    assert np.array_equal(mask_overlaps(ours, theirs.byte()), (shared.double() / union).numpy())
    assert mask_overlaps(ours[:0], theirs).shape == (0, 2)


def test_the_curve_of_a_long_training_has_a_bounded_number_of_points(
    encoder_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_POINTS", 3)
    train, test = (Scenes.open(_set(tmp_path / name, 2, seed)) for seed, name in enumerate(("train", "test")))
    settings = transfer.Settings(task="segment", steps=7, batch_size=2, width=8)
    facts = transfer.evaluate(load_encoder(encoder_file), train, test, tmp_path / "out", settings, CPU)
    assert [point["step"] for point in facts["curve"]] == [2, 4, 6, 7]


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


def test_a_recipe_of_unknown_keys_or_values_is_refused(tmp_path: Path) -> None:
    assert len(RECIPES) == 4
    for text, says in (
        ("speed = 3", "speed is not a known key"),
        ('task = "fly"', "detect or"),
    ):
        (tmp_path / "own.toml").write_text(text)
        with pytest.raises(RecipeError, match=says):
            transfer.load_settings(str(tmp_path / "own.toml"), {})


def test_a_training_that_comes_apart_is_stopped(encoder_file: Path, tmp_path: Path) -> None:
    scenes, others = (Scenes.open(_set(tmp_path / str(seed), 4, seed)) for seed in (1, 2))
    settings = transfer.Settings(task="segment", steps=9, batch_size=4, width=32, lr=1e9)
    with pytest.raises(DataError, match=r"The loss is nan in step \d") as caught:
        transfer.evaluate(load_encoder(encoder_file), scenes, others, tmp_path / "out", settings, CPU)
    assert caught.value.field == "lr"


def test_a_broken_test_photo_is_found_before_the_first_step(
    encoder_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [_set(tmp_path / part, 2, seed) for seed, part in enumerate(("train", "test"))]
    whole = (folders[1] / "1.png").read_bytes()
    (folders[1] / "1.png").write_bytes(whole[:300])
    asked = ["evaluate", "transfer", str(encoder_file), "--data", str(folders[0]), "--test", str(folders[1])]
    asked += ["--task", "segment", "--steps", "1", "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(asked) == 2
    said = capsys.readouterr().err
    assert f"{folders[1] / '1.png'} cannot be decoded" in said
    assert "step" not in said
    (folders[1] / "1.png").write_bytes(whole)
    assert main(asked) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("task", "score", "least"), [("segment", "miou", 60), ("detect", "mask_ap50", 20)])
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
    if task == "detect":
        assert set(facts["scores"]) == {"box_ap", "box_ap50", "mask_ap", "mask_ap50"}
        assert facts["scores"]["box_ap50"] > least
    assert (tmp_path / "out" / f"transfer-{task}-debug.html").is_file()
