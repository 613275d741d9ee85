"""What the encoder says of whole photos, and what follows from it: neighbours and probes."""

from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from model.__main__ import main
from model.checkpoints import store
from model.checkpoints.convert import convert
from model.checkpoints.registry import DEFAULT
from model.checkpoints.report import inspect
from model.checkpoints.shapes import Given
from model.config import SIZES, MAEConfig
from model.devices import find_device
from model.errors import CheckpointError, DataError, RecipeError
from model.evaluate import classifier, finetune, judge, knn, linear, state, transfer
from model.evaluate.accuracy import Accuracy
from model.evaluate.features import Encoder, extract, load_encoder, whole
from model.evaluate.labelled import Labelled
from model.evaluate.task import Task
from model.images import grey
from model.network import MAE
from model.pretrain.shards import pack
from tests.pictures import encoded, evaluating, photo, two_classes

CPU = torch.device("cpu")


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Two folders, train and test, of photos of two classes that differ in colour."""
    return two_classes(tmp_path / "photos", train=12, test=4)


def _timm(file: Path) -> VisionTransformer:
    norm: Any = partial(nn.LayerNorm, eps=1e-6)
    vit = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2, norm_layer=norm, num_classes=0
    )
    from safetensors.torch import load_file

    vit.load_state_dict(load_file(file))
    return vit.eval()


def test_a_photo_is_judged_at_the_centre_224_of_256_pixels() -> None:
    ring = np.zeros((256, 320, 3), dtype=np.uint8)
    ring[16:240, 48:272] = (
        1 + np.arange(224, dtype=np.uint8)[:, None, None]
    )  # at 256 already: nothing is scaled
    seen = whole(torch.from_numpy(ring).permute(2, 0, 1), 224)
    assert np.array_equal(seen.permute(1, 2, 0).numpy(), ring[16:240, 48:272])


def test_features_equal_those_of_timms_vit_with_the_exported_weights(
    debug_network: MAE, debug_file: Path, tmp_path: Path
) -> None:
    vit = _timm(convert(debug_file, tmp_path / "timm.safetensors", to="timm"))
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = vit.forward_features(debug_network.normalise(images))
        ours = load_encoder(debug_file)(images)
        again = load_encoder(tmp_path / "timm.safetensors")(images)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(again, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "change",
    [{}, {"mask_tokens": "encoder"}, {"target": "norm_pixel"}, {"target": "pca"}, {"target": "tokens"}],
    ids=str,
)
def test_an_encoder_has_no_decoder_whatever_it_was_trained_with(
    change: dict[str, str], tmp_path: Path
) -> None:
    network = MAE(MAEConfig.from_dict({**SIZES["debug"].to_dict(), **change}))
    store.write(tmp_path / "model.safetensors", network, name="model", card={})
    encoder = load_encoder(tmp_path / "model.safetensors")
    names = [name for name, _ in encoder.named_parameters()]
    assert names
    assert not any("decoder" in name or "mask_token" in name for name in names)
    assert encoder(torch.rand(1, 3, 64, 64)).shape == (1, 17, 32)
    assert torch.equal(encoder.weights()["cls_token"], network.cls_token)
    vit = classifier.build(encoder, 2, drop_path=0.0, seed=0)
    assert vit(torch.rand(1, 3, 64, 64)).shape == (1, 2)


def test_a_grey_encoder_sees_of_colours_what_it_sees_of_their_grey(tmp_path: Path) -> None:
    network = MAE(replace(SIZES["debug"], channels=1, pixel_mean=(0.4,), pixel_std=(0.3,))).eval()
    network.init_weights(torch.Generator().manual_seed(0))
    store.write(tmp_path / "grey.safetensors", network, name="grey", card={})
    colours = photo(64, 64)
    brightness = colours @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    assert np.abs(brightness - grey(colours)[..., 0]).max() < 0.51, "that of serving, before it is rounded"
    image = torch.from_numpy(colours.copy()).permute(2, 0, 1)[None] / 255
    encoder = load_encoder(tmp_path / "grey.safetensors")
    with torch.no_grad():
        ours = encoder(image)
        everything = torch.arange(16)[None]
        theirs = network.encode(network.normalise(torch.from_numpy(brightness)[None, None] / 255), everything)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert classifier.build(encoder, 2, drop_path=0.0, seed=0)(image).shape == (1, 2)


def test_an_encoder_of_channels_that_photos_do_not_have_is_refused(tmp_path: Path) -> None:
    store.write(tmp_path / "five.safetensors", MAE(replace(SIZES["debug"], channels=5)), name="five", card={})
    with pytest.raises(CheckpointError, match="five looks at 5 channels, but photos have 3 colours"):
        load_encoder(tmp_path / "five.safetensors")


def test_features_are_kept_and_another_models_are_not_taken_for_them(
    debug_network: MAE, debug_file: Path, shapes: Path, tmp_path: Path
) -> None:
    photos = Labelled.open([shapes / "test"]).photos
    first = extract(load_encoder(debug_file), photos, tmp_path / "kept", device=CPU)
    kept = sorted((tmp_path / "kept").iterdir())
    again = extract(load_encoder(debug_file), photos, tmp_path / "kept", device=CPU)
    assert sorted((tmp_path / "kept").iterdir()) == kept
    assert first.shape == (8, 2, 32)
    assert torch.equal(first, again)
    debug_network.init_weights(torch.Generator().manual_seed(1))
    store.write(tmp_path / "other.safetensors", debug_network, name="other", card={})
    other = extract(load_encoder(tmp_path / "other.safetensors"), photos, tmp_path / "kept", device=CPU)
    assert not torch.allclose(first, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_features_are_float32_on_a_gpu_too(debug_file: Path, shapes: Path, tmp_path: Path) -> None:
    photos = Labelled.open([shapes / "test"]).photos
    made = {
        device: extract(load_encoder(debug_file), photos, tmp_path / device, device=torch.device(device))
        for device in ("cpu", "cuda")
    }
    torch.testing.assert_close(made["cuda"], made["cpu"], atol=1e-4, rtol=0)


def test_a_kept_answer_is_not_taken_for_one_about_other_photos_labels_weights_or_settings(
    debug_network: MAE, debug_file: Path, shapes: Path, tmp_path: Path
) -> None:
    everything = Labelled.open([shapes / "train"])
    train, other = everything.take(np.arange(0, 24, 2)), everything.take(np.arange(1, 24, 2))
    test = Labelled.open([shapes / "test"], train.classes)
    task = Task(load_encoder(debug_file), train, test, tmp_path / "out", CPU)
    first = knn.answer(task)
    file = tmp_path / "out" / "knn-debug-1.json"
    made = file.stat().st_mtime_ns
    assert knn.answer(task) == first
    assert knn.answer(replace(task, workers=2)) == first, "what decides nothing"
    assert file.stat().st_mtime_ns == made
    debug_network.init_weights(torch.Generator().manual_seed(1))
    store.write(tmp_path / "other" / "debug.safetensors", debug_network, name="debug", card={})
    for changed in (
        replace(task, train=other),
        replace(task, test=test.take(np.arange(4))),
        replace(task, train=replace(train, labels=1 - train.labels)),
        replace(task, test=replace(test, classes=("red", "blue"))),
        replace(task, encoder=load_encoder(tmp_path / "other" / "debug.safetensors")),
    ):
        with pytest.raises(DataError, match="other weights, photos or settings"):
            knn.answer(changed)
    with pytest.raises(DataError, match="other weights, photos or settings"):
        knn.answer(task, k=5)
    linear.answer(task, linear.Protocol(epochs=1, lr=0.4))
    with pytest.raises(DataError, match="other weights, photos or settings"):
        linear.answer(task, linear.Protocol(epochs=1, lr=0.5))


def test_an_answer_from_before_it_was_told_what_decides_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"digest": "abc", "train_photos": 24}))
    with pytest.raises(DataError, match="other weights, photos or settings"):
        state.answered(tmp_path / "old.json", state.digest("abc"), dict)


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "meta", "xpu", "hpu", "cpu:x"])
def test_a_device_that_torch_does_not_know_or_have_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"Device '{name}' cannot be used"):
        find_device(name)
    assert find_device("cpu") == CPU


@pytest.mark.parametrize(
    "arguments",
    [
        ["judge", "m", "--data", "d", "--test", "t", "--out", "o", "--shares", "a"],
        ["judge", "m", "--data", "d", "--test", "t", "--out", "o", "--blocks", "1,,2"],
        ["reconstruct", "m", "--data", "d", "--ratio", "abc"],
    ],
    ids=lambda given: given[-1],
)
def test_a_list_that_is_not_of_numbers_is_refused_by_name(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", *arguments])
    said = capsys.readouterr().err
    assert f"{arguments[-2]}: {arguments[-1]!r} is not a comma-separated list of numbers." in said


@pytest.mark.parametrize(
    ("settings", "wrong", "says"),
    [
        (linear.Protocol, {"epochs": 0}, "epochs is 0; it must be above 0"),
        (linear.Protocol, {"lr": float("nan")}, "lr is nan; it must be above 0"),
        (linear.Protocol, {"seed": -1}, "seed is -1; it must be a whole number, 0 to 4294967295"),
        (finetune.Settings, {"epochs": -1}, "epochs is -1; it must be above 0"),
        (finetune.Settings, {"minutes": float("inf")}, "minutes is inf; it must be above 0"),
        (judge.Questions, {"minutes": 0}, "minutes is 0; it must be above 0"),
        (transfer.Settings, {"steps": 0}, "steps is 0; it must be a whole number, at least 1"),
        (transfer.Settings, {"batch_size": 0}, "batch_size is 0; it must be a whole number, at least 1"),
        (transfer.Settings, {"lr": "fast"}, "lr is 'fast'; it must be above 0"),
        (linear.Protocol, {"lr": 1e300}, "lr is 1e.300; it must be at most 1e10"),
        (finetune.Settings, {"epochs": 1e300}, "epochs is 1e.300; it must be at most 1e10"),
        (transfer.Settings, {"steps": 10**30}, "steps is 10*; it must be a whole number, at most 1e10"),
    ],
    ids=str,
)
def test_numbers_with_which_a_figure_means_nothing_are_refused_by_name(
    settings: Any, wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        settings(**wrong)
    assert caught.value.field == next(iter(wrong))


def test_no_neighbours_no_pair_of_photos_and_no_threads_are_refused(
    debug_file: Path, shapes: Path, tmp_path: Path
) -> None:
    train = Labelled.open([shapes / "train"])
    test = Labelled.open([shapes / "test"], train.classes)
    task = Task(load_encoder(debug_file), train, test, tmp_path / "out", CPU)
    with pytest.raises(RecipeError, match="k is 0; it must be a whole number, at least 1"):
        knn.answer(task, k=0)
    with pytest.raises(RecipeError, match="workers is -1; it must be a whole number, at least 0"):
        replace(task, workers=-1)
    for given, size in ((task, 1), (replace(task, train=train.take(np.arange(1))), 256)):
        with pytest.raises(DataError, match=f"batch_size {size} with {len(given.train)} photos"):
            linear.answer(given, linear.Protocol(batch_size=size))
    assert not list((tmp_path / "out").glob("*"))


def test_more_neighbours_than_photos_are_refused_and_all_of_a_few_are_told_as_so_many(
    debug_file: Path, shapes: Path, tmp_path: Path
) -> None:
    train = Labelled.open([shapes / "train"])
    test = Labelled.open([shapes / "test"], train.classes)
    task = Task(load_encoder(debug_file), train.take(np.arange(8, 16)), test, tmp_path / "out", CPU)
    with pytest.raises(DataError, match="k is 500, but there are 8 training photos"):
        knn.answer(task, k=500)
    assert not (tmp_path / "out").exists()
    assert knn.answer(task)["k"] == 8
    assert "8-NN" in (tmp_path / "out" / "knn-debug-1.md").read_text()


def test_a_probe_whose_loss_is_not_finite_is_no_answer(
    debug_file: Path, shapes: Path, tmp_path: Path
) -> None:
    train = Labelled.open([shapes / "train"])
    task = Task(
        load_encoder(debug_file), train, Labelled.open([shapes / "test"], train.classes), tmp_path, CPU
    )
    fitted = linear.fit

    def diverged(*given: Any) -> linear.Fitted:
        found = fitted(*given)
        found.curve[-1]["loss"][1] = float("nan")
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "fit", diverged)
        with pytest.raises(DataError, match="The loss is nan after the last epoch"):
            linear.evaluate(task, linear.Protocol(epochs=1, lr=0.4))
    assert not list(tmp_path.glob("*.json"))


def test_judge_has_shares_of_its_own_and_no_seed(capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--seed", "1"], ["--label-share", "0.5"]):
        with pytest.raises(SystemExit, match="2"):
            main(["evaluate", "judge", "m", "--data", "d", "--test", "t", "--out", "o", *option])
        assert f"unrecognized arguments: {option[0]}" in capsys.readouterr().err


def test_the_help_of_scratch_names_every_size_and_its_default_is_the_shipped_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", "scratch", "--help"])
    said = capsys.readouterr().out
    assert all(size in said for size in SIZES)
    assert f"default {DEFAULT}" in " ".join(said.split())


def test_labels_come_from_folders_and_from_sidecars(shapes: Path, tmp_path: Path) -> None:
    folders = Labelled.open([shapes / "test"])
    assert folders.classes == ("blue", "red")
    assert folders.labels.tolist() == [0] * 4 + [1] * 4
    shard = tmp_path / "shard.tar"
    with tarfile.open(shard, "w") as tar:
        for key, facts in (
            ("0", {"label": 1, "class": "red"}),
            ("1", {}),
            ("2", {"label": 0, "class": "blue"}),
        ):
            for suffix, content in ((".png", encoded(photo())), (".json", json.dumps(facts).encode())):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    packed = Labelled.open([shard], folders.classes)
    assert packed.labels.tolist() == [1, 0]  # the photo without a label is left out
    assert len(packed.photos) == 2


def _shard(file: Path, *sidecars: tuple[str, Any]) -> Path:
    """A photo and its sidecar for each."""
    with tarfile.open(file, "w") as tar:
        for key, facts in sidecars:
            for suffix, content in ((".png", encoded(photo())), (".json", json.dumps(facts).encode())):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file


@pytest.mark.parametrize("question", ["knn", "linear", "finetune", "scratch", "reconstruct"])
def test_what_a_question_leaves_out_is_told_beside_its_answer(
    question: str, debug_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("IMG_1.HEIC", "notes"):
        (shapes / "train" / "red" / name).write_bytes(b"x")
    (shapes / "train" / "stray.png").write_bytes(encoded(photo()))
    shard = _shard(tmp_path / "test.tar", ("0", {"label": 0, "class": "red"}), ("1", {}), ("2", {}))
    asked = ["evaluate", question, "--data", str(shapes / "train"), "--device", "cpu", "--json"]
    if question == "scratch":
        asked += ["--size", "debug"]
    else:
        asked.append(str(debug_file))
    if question in ("finetune", "scratch", "linear"):
        asked += ["--epochs", "1"]
    if question != "reconstruct":
        asked += ["--test", str(shard), "--out", str(tmp_path / "out")]
    assert main(asked) == 0
    said = capsys.readouterr()
    json.loads(said.out)
    if question == "reconstruct":
        assert "25 photos of 1 source; left out: 1 .heic, 1 without a suffix.\n" in said.err
        return
    left_out = "1 .heic, 1 without a label, 1 without a suffix"
    assert f"training: 24 photos of 1 source; left out: {left_out}.\n" in said.err
    assert "test: 1 photo of 1 source; left out: 2 without a label.\n" in said.err


@pytest.mark.parametrize("label", ["cat", None, 1.5, True, [1]])
def test_a_label_that_is_no_whole_number_is_refused_with_its_sidecar(label: Any, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"The label in a/1\.json of .*shard\.tar is .*; it must be a whole number"
    ):
        Labelled.open([_shard(tmp_path / "shard.tar", ("0", {"label": 0}), ("a/1", {"label": label}))])


def test_hidden_sidecars_and_those_that_hold_no_names_are_passed_over(tmp_path: Path) -> None:
    told = (("0", {"label": 4}), ("._0", {"label": "x"}), ("1", [1]), ("2", 7), ("3", {"label": 5}))
    found = Labelled.open([_shard(tmp_path / "shard.tar", *told)])
    assert (found.classes, found.labels.tolist()) == (("4", "5"), [0, 1])


def test_a_label_with_two_names_is_refused(tmp_path: Path) -> None:
    one = _shard(tmp_path / "one.tar", ("0", {"label": 0, "class": "cat"}))
    two = _shard(tmp_path / "two.tar", ("0", {"label": 0}))
    with pytest.raises(
        DataError, match=r"Label 0 is class 'cat' in 0\.json of .*one\.tar and '0' in 0\.json of "
    ):
        Labelled.open([one, two])


@pytest.mark.parametrize("of", ["folder", "sidecar"])
def test_a_class_whose_name_is_no_utf8_is_refused_by_name(of: str, tmp_path: Path) -> None:
    if of == "folder":
        place = tmp_path / "photos"
        folder = place / os.fsdecode(b"caf\xe9")
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(encoded(photo()))
    else:
        place = _shard(tmp_path / "shard.tar", ("0", {"label": 0, "class": "caf\udce9"}))
    with pytest.raises(DataError, match=r"The name of class 'caf\\udce9' is not UTF-8"):
        Labelled.open([place])


def test_a_seed_is_checked_before_it_draws_a_share(
    debug_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*evaluating("knn", debug_file, shapes, tmp_path), "--label-share", "0.5"]
    for seed in ("-1", "99999999999999999999"):
        assert main([*arguments, f"--seed={seed}"]) == 2
        assert f"seed is {seed}; it must be a whole number" in capsys.readouterr().err


def test_a_share_of_the_labels_is_taken_of_every_class_and_grows_with_the_share(shapes: Path) -> None:
    photos = Labelled.open([shapes / "train"])
    tenth, half = photos.share(0.1), photos.share(0.5)
    assert np.bincount(tenth.labels).tolist() == [2, 2]
    assert np.bincount(half.labels).tolist() == [6, 6]
    assert set(tenth.photos.entries) <= set(half.photos.entries)
    with pytest.raises(DataError, match="label_share is 2"):
        photos.share(2)


def test_photos_without_labels_and_unknown_classes_are_refused(shapes: Path) -> None:
    with pytest.raises(DataError, match="No photo under"):
        Labelled.open([shapes / "test" / "red"])
    with pytest.raises(DataError, match="'blue'"):
        Labelled.open([shapes / "test"], ("red", "green"))


def test_photos_that_were_learned_from_do_not_judge(
    debug_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = str(shapes / "train")
    arguments = [
        "--data",
        train,
        "--test",
        str(shapes / "test"),
        train,
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    assert main(["evaluate", "knn", str(debug_file), *arguments]) == 2
    assert "24 of 32 test photos are also training photos" in capsys.readouterr().err


def test_an_encoder_is_found_by_its_name_in_the_registry() -> None:
    encoder = load_encoder(Path("mini"))
    assert encoder.name == "mini"
    assert encoder.digest == load_encoder(Path("weights/mini.safetensors")).digest


def test_neighbours_vote_with_their_closeness() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    labels = torch.tensor([0, 1, 1])
    named = knn.classify(train, labels, torch.tensor([[1.0, 0.1], [0.1, 0.9]]), 2, k=3)
    assert named.tolist() == [0, 1]


def test_votes_of_many_neighbours_add_up_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    train, test = (torch.randn(number, 8, generator=draw) for number in (50, 20))
    labels = torch.randint(5, (50,), generator=draw)
    whole = knn.classify(train, labels, test, 5, k=7)
    unit, other = (torch.nn.functional.normalize(of, dim=1) for of in (train, test))
    for place, of in enumerate(other):
        cosine, nearest = (unit @ of).topk(7)
        votes = [
            float((cosine[labels[nearest] == label] / knn.TEMPERATURE).exp().sum()) for label in range(5)
        ]
        assert int(whole[place]) == int(np.argmax(votes))
    monkeypatch.setattr(knn, "_COSINES", 150)
    assert torch.equal(knn.classify(train, labels, test, 5, k=7), whole)


def test_a_class_without_photos_to_judge_by_has_no_share() -> None:
    found = Accuracy.of(np.array([0, 1]), np.array([0, 0]), ("a", "b"))
    assert found.to_dict()["classes"] == {"a": 50.0, "b": None}


def test_an_accuracy_carries_its_uncertainty() -> None:
    truth = np.repeat([0, 1], 50)
    answers = truth.copy()
    answers[:10] = 1
    found = Accuracy.of(answers, truth, ("a", "b"))
    assert found.percent == 90
    low, high = found.interval
    assert (round(low, 1), round(high, 1)) == (82.6, 94.5)  # Wilson, by hand
    assert found.counts.tolist() == [[40, 10], [0, 50]]


@pytest.mark.parametrize("question", ["knn", "linear"])
def test_a_question_is_answered_by_one_command_with_a_report(
    question: str, debug_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = [*evaluating(question, debug_file, shapes, out), "--json"]
    assert main(asked) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads((out / f"{question}-debug-1.json").read_text())
    assert facts["cls"]["percent"] == 100  # even random weights tell red from blue
    assert (facts["train_photos"], facts["test_photos"]) == (24, 8)
    html = (out / f"{question}-debug-1.html").read_text()
    assert "<svg" in html
    assert "right %" in (out / f"{question}-debug-1.md").read_text()
    made = {file: file.stat().st_mtime_ns for file in out.rglob("*.*")}
    assert main(asked) == 0
    assert facts == json.loads(capsys.readouterr().out), "kept, not made again"
    assert main([*asked, *(["--k", "5"] if question == "knn" else ["--lr", "0.4"])]) == 2
    assert "is about other weights, photos or settings" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.*")} == made


@pytest.mark.parametrize("question", ["knn", "finetune", "reconstruct"])
def test_an_answer_that_could_not_be_written_is_refused_before_anything_is_computed(
    question: str, debug_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    asked = evaluating(question, debug_file, shapes, tmp_path / "taken" / "out")
    assert main(asked if question != "reconstruct" else [*asked[:5], *asked[-4:]]) == 2
    said = capsys.readouterr().err
    assert "out cannot be made or written to (Not a directory). Give a folder that may be" in said
    assert "%|" not in said, "no bar was begun"


def test_photos_of_one_class_tell_nothing_apart(shapes: Path) -> None:
    with pytest.raises(DataError, match=r"All 32 photos with a label are of one class, 'photos': there is"):
        Labelled.open([shapes.parent])


def test_probes_of_both_forms_and_several_seeds_lie_side_by_side(
    debug_file: Path, shapes: Path, tmp_path: Path
) -> None:
    train = Labelled.open([shapes / "train"])
    test = Labelled.open([shapes / "test"], train.classes)
    task = Task(load_encoder(debug_file), train, test, tmp_path / "out", CPU)
    for change in ({}, {"form": "augmented"}, {"seed": 1}):
        linear.answer(task, linear.Protocol(epochs=1, lr=0.4, **change))
    assert {file.name for file in (tmp_path / "out").glob("*.json")} == {
        "linear-debug-1.json", "linear-augmented-debug-1.json", "linear-debug-1-seed-1.json",
    }  # fmt: skip


def test_neighbours_in_shares_of_several_seeds_lie_side_by_side(
    debug_file: Path, shapes: Path, tmp_path: Path
) -> None:
    asked = [*evaluating("knn", debug_file, shapes, tmp_path / "out"), "--label-share", "0.5"]
    for seed in ("0", "3", "4"):
        assert main([*asked, "--seed", seed]) == 0
    assert {file.name for file in (tmp_path / "out").glob("*.json")} == {
        "knn-debug-0.5.json", "knn-debug-0.5-seed-3.json", "knn-debug-0.5-seed-4.json",
    }  # fmt: skip


def test_an_interrupted_probe_on_augmented_photos_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    def batches(epoch: int) -> Any:
        draw = torch.Generator().manual_seed(epoch)
        yield torch.randn(16, 2, 8, generator=draw), torch.randint(3, (16,), generator=draw)

    def broken(epoch: int) -> Any:
        if epoch == 3:
            raise KeyboardInterrupt
        yield from batches(epoch)

    protocol = linear.Protocol(epochs=6)
    keeper = state.Keeper(tmp_path / "probe.state", {"a": 1})
    whole = linear.fit(batches, 8, 3, [("cls", 1.0)], protocol, 1, CPU)
    with pytest.raises(KeyboardInterrupt):
        linear.fit(broken, 8, 3, [("cls", 1.0)], protocol, 1, CPU, keeper)
    resumed = linear.fit(batches, 8, 3, [("cls", 1.0)], protocol, 1, CPU, keeper)
    assert resumed.curve == whole.curve
    for ours, theirs in zip(resumed.probes.parameters(), whole.probes.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(CheckpointError, match="other weights, photos or settings"):
        state.Keeper(keeper.path, {"a": 2}).load()


def test_a_classifier_is_no_encoder_to_probe(debug_file: Path, tmp_path: Path) -> None:
    tensors = load_encoder(debug_file).weights()
    tensors = {key: value for key, value in tensors.items() if not key.startswith("norm.")}
    tensors |= {"head.weight": torch.zeros(3, 32), "head.bias": torch.zeros(3)}
    torch.save({"model": tensors}, tmp_path / "finetuned.pth")
    with pytest.raises(CheckpointError, match="classifier"):
        load_encoder(tmp_path / "finetuned.pth")


@pytest.mark.parametrize(
    "head",
    [
        {"head.weight": (9, 32), "head.bias": (9,)},  # timm's default, or fine-tuned on the class token
        {"head.0.running_mean": (32,), "head.0.running_var": (32,), "head.1.weight": (9, 32), "head.1.bias": (9,)},
    ],
    ids=["layer", "linear probe"],
)  # fmt: skip
def test_an_encoder_stored_with_its_layer_of_classes_is_one_and_a_warning_says_so(
    head: dict[str, tuple[int, ...]], debug_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = load_encoder(debug_file)
    file = tmp_path / "classes.pth"
    torch.save({"model": plain.weights() | {name: torch.zeros(shape) for name, shape in head.items()}}, file)
    found = load_encoder(file, Given(heads=2)).weights()
    assert all(torch.equal(found[name], value) for name, value in plain.weights().items())
    assert "A layer of classes is stored along" in caplog.text
    report = inspect(file, Given(heads=2))
    assert (report.content, report.usable_for, report.left_over) == ("encoder", ("evaluate", "convert"), ())
    assert any("A layer of classes is stored along" in note for note in report.notes)


def test_an_encoder_can_be_made_of_a_network_in_memory(debug_network: MAE) -> None:
    assert Encoder(debug_network)(torch.rand(1, 3, 64, 64)).shape == (1, 17, 32)


def test_a_batch_of_random_crops_goes_through_the_encoder_in_parts(
    debug_file: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Labelled.open([shapes / "train"])
    test = Labelled.open([shapes / "test"], train.classes)
    task = Task(load_encoder(debug_file), train, test, tmp_path / "out", CPU)
    (whole, labels), *_ = linear.augmented(task, 8, seed=0)(0)
    sizes: list[int] = []
    task.encoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    monkeypatch.setattr(linear, "_ENCODED", 3)
    (parts, same), *_ = linear.augmented(task, 8, seed=0)(0)
    assert sizes[:3] == [3, 3, 2]
    assert torch.equal(same, labels)
    torch.testing.assert_close(parts, whole)


@pytest.mark.slow
def test_a_probe_on_random_crops_learns_too(debug_file: Path, shapes: Path, tmp_path: Path) -> None:
    train = Labelled.open([shapes / "train"])
    test = Labelled.open([shapes / "test"], train.classes)
    task = Task(load_encoder(debug_file), train, test, tmp_path / "out", CPU)
    facts = linear.evaluate(task, linear.Protocol(form="augmented", epochs=40, lr=0.4, batch_size=24))
    assert facts["mean"]["percent"] == 100
    assert len(facts["curve"]) == 40
    assert not list((tmp_path / "out").glob("*.state"))  # the run is done


def test_shards_of_a_folder_have_the_labels_of_the_folder(tmp_path: Path) -> None:
    for name in ("zebra/a.png", "ant/b.png", "ant/deep/c.png", "loose.png"):
        (path := tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(32, 32)))
    packed = pack(tmp_path / "photos", tmp_path / "shards", per_shard=2)
    folder, shards = Labelled.open([tmp_path / "photos"]), Labelled.open(list(packed.shards))
    assert shards.classes == folder.classes == ("ant", "zebra")
    assert sorted(shards.labels) == sorted(folder.labels) == [0, 0, 1]
    assert len(packed.shards) == 2
