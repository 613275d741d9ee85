"""Classifiers made of an encoder: what learns, at which rate, and that an interrupted run ends like an unbroken one."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from model.__main__ import main
from model.checkpoints import store
from model.checkpoints.report import inspect
from model.config import IMAGE_MEAN, IMAGE_STD, SIZES
from model.errors import CheckpointError, DataError
from model.evaluate import classifier, finetune, judge, state, transfer
from model.evaluate.augment import Augmented, Samples, batches, seeded
from model.evaluate.features import load_encoder
from model.evaluate.labelled import Labelled
from model.evaluate.task import Task
from model.network import MAE
from tests.pictures import encoded, evaluating, photo, two_classes


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """Photos of two classes that differ in colour, 8 for training and 4 for testing."""
    return two_classes(tmp_path / "photos", train=4, test=2)


def _task(file: Path, shapes: Path, out: Path) -> Task:
    train = Labelled.open([shapes / "train"])
    test = Labelled.open([shapes / "test"], train.classes)
    return Task(load_encoder(file), train, test, out, torch.device("cpu"), workers=0)


def test_a_classifier_begins_with_all_of_the_encoder_but_its_last_norm(debug_file: Path) -> None:
    encoder = load_encoder(debug_file)
    vit = classifier.build(encoder, 3, drop_path=0.0, seed=0)
    made = vit.state_dict()
    for name, value in encoder.weights().items():
        if not name.startswith("norm."):
            assert torch.equal(made[name], value), name
    assert float(made["head.weight"].abs().max()) < 1e-4
    assert vit(torch.rand(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ("blocks", "learning"),
    [
        (0, set()),
        (0.5, {"blocks.1.norm2", "blocks.1.mlp"}),
        (1, {"blocks.1"}),
        (1.5, {"blocks.1", "blocks.0.norm2", "blocks.0.mlp"}),
        (2, {"blocks.0", "blocks.1"}),
    ],
)
def test_partial_fine_tuning_leaves_the_last_blocks_to_learn_and_a_half_is_the_mlp(
    debug_file: Path, blocks: float, learning: set[str]
) -> None:
    vit = classifier.build(load_encoder(debug_file), 3, drop_path=0.0, seed=0)
    classifier.freeze(vit, blocks)
    found = {name for name, parameter in vit.named_parameters() if parameter.requires_grad}
    parts = tuple(f"{part}." for part in (*learning, "fc_norm", "head"))
    assert found == {name for name, _ in vit.named_parameters() if name.startswith(parts)}


def test_an_encoder_of_other_colours_sees_the_same_as_a_classifier(tmp_path: Path) -> None:
    config = replace(SIZES["debug"], pixel_mean=(0.1, 0.5, 0.7), pixel_std=(0.3, 0.2, 0.5))
    encoder = classifier.scratch(config, 0, "other")
    vit = classifier.build(encoder, 3, drop_path=0.0, seed=0)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (IMAGE_MEAN, IMAGE_STD))
    projected = encoder.network.patch_embed(encoder.network.patchify(encoder.network.normalise(image)))
    torch.testing.assert_close(vit.patch_embed((image - mean) / std), projected)


def test_more_blocks_than_there_are_is_refused(debug_file: Path) -> None:
    vit = classifier.build(load_encoder(debug_file), 3, drop_path=0.0, seed=0)
    for blocks in (3, 0.3, -1):
        with pytest.raises(DataError, match=r"0, 0\.5, 1, \.\.\. up to 2"):
            classifier.freeze(vit, blocks)


def test_rates_fall_from_layer_to_layer_and_vectors_are_not_decayed(
    debug_file: Path, shapes: Path, tmp_path: Path
) -> None:
    settings = finetune.load_settings("finetune", {"layer_decay": 0.5})
    run = finetune._Run(_task(debug_file, shapes, tmp_path), settings)
    of = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in run.optimiser.param_groups
        for parameter in group["params"]
    }
    named = {name: of[id(parameter)] for name, parameter in run.vit.named_parameters()}
    assert named["head.weight"] == (1.0, 0.05)
    assert named["fc_norm.weight"] == (1.0, 0.0)
    assert named["blocks.1.attn.qkv.weight"] == (0.5, 0.05)
    assert named["blocks.0.mlp.fc1.bias"] == (0.25, 0.0)
    assert named["pos_embed"] == named["cls_token"] == (0.125, 0.0)
    assert named["patch_embed.proj.weight"] == (0.125, 0.05)


def test_an_augmented_photo_depends_on_its_key_alone(shapes: Path) -> None:
    data = Augmented(Labelled.open([shapes / "train"]), 64, "rand-m9-mstd0.5-inc1", 0.25)
    first, label = data[(0, 5)]
    np.random.default_rng()
    before = torch.random.get_rng_state()
    again, _ = data[(0, 5)]
    assert torch.equal(first, again)
    assert label == 0
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's generator is as it was
    assert not torch.equal(first, data[(0, 6)][0])


def test_another_seed_draws_other_mixtures_and_another_step_too(
    debug_file: Path, shapes: Path, tmp_path: Path
) -> None:
    images, labels = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])

    def mixed(seed: int, step: int) -> float:
        run = finetune._Run(_task(debug_file, shapes, tmp_path), finetune.load_settings("finetune", {}))
        run.settings = replace(run.settings, seed=seed)  # of the draws alone: the weights are one model's
        mixture = images.clone()  # mixed in place
        run.backward(mixture, labels, step)
        return float(mixture[0].square().sum())

    mixtures = [mixed(0, 0), mixed(1, 0), mixed(0, 1), mixed(2**31, 0)]
    assert mixed(0, 0) == mixtures[0]
    assert len(set(mixtures)) == 4

    def draws(seed: int, step: int) -> tuple[float, float, float]:
        with seeded(seed, step):
            return random.random(), float(np.random.rand()), float(torch.rand(()))

    first, other = draws(0, 3), draws(1, 3)
    assert all(a != b for a, b in zip(first, other, strict=True)), "Python's, numpy's and torch's"


def test_the_average_of_the_weights_reaches_its_decay_within_the_papers_schedule(debug_file: Path) -> None:
    vit = classifier.build(load_encoder(debug_file), 3, drop_path=0.0, seed=0)
    average = finetune.averaged(vit, 0.9999)
    assert average.get_decay(10) < 0.6, "the random start is soon forgotten"
    assert average.get_decay(300 * 1_281_167 // 4096) == 0.9999


def test_wider_encoders_have_the_papers_settings_for_them_and_what_is_given_wins() -> None:
    base, large, huge = (finetune.load_settings("finetune", {}, width) for width in (768, 1024, 1280))
    assert [(of.epochs, of.layer_decay, of.drop_path) for of in (base, large, huge)] == [
        (100, 0.65, 0.1), (50, 0.75, 0.2), (50, 0.75, 0.3),
    ]  # fmt: skip
    assert [of.warmup_share * of.epochs for of in (base, large, huge)] == [5, 5, 5]
    assert finetune.load_settings("finetune", {"epochs": 3}, 1024).epochs == 3
    scratch = finetune.load_settings("scratch", {}, 1024)
    assert (scratch.epochs, scratch.drop_path, scratch.weight_decay) == (200, 0.2, 0.3)


def test_judge_takes_the_last_step_of_what_was_pre_trained_and_of_what_was_not(
    debug_file: Path, shapes: Path, tmp_path: Path
) -> None:
    task = _task(debug_file, shapes, tmp_path)
    for kind in ("finetune", "partial", "scratch"):
        assert judge._settings(kind, judge.Questions(), {}, task).ema is None


def test_judge_fine_tunes_a_wide_encoder_by_the_papers_settings_for_it(
    debug_file: Path, shapes: Path, tmp_path: Path
) -> None:
    task = _task(debug_file, shapes, tmp_path)
    assert judge._settings("finetune", judge.Questions(), {}, task).layer_decay == 0.65
    task.encoder.config = replace(task.encoder.config, width=1024)
    assert judge._settings("finetune", judge.Questions(), {}, task).layer_decay == 0.75


def test_a_report_that_cannot_be_written_costs_no_training(
    debug_file: Path, shapes: Path, tmp_path: Path
) -> None:
    task = _task(debug_file, shapes, tmp_path / "out")
    settings = finetune.load_settings("finetune", {**finetune.SHORT, "epochs": 1})
    whole = finetune.answer(_task(debug_file, shapes, tmp_path / "whole"), settings)
    stem = next((tmp_path / "whole").glob("*.json")).stem
    blocked = tmp_path / "out" / f"{stem}.html"
    blocked.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="cannot be written"):
        finetune.answer(task, settings)
    assert list((tmp_path / "out").glob("*.state")), "the training is kept"
    assert not (tmp_path / "out" / f"{stem}.json").exists(), "and not taken for answered"
    blocked.rmdir()
    assert finetune.answer(task, settings)["answer"] == whole["answer"]
    assert blocked.is_file()
    (tmp_path / "out" / f"{stem}.json").write_text('{"a": ')
    with pytest.raises(DataError, match="or damaged"):
        finetune.answer(task, settings)


def test_every_photo_comes_once_an_epoch() -> None:
    samples = Samples(6, 4, seed=1)
    numbers = [number for step in range(3) for number, _ in samples(step)]
    assert sorted(numbers[:6]) == sorted(numbers[6:]) == list(range(6))
    with seeded(3):
        assert samples(1) == Samples(6, 4, seed=1)(1)


def test_fresh_weights_and_draws_on_a_cpu_leave_the_generators_of_gpus_alone(
    debug_file: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded_too: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded_too.append)
    encoder = load_encoder(debug_file)
    classifier.build(encoder, 3, drop_path=0.0, seed=0)
    transfer.build(encoder, 2, transfer.Settings(task="segment", width=8))
    Augmented(Labelled.open([shapes / "train"]), 64, None, 0.25)[(0, 5)]
    assert seeded_too == []


def test_fresh_weights_are_a_function_of_the_seed(debug_file: Path) -> None:
    heads = [
        classifier.build(load_encoder(debug_file), 3, drop_path=0.0, seed=seed).head for seed in (0, 0, 1)
    ]
    first, again, other = (head.weight for head in heads if isinstance(head, torch.nn.Linear))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_kept_answer_is_not_taken_for_one_of_other_settings(
    debug_file: Path, shapes: Path, tmp_path: Path
) -> None:
    task = _task(debug_file, shapes, tmp_path / "out")
    given = {"epochs": 1, "batch_size": 8, "base_lr": 0.05}
    first = finetune.answer(task, finetune.load_settings("finetune", given))
    again = finetune.answer(task, finetune.load_settings("finetune", given))
    assert again["minutes_of_last_call"] == first["minutes_of_last_call"]
    assert again["asked"] == first["asked"]
    for change in ({"base_lr": 0.1}, {"epochs": 2}):
        with pytest.raises(DataError, match="other weights, photos or settings"):
            finetune.answer(task, finetune.load_settings("finetune", given | change))


def test_a_classifier_holds_its_classes_whatever_their_names(debug_file: Path, tmp_path: Path) -> None:
    shapes = two_classes(tmp_path / "photos", train=2, test=1)
    for part in ("train", "test"):
        (shapes / part / "blue").rename(shapes / part / "two\nlines")
    settings = finetune.load_settings("finetune", {"epochs": 1, "batch_size": 4})
    finetune.evaluate(_task(debug_file, shapes, tmp_path / "out"), settings)
    with safe_open(tmp_path / "out" / "finetune-debug-1.safetensors", "pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["red", "two\nlines"]


def test_a_classifier_names_photos_as_it_was_judged_and_what_is_none_is_refused(
    debug_network: MAE, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = MAE(replace(debug_network.config, pixel_mean=(0.4,) * 3, pixel_std=(0.3,) * 3))
    store.write(file := tmp_path / "grey.safetensors", network, name="grey", card={})
    asked = [*evaluating("finetune", file, shapes, tmp_path / "out"), "--batch-size", "8"]
    assert main([*asked, "--epochs", "12", "--base-lr", "0.3", "--json"]) == 0
    left = tmp_path / "out/finetune-grey-1.safetensors"
    test = _task(file, shapes, tmp_path / "out").test
    judged = json.loads(capsys.readouterr().out)["answer"]["percent"]
    assert main(["classify", str(left), str(shapes / "test"), "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["photo"] for line in told] == [entry.name for entry in test.photos.entries]
    assert {line["model"] for line in told} == {"finetune-grey-1"}
    named = [next(iter(line["probabilities"])) for line in told]
    right = [name == test.classes[label] for name, label in zip(named, test.labels, strict=True)]
    assert 100 * sum(right) / len(right) == judged
    assert len(set(named)) == 2, "else any classifier would do"
    assert all(sum(line["probabilities"].values()) == pytest.approx(1) for line in told)
    assert inspect(left).usable_for == ("classify",)

    (broken := tmp_path / "broken.jpg").write_bytes(b"no picture")
    one = test.photos.entries[0].path
    assert main(["classify", str(left), str(one), str(broken)]) == 2
    out, err = capsys.readouterr()
    shares = told[0]["probabilities"]
    assert out.splitlines()[0].endswith(
        f"{one.name}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
    )
    assert "broken.jpg is left out" in err
    assert "1 of 2 pictures could not be used" in err
    assert main(["classify", str(file), str(one)]) == 2
    assert "is not a classifier that `evaluate finetune` of this version left" in capsys.readouterr().err


def test_a_fine_tuning_overwrites_no_file_that_its_models_name_leads_to(
    debug_network: MAE, shapes: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "others" / "weights-1.safetensors"
    victim.parent.mkdir()
    victim.write_bytes(b"theirs")
    file, out = tmp_path / "m.safetensors", tmp_path / "out"
    store.write(file, debug_network, name=f"/../../{victim.parent.name}/weights", card={})
    (out / "finetune-").mkdir(parents=True)
    settings = finetune.load_settings("finetune", {"epochs": 1, "batch_size": 4})
    facts = finetune.evaluate(_task(file, shapes, out), settings)
    assert victim.read_bytes() == b"theirs"
    assert (out / "finetune--..-..-others-weights-1.safetensors").is_file()
    assert facts["model"] == "/../../others/weights"


def test_the_command_line_neither_repeats_nor_overwrites_what_is_done_and_seeds_lie_side_by_side(
    debug_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = [*evaluating("finetune", debug_file, shapes, out), "--batch-size", "8"]
    assert main([*asked, "--epochs", "1"]) == 0
    made = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert main([*asked, "--epochs", "1"]) == 0
    capsys.readouterr()
    assert main([*asked, "--epochs", "2"]) == 2
    assert "finetune-debug-1.json is about other weights, photos or settings" in capsys.readouterr().err
    assert main([*asked, "--epochs", "1", "--seed", "1"]) == 0
    assert (out / "finetune-debug-1-seed-1.safetensors").is_file()
    assert {file: file.stat().st_mtime_ns for file in made} == made


def test_a_broken_test_photo_is_found_before_the_first_step_and_without_it_the_same_command_trains(
    debug_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shapes / "test" / "red" / "broken.jpg"
    broken.write_bytes(encoded(photo(), "JPEG")[:1000])
    out = tmp_path / "out"
    asked = [*evaluating("finetune", debug_file, shapes, out), "--batch-size", "8", "--epochs", "1"]
    assert main(asked) == 2
    said = capsys.readouterr().err
    why = "cannot be decoded: Image is incomplete or truncated. Remove or replace this picture."
    assert f"{broken} {why}" in said
    assert "step" not in said
    broken.unlink()
    assert main(asked) == 0


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_a_broken_training_photo_is_named_whichever_process_meets_it(
    workers: str, debug_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shapes / "train" / "red" / "broken.jpg"
    broken.write_bytes(encoded(photo(), "JPEG")[:1000])
    asked = [*evaluating("finetune", debug_file, shapes, tmp_path / "out"), "--batch-size", "8"]
    assert main([*asked, "--workers", workers]) == 2
    said = capsys.readouterr().err
    assert f"{broken} cannot be decoded: Image is incomplete or truncated. Remove or replace this" in said


@pytest.mark.parametrize("question", ["finetune", "linear"])
def test_a_run_of_one_step_is_one_step_without_a_warning(
    question: str, debug_file: Path, shapes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main([*evaluating(question, debug_file, shapes, tmp_path / "out"), "--epochs", "1"]) == 0
    assert not caplog.records


def test_a_report_says_whether_photos_were_mixed(debug_file: Path, shapes: Path, tmp_path: Path) -> None:
    for out, short in (("short", finetune.SHORT), ("paper", {})):
        settings = finetune.load_settings("finetune", {**short, "epochs": 1})
        finetune.answer(_task(debug_file, shapes, tmp_path / out), settings)
        said = next((tmp_path / out).glob("*.md")).read_text()
        assert ("mixed photos" in said) == (out == "paper")


def test_a_fine_tuning_that_comes_apart_names_its_own_rate(
    debug_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*evaluating("finetune", debug_file, shapes, tmp_path / "out"), "--epochs", "4"]
    assert main([*asked, "--base-lr", "1e9"]) == 2
    assert "Lower --base-lr." in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["finetune", "scratch"])
def test_an_interrupted_run_ends_as_an_unbroken_one(
    kind: str, debug_file: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = finetune.load_settings(kind, {"epochs": 3, "batch_size": 4, "base_lr": 0.05})
    monkeypatch.setattr(finetune, "_POINTS", 2)  # at steps 3 and 6
    whole = finetune.evaluate(_task(debug_file, shapes, tmp_path / "whole"), settings)
    broken = _task(debug_file, shapes, tmp_path / "broken")
    save = state.Keeper.save

    def saved_and_killed(keeper: state.Keeper, content: dict[str, object]) -> None:
        save(keeper, content)
        if content["step"] == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(state.Keeper, "save", saved_and_killed)
        with pytest.raises(KeyboardInterrupt):
            finetune.evaluate(broken, settings, save_every_s=0)
    resumed = finetune.evaluate(broken, settings)
    assert [point["step"] for point in resumed["curve"]] == [3, 6]
    assert resumed["curve"] == whole["curve"]
    name = f"{kind}-debug-1.safetensors"
    ours, theirs = (load_file(tmp_path / run / name) for run in ("broken", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.slow
def test_a_short_fine_tuning_learns_two_colours(
    debug_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(shapes / "train"), "--test", str(shapes / "test"), "--device", "cpu", "--json"]
    arguments += ["--out", str(tmp_path / "out"), "--epochs", "12", "--batch-size", "8", "--base-lr", "0.1"]
    for kind in (["finetune", str(debug_file)], ["partial", str(debug_file), "--blocks", "0.5"]):
        assert main(["evaluate", *kind, *arguments]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["answer"]["percent"] == 100, kind
    assert (tmp_path / "out" / "partial-0.5-debug-1.md").is_file()


def test_minutes_become_steps(debug_file: Path, shapes: Path, tmp_path: Path) -> None:
    settings = finetune.load_settings("finetune", {"minutes": 0.0005, "batch_size": 4})
    facts = finetune.evaluate(_task(debug_file, shapes, tmp_path), settings)
    assert 1 <= facts["steps"] <= 30
    assert SIZES["debug"].depth == 2


@pytest.mark.slow
def test_processes_that_augment_give_the_same_photos(shapes: Path) -> None:
    data = Augmented(Labelled.open([shapes / "train"]), 64, "rand-m9-mstd0.5-inc1", 0.25)
    alone, other = (list(batches(data, Samples(8, 4, 0), 0, 2, workers)) for workers in (0, 1))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(alone, other, strict=True))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"blocks": (0.5, 4.0)}, r"blocks is 4; it must be 0, 0\.5, 1, \.\.\. up to 2"),
        ({"shares": (1.0, 2.0)}, "label_share is 2"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused_before_anything_is_computed(
    wrong: dict[str, Any], says: str, debug_file: Path, shapes: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=says):
        judge.evaluate(_task(debug_file, shapes, tmp_path / "out"), judge.Questions(**wrong))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_is_judged_by_one_command_and_what_is_done_is_not_done_again(
    debug_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = [*evaluating("judge", debug_file, shapes, out), "--shares", "0.5,1", "--minutes", "0.001"]
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    asked = [row["question"] for row in facts["rows"] if row["label_share"] == 1]
    assert asked == [
        "knn", "knn, mean of patches", "linear", "linear, mean of patches", "finetune", "partial 0.5", "partial 1",
        "scratch",
    ]  # fmt: skip
    seen = {row["samples"] for row in facts["rows"] if "samples" in row}
    assert max(seen) - min(seen) <= 8  # equal but for whole batches
    assert set(facts["margins"]) == {"0.5", "1"}
    before = {path: path.stat().st_mtime_ns for path in out.glob("finetune-*.json")}
    assert main(arguments) == 0
    assert "scratch" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.glob("finetune-*.json")} == before
    for change in (["--minutes", "0.002"], ["--base-lr", "0.1"]):
        assert main([*arguments, *change]) == 2
        assert "other weights, photos or settings" in capsys.readouterr().err
