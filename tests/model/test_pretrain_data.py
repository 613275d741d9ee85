"""Photos on their way to the network: patterns, broken files, packing, and two paths with one sequence of samples."""

from __future__ import annotations

import io
import json
import re
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

from model import samples
from model.__main__ import main
from model.errors import DataError, RecipeError
from model.pretrain import feed, host, resident
from model.pretrain.augment import Box, Boxes, crop_boxes
from model.pretrain.data import Photos, expand, in_order
from model.pretrain.launch import pretrain
from model.pretrain.loop import run
from model.pretrain.samples import Sample, Sampler, first_whole, refuse_too_many_broken, stand_ins
from model.pretrain.shards import pack
from model.pretrain.world import World
from tests.pictures import encoded, photo
from tests.training import BROKEN, PHOTOS, toy

CPU = torch.device("cpu")
_recipe = partial(toy, steps=4, batch_size=8, log_every=2, optimiser="adamw")


# --- patterns ---------------------------------------------------------------------------------------------


def test_braces_count_and_list_and_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b-00.tar", "a-00.tar", "a-01.tar"):
        (tmp_path / name).write_bytes(b"")
    names = [path.name for path in expand(tmp_path / "{a,b}-{08..11}.tar")]
    assert names == [f"{letter}-{n}.tar" for letter in "ab" for n in ("08", "09", "10", "11")]
    assert [path.name for path in expand(tmp_path / "*.tar")] == ["a-00.tar", "a-01.tar", "b-00.tar"]
    assert [path.name for path in expand(tmp_path / "{a,b}-0*.tar")] == ["a-00.tar", "a-01.tar", "b-00.tar"]


def test_what_is_no_folder_or_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing-\*\.tar matches no file"):
        Photos.open([tmp_path / "nothing-*.tar"])
    with pytest.raises(DataError, match=r"shard-1\.tar"):
        Photos.open([tmp_path / "shard-{1..2}.tar"])
    with pytest.raises(DataError, match=r"\{5\.\.3\} counts from the larger") as caught:
        Photos.open([tmp_path / "shard-{5..3}.tar"])
    assert "{3..5}" in caught.value.hint
    (tmp_path / "one.jpg").write_bytes(PHOTOS[0])
    with pytest.raises(DataError, match=r"one\.jpg is neither a folder nor a \.tar shard"):
        Photos.open([tmp_path / "one.jpg"])


def test_a_path_that_exists_is_taken_as_it_stands(tmp_path: Path) -> None:
    odd = tmp_path / "{1..3}[a]*"
    odd.mkdir()
    assert expand(odd) == [odd]


# --- broken photos ----------------------------------------------------------------------------------------


def test_a_broken_photo_is_replaced_by_the_same_photo_every_time(damaged_folder: Path) -> None:
    photos, recipe = Photos.open([damaged_folder]), _recipe()
    once, again = host.batches(photos, recipe, 0, 1), host.batches(photos, recipe, 1, 3)
    second = [next(once) for _ in range(2)][1]
    resumed = next(again)
    assert torch.equal(second.images, resumed.images)
    assert second.broken == resumed.broken
    numbers, keys = Sampler(photos, recipe).epoch(0)
    sample = Sample(3, keys[numbers == 3][0])
    picture, broken = first_whole(sample, photos, photos.decode_or_none)
    tried = [3, *stand_ins(sample, 12)]
    chosen = next(number for number in tried if number not in BROKEN)
    assert torch.equal(picture, photos.decode(chosen))
    assert broken == tried[: tried.index(chosen)]
    assert photos.fault(chosen).endswith("and now can")
    with pytest.raises(DataError, match=re.escape(f"Neither {photos.entries[3].place} nor any of its")):
        first_whole(sample, photos, lambda _: None)


def test_broken_photos_are_counted_and_named_once(
    damaged_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(_recipe(max_broken_share=0.2), [damaged_folder], tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["broken"] == 2
    said = re.split(r"[\r\n]+", capsys.readouterr().err)
    for name in ("003.jpg", "007.jpg"):
        named = [line for line in said if name in line]
        assert [line.startswith(f"{damaged_folder / name} cannot") for line in named] == [True], (
            "not in the bar"
        )


def test_too_many_broken_photos_stop_the_run(damaged_folder: Path, tmp_path: Path) -> None:
    pretrain(_recipe(), [damaged_folder], tmp_path / "few", device="cpu")  # two of twelve are more than 1 %
    for number in (0, 5, 9):
        (damaged_folder / f"{number:03d}.jpg").write_bytes(b"")
    for path in ("host", "device"):
        with pytest.raises(DataError, match=r"003\.jpg|007\.jpg"):
            pretrain(_recipe(data_path=path), [damaged_folder], tmp_path / path, device="cpu")


def test_a_resumed_run_knows_the_broken_photos_of_before(damaged_folder: Path, tmp_path: Path) -> None:
    photos, recipe = Photos.open([damaged_folder]), _recipe()
    met = run(recipe, photos, tmp_path, device=CPU).broken
    assert met == set(BROKEN)
    assert run(recipe, photos, tmp_path, device=CPU, resumed=True).broken == met


@pytest.mark.parametrize(("share", "most"), [(0.0, 0), (0.01, 3), (0.25, 3), (0.5, 6)])
def test_so_many_broken_photos_stop_no_run_and_one_more_does(
    damaged_folder: Path, share: float, most: int
) -> None:
    photos, recipe = Photos.open([damaged_folder]), _recipe(max_broken_share=share)
    refuse_too_many_broken(set(range(most)), photos, recipe)
    with pytest.raises(DataError, match=f"At least {most + 1} of 12 photos"):
        refuse_too_many_broken(set(range(most + 1)), photos, recipe)


def test_a_file_that_vanished_stops_the_run_instead_of_changing_it(damaged_folder: Path) -> None:
    photos = Photos.open([damaged_folder])
    for path in damaged_folder.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        next(host.batches(photos, _recipe(), 0, 1))


# --- what folders hold ------------------------------------------------------------------------------------


def test_what_is_no_picture_is_counted_and_stops_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "album.jpg").mkdir()
    (folder / "._cat.jpg").write_bytes(b"\0\5\x16\7")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails/cat.jpg").write_bytes(encoded(photo(9, 9), "JPEG"))
    for number in range(3):
        (folder / f"{number}.HEIC").write_bytes(b"x")
    told = "12 photos of 1 source; left out: 3 .heic, 1 .jpg that is no file, 1 .txt"
    assert Photos.open([folder]).told == told
    pretrain(_recipe(steps=1), [folder], tmp_path / "run", device="cpu")
    assert told in capsys.readouterr().err
    assert main(["shards", str(folder), str(tmp_path / "out")]) == 0
    assert told in capsys.readouterr().out


def test_the_folder_of_samples_holds_its_photos_and_no_small_copies_of_them() -> None:
    names = sorted(f"{sample.name}.jpg" for sample in samples.load())
    assert [entry.name for entry in Photos.open([samples.FOLDER]).entries] == names


def test_linked_folders_are_searched_and_loops_are_not(folder: Path, tmp_path: Path) -> None:
    (linked := tmp_path / "linked").mkdir()
    (linked / "b").symlink_to(folder, target_is_directory=True)
    (linked / "a").mkdir()
    (linked / "a/one.png").write_bytes(PHOTOS[0])
    (linked / "a/above").symlink_to(linked, target_is_directory=True)
    (linked / "a/itself").symlink_to(linked / "a/itself")
    names = [entry.name for entry in Photos.open([linked]).entries]
    assert names == ["a/one.png", *(f"b/{entry.name}" for entry in Photos.open([folder]).entries)]


def test_photos_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.png", "a.png", "a/b/c.png", "B/a.png", "a-b/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PHOTOS[0])
    found = [entry.path for entry in Photos.open([tmp_path]).entries]
    assert found == sorted(tmp_path.rglob("*.png"))


def test_many_kinds_of_other_files_are_said_in_a_line(folder: Path) -> None:
    for number in range(40):
        (folder / f"{number:x}").write_bytes(b"x")
        (folder / f"a.{number}").write_bytes(b"x")
    assert Photos.open([folder]).told.startswith("12 photos of 1 source; left out: 40 without a suffix, 1 .")
    assert Photos.open([folder]).told.endswith(", 32 others")


def test_a_weight_of_a_source_that_is_not_there_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(steps=1, source_weights={folder.name: 0.5, "reel": 0.5})
    pretrain(recipe, [folder], tmp_path / "run", device="cpu")
    assert (
        f"source_weights names reel, which no photo comes from; the sources are {folder.name}."
        in capsys.readouterr().err
    )


def test_a_run_that_stops_waits_for_no_photo_that_nobody_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, decoded, closing = Photos.open([folder]), list[int](), threading.Event()
    decode = Photos.decode

    def counted(self: Photos, number: int) -> torch.Tensor:
        decoded.append(number)
        if len(decoded) > 8:  # of the second batch
            closing.wait(20)
        return decode(self, number)

    monkeypatch.setattr(Photos, "decode", counted)
    stream = host.batches(photos, _recipe(), 0, 1)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    made = len(decoded)
    assert made < 12  # two batches had been asked for ahead
    closing.set()
    time.sleep(0.5)
    assert len(decoded) <= made + 1


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "one.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"left out: 1 \.heic"):
        Photos.open([tmp_path])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_whatever_can_be_shown_can_be_learned_from(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"one.{kind.lower()}").write_bytes(encoded(photo(40, 30), kind))
    assert Photos.open([tmp_path]).decode(0).shape == (3, 30, 40)


def test_pictures_of_sixteen_bits_are_read_as_eight_on_every_path(folder: Path, tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (90, 80), dtype=np.uint16)
    (folder / "deep.png").write_bytes(encoded(deep))
    photos = Photos.open([folder])
    number = [entry.name for entry in photos.entries].index("deep.png")
    picture = photos.decode(number)
    assert picture.dtype == torch.uint8
    assert np.abs(picture.numpy().astype(float) - deep / 257).max() <= 1
    pool = resident.Pool.decode(photos, CPU, workers=1)
    first = int(pool.start[number])
    assert torch.equal(pool.pixels[first : first + 90 * 80].view(90, 80, 3).permute(2, 0, 1), picture)
    assert next(host.batches(photos, _recipe(batch_size=13), 0, 1)).broken == frozenset()
    assert pack(folder, tmp_path / "out").broken == ()


def test_transparency_lies_over_white_as_where_pictures_are_served(tmp_path: Path) -> None:
    clear = np.zeros((20, 20, 4), dtype=np.uint8)
    clear[5:15, 5:15] = (255, 0, 0, 255)
    (tmp_path / "logo.png").write_bytes(encoded(clear))
    picture = Photos.open([tmp_path]).decode(0)
    assert picture[:, 0, 0].tolist() == [255, 255, 255]
    assert picture[:, 10, 10].tolist() == [255, 0, 0]


# --- shards -----------------------------------------------------------------------------------------------


def test_packed_shards_are_small_upright_and_read_like_the_folder(
    damaged_folder: Path, tmp_path: Path
) -> None:
    (damaged_folder / "deep").mkdir()
    turned = photo(90, 60)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    (damaged_folder / "deep/large.jpg").write_bytes(encoded(photo(400, 300), "JPEG"))
    (damaged_folder / "deep/turned.jpg").write_bytes(encoded(turned, "JPEG", exif=exif))
    packed = pack(damaged_folder, tmp_path / "out", side=100, per_shard=5, workers=2)
    assert (packed.photos, len(packed.shards)) == (12, 3)
    for fault, name in zip(packed.broken, ("003.jpg", "007.jpg"), strict=True):
        assert fault.startswith(f"{damaged_folder / name} cannot be decoded: ")
    photos = Photos.open([tmp_path / "out/shard-{00000..00002}.tar"])
    assert len(photos) == 12
    assert {entry.source for entry in photos.entries} == {"photos"}
    shapes = [tuple(photos.decode(number).shape[1:]) for number in range(12)]
    assert shapes[-2:] == [(100, 133), (90, 60)]
    assert all(min(shape) <= 100 for shape in shapes)


def test_packing_twice_gives_the_same_bytes_and_overwrites_nothing(
    damaged_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in ("one", "two"):
        assert main(["shards", str(damaged_folder), str(tmp_path / out), "--workers", "2"]) == 0
    assert "10 photos in 1 shard under" in capsys.readouterr().out
    one, two = (tmp_path / out / "shard-00000.tar" for out in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert main(["shards", str(damaged_folder), str(tmp_path / "one")]) == 2
    assert "already" in capsys.readouterr().err


def test_shards_are_not_written_where_no_folder_can_be(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["shards", str(folder), str(tmp_path / "file")]) == 2
    assert "cannot be made or written to (File exists)" in capsys.readouterr().err


def _tar(path: Path, members: dict[str, bytes], mode: Literal["w", "w:gz"] = "w") -> Path:
    with tarfile.open(path, mode) as shard:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return path


def test_a_sidecar_that_tells_no_source_and_a_macs_double_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "some.tar"
    jpeg = encoded(photo(20, 20), "JPEG")
    _tar(path, {"a.jpg": jpeg, "a.json": b'[{"label": 3}]', "./._a.jpg": b"\0\5\x16\7"})
    entries = Photos.open([path]).entries
    assert [(entry.name, entry.source) for entry in entries] == [("a.jpg", "some")]


def test_a_compressed_shard_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    path = _tar(tmp_path / "some.tar", {"a.jpg": encoded(photo(20, 20), "JPEG")}, "w:gz")
    with pytest.raises(DataError, match=r"some\.tar is compressed"):
        Photos.open([path])
    path.write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match=r"some\.tar is not a tar shard"):
        Photos.open([path])


# --- two paths --------------------------------------------------------------------------------------------


def test_the_device_path_gives_the_samples_masks_and_nearly_the_pixels_of_the_host_path(
    damaged_folder: Path,
) -> None:
    photos, recipe = Photos.open([damaged_folder]), _recipe()
    pool = resident.Pool.decode(photos, CPU, workers=2)
    assert np.flatnonzero(pool.broken).tolist() == sorted(BROKEN)
    by_host = host.batches(photos, recipe, 3, 1)
    by_device = resident.batches(pool, photos, recipe, 3)
    for _ in range(4):
        ours, theirs = next(by_device), next(by_host)
        assert torch.equal(ours.hidden, theirs.hidden)
        assert ours.broken == theirs.broken
        assert ours.images.dtype == torch.uint8
        apart = (ours.images.int() - theirs.images.int()).abs().float()
        # torchvision resizes in 16-bit integers, rounding its weights: two of 255 levels, and rarely.
        assert apart.max() <= 2
        assert apart.mean() < 0.1


@pytest.mark.parametrize("size", [(150, 220), (64, 64), (40, 31), (64, 200)])
def test_crops_shrink_enlarge_and_mirror_as_torchvision_does(tmp_path: Path, size: tuple[int, int]) -> None:
    random = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)  # the hardest picture
    (tmp_path / "one.png").write_bytes(encoded(random))
    photos = Photos.open([tmp_path])
    pool = resident.Pool.decode(photos, CPU, workers=1)
    keys = np.arange(24, dtype=np.uint64)
    boxes = crop_boxes(keys, [size[0]] * 24, [size[1]] * 24, (0.1, 1.0))
    ours = resident.crop(pool, np.zeros(24, dtype=np.int64), boxes, 64)
    for n in range(24):
        box = [int(of[n]) for of in boxes]
        theirs = resized_crop(photos.decode(0), *box[:4], [64, 64], InterpolationMode.BICUBIC, antialias=True)
        theirs = theirs.flip(-1) if box[4] else theirs
        on_host = host.scaled(photos.decode(0), Box(box[0], box[1], box[2], box[3], bool(box[4])), 64)
        assert (on_host.int() - theirs.int()).abs().max() <= 1  # 0 where torch has its fast kernel
        apart = (ours[n].int() - theirs.int()).abs().float()
        assert apart.max() <= 3
        assert apart.mean() < 0.2


def test_a_batch_is_cropped_in_chunks_as_in_one(
    damaged_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = resident.Pool.decode(Photos.open([damaged_folder]), CPU, workers=1)
    numbers = np.array([0, 1, 2, 4, 5], dtype=np.int64)
    keys = np.arange(5, dtype=np.uint64)
    boxes: Boxes = crop_boxes(keys, pool.height[numbers], pool.width[numbers], (0.2, 1.0))
    whole = resident.crop(pool, numbers, boxes, 64)
    monkeypatch.setattr(resident, "CHUNK", 1)
    assert torch.equal(whole, resident.crop(pool, numbers, boxes, 64))


def test_the_host_holds_few_decoded_photos_at_a_time() -> None:
    begun: list[int] = []

    def make(number: int) -> torch.Tensor:
        begun.append(number)
        return torch.tensor(number)

    with ThreadPoolExecutor(2) as threads:
        for taken, made in enumerate(in_order(make, range(100), threads, ahead=8)):
            assert int(made) == taken
            assert len(begun) <= taken + 1 + 8
    assert len(begun) == 100


def test_a_pool_grows_where_photos_are_larger_than_was_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, side in enumerate([9, 8, 70, 8, 90]):
        (tmp_path / f"{n}.png").write_bytes(encoded(photo(side, side + n, seed=n)))
    photos = Photos.open([tmp_path])
    monkeypatch.setattr(resident, "SAMPLED", 1)  # the first, and smallest but one
    pool = resident.Pool.decode(photos, CPU, workers=1)
    assert len(pool.pixels) == int((pool.height * pool.width).sum())
    for n in range(5):
        first, size = int(pool.start[n]), int(pool.height[n] * pool.width[n])
        kept = pool.pixels[first : first + size].view(int(pool.height[n]), int(pool.width[n]), 3)
        assert torch.equal(kept.permute(2, 0, 1), photos.decode(n))


def test_photos_that_do_not_fit_the_device_are_told_from_a_batch_that_does_not(
    damaged_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "empty", full)
    photos, recipe = Photos.open([damaged_folder]), _recipe(data_path="device")
    with pytest.raises(RecipeError, match="12 photos, decoded, do not fit into the memory of cpu") as caught:
        feed.batches(photos, recipe, 0, device=CPU, workers=1)
    assert "--data-path host" in caught.value.hint


def test_the_path_is_the_recipes_choice_and_auto_stays_on_a_cpus_host(damaged_folder: Path) -> None:
    photos = Photos.open([damaged_folder])
    for path, where in (("host", "host"), ("device", "resident"), ("auto", "host")):
        stream: Any = feed.batches(photos, _recipe(data_path=path), 0, device=CPU, workers=1)
        assert stream.gi_code.co_filename.endswith(f"{where}.py")


@pytest.mark.parametrize("path", ["host", "device"])
def test_any_number_of_processes_share_one_sequence(damaged_folder: Path, path: str) -> None:
    photos, recipe = Photos.open([damaged_folder]), _recipe(data_path=path)
    alone = next(feed.batches(photos, recipe, 2, device=CPU, workers=1))
    for size in (2, 4):
        parts = [
            next(feed.batches(photos, recipe, 2, device=CPU, workers=1, world=World(rank, size)))
            for rank in range(size)
        ]
        assert torch.equal(torch.cat([part.images for part in parts]), alone.images)
        assert torch.equal(torch.cat([part.hidden for part in parts]), alone.hidden)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(damaged_folder: Path) -> None:
    photos = Photos.open([damaged_folder])
    with pytest.raises(RecipeError, match="evenly"):
        next(feed.batches(photos, _recipe(accumulate=2), 0, device=CPU, workers=1, world=World(0, 3)))


def test_both_paths_train_to_the_same_loss(damaged_folder: Path, tmp_path: Path) -> None:
    losses = []
    for path in ("host", "device"):
        recipe = _recipe(data_path=path, max_broken_share=0.2)
        pretrain(recipe, [damaged_folder], tmp_path / path, device="cpu")
        losses.append(json.loads((tmp_path / path / "metrics.jsonl").read_text().splitlines()[-1])["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
