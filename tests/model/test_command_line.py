"""``python -m model``: what a user types and reads."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model import __version__
from model.__main__ import _parser, main
from model.options import Options
from model.reconstruct import load
from tests.pictures import encoded, photo


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(photo()))
    return path


def test_help_is_there_without_loading_torch(root: Path) -> None:
    code = (
        "import sys, model.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert "reconstruct" in done.stdout


def test_reconstruct_writes_the_same_sheet_as_the_library(
    picture: Path, debug_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheet.png"
    arguments = ["reconstruct", str(picture), "--weights", str(debug_file), "--device", "cpu", "--seed", "3"]
    assert main([*arguments, "--ratio", "0.5", "--out", str(out)]) == 0
    assert (
        out.read_bytes()
        == load(debug_file, "cpu")(picture.read_bytes(), Options(seed=3, ratio="0.5")).sheet()
    )
    assert "hid 8 of 16 patches (random, seed 3)" in capsys.readouterr().out


def test_reconstruct_prints_the_services_answer(
    picture: Path, debug_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["reconstruct", str(picture), "--weights", str(debug_file), "--device", "cpu"]
    assert (
        main([*arguments, "--strategy", "indices", "--indices", "0,5", "--panels", "pasted", "--json"]) == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer["hidden"] == [0, 5]
    assert set(answer["images"]) == {"pasted"}
    for flags in (["--full-size"], ["--out", "elsewhere.png"]):
        assert main([*arguments, "--json", *flags]) == 2
        assert f"Leave out {flags[0]}." in capsys.readouterr().err


def test_a_picture_made_like_another_is_the_same_to_the_byte(
    picture: Path, debug_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, other = (tmp_path / f"{name}.png" for name in ("first", "again", "other"))
    reconstruct = ["reconstruct", str(picture), "--weights", str(debug_file), "--device", "cpu"]
    flags = ["--fit", "whole", "--cover", "ensemble", "--samples", "2", "--panels", "pasted, uncertainty"]
    assert main([*reconstruct, *flags, "--out", str(first)]) == 0
    assert main([*reconstruct, "--like", str(first), "--out", str(again)]) == 0
    assert first.read_bytes() == again.read_bytes()
    changed = ["--like", str(first), "--cover", "single", "--panels", "pasted"]
    assert main([*reconstruct, *changed, "--out", str(other)]) == 0
    assert other.read_bytes() != first.read_bytes()
    assert main([*reconstruct, "--like", str(picture)]) == 2
    assert "carries no settings" in capsys.readouterr().err


def test_a_panel_at_full_size_has_the_photos_size(
    picture: Path, debug_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "full.png"
    arguments = ["reconstruct", str(picture), "--weights", str(debug_file), "--device", "cpu", "--full-size"]
    assert main([*arguments, "--cover", "complete", "--crop", "4,4,60", "--out", str(out)]) == 0
    assert np.asarray(Image.open(out)).shape == (80, 96, 3)
    assert "hid 4 of 16 patches at a time, 4 times" in capsys.readouterr().out
    assert main([*arguments, "--panels", "pasted,error"]) == 2
    assert "one panel" in capsys.readouterr().err
    sheet = tmp_path / "sheet.png"
    assert main([*arguments[:-1], "--seed", "3", "--out", str(sheet)]) == 0
    assert (
        main([*arguments, "--like", str(sheet), "--out", str(out)]) == 0
    )  # its three panels were not named here


def test_a_picture_may_go_to_the_standard_output(
    picture: Path, debug_file: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    arguments = ["reconstruct", str(picture), "--weights", str(debug_file), "--device", "cpu", "--seed", "3"]
    assert main([*arguments, "--out", "-", "--interpolation"]) == 0
    printed = capsysbinary.readouterr()
    assert printed.out == load(debug_file, "cpu")(picture.read_bytes(), Options(seed=3)).sheet()
    assert b"seed 3); colours there are off by" in printed.err
    assert b"linear interpolation: " in printed.err
    assert not Path("-").exists()


def test_a_folder_of_pictures_gives_what_each_gives_alone(
    folder: Path, debug_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made"
    flags = ["--weights", str(debug_file), "--device", "cpu", "--seed", "3"]
    assert main(["reconstruct", str(folder), *flags, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert [line.split(":")[0] for line in printed.out.splitlines()] == [
        *(str(out / f"{number:03d}.png") for number in range(0, 12, 2)),
        *(str(out / "deep" / f"{number:03d}.png") for number in range(1, 12, 2)),
    ]
    assert printed.out.count("seed 3") == 12
    assert "left out: 1 .txt" in printed.err
    alone = load(debug_file, "cpu")
    for picture in folder.rglob("*.jpg"):
        made = (out / picture.relative_to(folder)).with_suffix(".png").read_bytes()
        assert made == alone(picture.read_bytes(), Options(seed=3)).sheet()


def test_photos_of_a_folder_are_found_without_loading_torch(root: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from model.photos import find\n"
        "assert 'cat.jpg' in find([Path('model/samples')]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_a_seed_that_is_not_given_is_drawn_for_each_picture_and_told(
    folder: Path, debug_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reconstruct", str(folder), "--weights", str(debug_file), "--device", "cpu", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["photo"] for answer in answers][5:7] == ["010.jpg", "deep/001.jpg"]
    assert len({answer["result"]["seed"] for answer in answers}) == 12


def test_a_broken_picture_is_named_and_left_out_and_the_others_are_made(
    damaged_folder: Path, debug_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reconstruct = ["reconstruct", str(damaged_folder), str(tmp_path / "nowhere.jpg")]
    reconstruct += ["--weights", str(debug_file), "--device", "cpu"]
    assert main([*reconstruct, "--full-size", "--out", str(tmp_path / "made")]) == 2
    printed = capsys.readouterr()
    assert len(list((tmp_path / "made" / "photos").iterdir())) == len(printed.out.splitlines()) == 10
    assert (
        f"{damaged_folder / '003.jpg'} is left out: image is not a picture of a known format." in printed.err
    )
    assert f"{damaged_folder / '007.jpg'} is left out: image is empty." in printed.err
    assert f"{str(tmp_path / 'nowhere.jpg')!r} cannot be read (No such file or directory)" in printed.err
    assert "python -m model: 3 of 13 pictures could not be used" in printed.err

    assert main([*reconstruct, "--json"]) == 2
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    refused = {answer["photo"]: answer["problem"]["code"] for answer in answers if "problem" in answer}
    assert refused == {
        "photos/003.jpg": "image-format", "photos/007.jpg": "image-format", "nowhere.jpg": "image-missing",
    }  # fmt: skip


def test_pictures_of_one_name_keep_their_folders_and_those_of_one_stem_their_suffixes(
    debug_file: Path, tmp_path: Path
) -> None:
    for name in ("a/cat.jpg", "b/cat.jpg", "b/cat.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(photo(), name[-3:].upper().replace("JPG", "JPEG")))
    for names, made in (
        (["a/cat.jpg", "b/cat.jpg"], ["a/cat.png", "b/cat.png"]),
        (["b/cat.jpg", "b/cat.png", "b/../b/cat.jpg"], ["cat.jpg.png", "cat.png.png"]),
        (["a"], ["cat.png"]),
    ):
        out = tmp_path / f"made of {len(names)}"
        paths = [str(tmp_path / name) for name in names]
        flags = ["--weights", str(debug_file), "--device", "cpu", "--out", str(out)]
        assert main(["reconstruct", *paths, *flags]) == 0
        assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == made


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ([], "out is missing; the results of 12 pictures need a folder."),
        (["--out", "-"], "out is -; the results of 12 pictures need a folder."),
        (["--out", "new.png"], "out is new.png; the results of 12 pictures need a folder."),
        (
            ["--out", "photos/readme.txt"],
            "out is photos/readme.txt; the results of 12 pictures need a folder.",
        ),
        (["--out", "photos"], "out is photos, but photos is read."),
        (["--out", "photos/made"], "photos is read."),
    ],
)
def test_the_results_of_several_pictures_need_a_folder_of_their_own(
    folder: Path, debug_file: Path, out: list[str], words: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder.parent)
    before = sorted(folder.parent.rglob("*"))
    assert main(["reconstruct", "photos", "--weights", str(debug_file), "--device", "cpu", *out]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "--json" in said
    assert sorted(folder.parent.rglob("*")) == before


def test_no_result_of_several_pictures_takes_the_place_of_one(
    picture: Path, debug_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = picture.with_name("other.jpg")
    other.write_bytes(encoded(photo(seed=1), "JPEG"))
    before = picture.read_bytes()
    arguments = ["reconstruct", str(picture), str(other), "--out", str(picture.parent)]
    assert main([*arguments, "--weights", str(debug_file), "--device", "cpu"]) == 2
    assert f"but {picture} is read" in capsys.readouterr().err
    assert picture.read_bytes() == before


@pytest.mark.parametrize(
    "flags", [["--view", "oracle"], ["--ratio", "7"], ["--indices", "99", "--strategy", "indices"]]
)
def test_what_all_pictures_would_be_refused_for_is_said_once(
    folder: Path, debug_file: Path, tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made"
    arguments = ["reconstruct", str(folder), "--weights", str(debug_file), "--device", "cpu", *flags]
    assert main([*arguments, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("python -m model: ") == 1
    assert "left out: image" not in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("cls", (32,)), ("mean", (32,)), ("patch", (16, 32))],
)
def test_embed_writes_the_librarys_features(
    damaged_folder: Path, debug_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    kind: str, shape: tuple[int, ...],
) -> None:  # fmt: skip
    out = tmp_path / "features.npz"
    flags = ["--weights", str(debug_file), "--device", "cpu", "--kind", kind, "--out", str(out)]
    assert main(["embed", str(damaged_folder), *flags]) == 2  # two are broken
    assert "2 of 12 pictures could not be used" in capsys.readouterr().err
    model = load(debug_file, "cpu")
    with np.load(out) as made:
        assert set(made) == {"features", "names", "model", "model_digest", "kind"}
        assert made["features"].shape == (10, *shape)
        assert (str(made["model"]), str(made["model_digest"]), str(made["kind"])) == (
            "debug",
            model.digest,
            kind,
        )
        assert "003.jpg" not in made["names"]
        for name, features in zip(made["names"], made["features"], strict=True):
            np.testing.assert_array_equal(features, model.embed((damaged_folder / name).read_bytes(), kind))


def test_embed_says_what_it_cannot_do(
    picture: Path, debug_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for photos, flags, words in (
        (picture, ["--kind", "max"], "kind is 'max'; it must be one of cls, mean, patch"),
        (picture, ["--out", "features.csv"], "features.csv does not end in .npz"),
        (tmp_path / "empty", [], "No picture found under"),
        (
            debug_file,
            [],
            "1 of 1 pictures could not be used; they are named above. Replace or leave out these.\n",
        ),
    ):
        out = ["--weights", str(debug_file), "--device", "cpu", "--out", str(tmp_path / "f.npz")]
        assert main(["embed", str(photos), *out, *flags]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "f.npz").exists()


@pytest.mark.parametrize("name", ["photo", "folder", "new.jpg", "new.webp"])
def test_no_output_takes_the_place_of_an_input_or_has_a_wrong_name(
    name: str, picture: Path, debug_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    out = picture if name == "photo" else tmp_path / name
    before = picture.read_bytes()
    arguments = ["reconstruct", str(picture), "--weights", str(debug_file), "--device", "cpu"]
    assert main([*arguments, "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"python -m model: out: {out} ")
    assert picture.read_bytes() == before


def test_masks_that_differ_are_told_one_by_one(
    picture: Path, debug_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["reconstruct", str(picture), "--weights", str(debug_file), "--device", "cpu"]
    assert main([*arguments, "--strategy", "indices", "--indices", "1,2,3", "--cover", "complete"]) == 0
    assert "hid 3 and then 13 of 16 patches (indices)" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end otherwise there")
def test_whoever_reads_may_have_enough(debug_file: Path, root: Path) -> None:
    command = [sys.executable, "-m", "model", "inspect", str(debug_file)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--ratio", "7"], "ratio is 7"),
        (["--indices", "a"], "--indices"),
        (["--panels", "back"], "back"),
        (["--panels", "masked,"], "panels names ''"),
        (["--drawing", "nowhere.png"], "nowhere.png"),
    ],
)
def test_a_mistake_says_what_and_how_and_exits_with_2(
    picture: Path, debug_file: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], words: str
) -> None:
    assert main(["reconstruct", str(picture), "--weights", str(debug_file), "--device", "cpu", *wrong]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:999"])
def test_a_device_that_is_not_here_is_named_by_every_verb(
    picture: Path, debug_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    array = tmp_path / "array.npy"
    np.save(array, np.zeros((64, 64, 3), dtype=np.uint8))
    out = tmp_path / "run"
    for verb in (
        ["reconstruct", str(picture), "--weights", str(debug_file)],
        ["reconstruct", str(array), "--weights", str(debug_file)],
        ["pretrain", "small", "--size", "debug", "--data", str(tmp_path), "--out", str(out)],
    ):
        assert main([*verb, "--device", device]) == 2
        assert f"Device {device!r} cannot be used: " in capsys.readouterr().err
    assert not out.exists()


_TWO = ["--data", "d", "--test", "t", "--out", "o"]


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        (["pretrain", "small", "--out", "o"], ["data"]),
        (["evaluate", "reconstruct", "m"], ["data"]),
        *((["evaluate", question, "m", *_TWO], ["data", "test"]) for question in ("knn", "linear", "judge")),
        (["evaluate", "finetune", "m", *_TWO], ["data", "test"]),
        (["evaluate", "partial", "m", "--blocks", "1", *_TWO], ["data", "test"]),
        (["evaluate", "scratch", *_TWO], ["data", "test"]),
        (["ablate", "1a", "--budget", "1", *_TWO], ["data", "test", "labelled", "photos"]),
    ],
    ids=lambda of: " ".join(of[:2]),
)
def test_an_option_of_several_paths_may_be_given_several_times(verb: list[str], options: list[str]) -> None:
    repeated = [part for option in options for part in (f"--{option}", "a", "b", f"--{option}", "c")]
    given = _parser().parse_args([*verb, *repeated])
    for option in options:
        assert [str(path) for path in getattr(given, option)][-3:] == ["a", "b", "c"], option


def test_evaluate_prints_the_model_beside_classical_fills(
    picture: Path, debug_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    picture.write_bytes(encoded(np.broadcast_to(ramp[:, None, None], (64, 64, 3)).copy()))
    arguments = ["evaluate", "reconstruct", str(debug_file), "--data", str(picture.parent), "--device", "cpu"]
    assert main([*arguments, "--ratio", "0.5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["photos"] == 1
    (setting,) = report["settings"]
    scores = {name: row["nmse"]["mean"] for name, row in setting["scores"].items()}
    assert set(scores) == {"model", "plain_fill", "interpolation", "telea", "navier_stokes", "true_means"}
    # Random weights know nothing; a ramp is easy to interpolate.
    assert scores["interpolation"] < scores["model"]
    assert main(arguments) == 0
    assert "telea" in capsys.readouterr().out


def test_who_stops_a_verb_sees_a_line_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    parser = argparse.ArgumentParser(prog="p")
    parser.set_defaults(verb=interrupted)
    monkeypatch.setattr("model.__main__._parser", lambda: parser)
    assert main([]) == 130
    assert capsys.readouterr() == ("", "p: stopped.\n")


@pytest.mark.parametrize(
    "verb",
    [
        "reconstruct {}.jpg",
        "reconstruct {sample} --out {}.png",
        "convert mini {} --to unmask",
        "inspect mini --photos {}",
        "evaluate knn mini --data {} --test {sample} --out runs",
    ],
)
def test_a_path_that_no_file_can_have_is_told_in_a_line(
    verb: str, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(verb.format("x" * 300, sample=picture).split()) == 2
    assert "x" * 100 in capsys.readouterr().err


def test_an_unknown_option_is_refused_with_the_usage_of_its_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "mini", "--data", "photos", "--out", "run", "--stepz", "3"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: python -m model pretrain ")
    assert said.endswith("error: unrecognized arguments: --stepz 3\n")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"{__version__}\n"
