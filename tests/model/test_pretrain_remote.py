"""Shards behind an address: fetched once, whole or not at all, also over a connection that breaks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model.__main__ import main
from model.checkpoints import download
from model.errors import DataError
from model.pretrain.data import Photos
from tests.host import Host, serving


@pytest.fixture
def host(shard: Path) -> Iterator[Host]:
    with serving() as host:
        host.files = {f"/sets/shard-0000{n}.tar": shard.read_bytes() for n in range(2)}
        yield host


def test_shards_behind_addresses_read_like_local_ones(host: Host, shard: Path, tmp_path: Path) -> None:
    photos = Photos.open([f"{host.url}/sets/shard-0000{{0..1}}.tar"], tmp_path / "cache")
    local = Photos.open([shard, shard])
    assert len(photos) == len(local) == 24
    assert [photos.read(n) for n in (0, 11, 12, 23)] == [local.read(n) for n in (0, 11, 12, 23)]
    assert [entry.source for entry in photos.entries] == [entry.source for entry in local.entries]


def test_a_cache_that_cannot_be_made_is_said(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file") as caught:
        Photos.open([f"{host.url}/sets/shard-00000.tar"], tmp_path / "file")
    assert caught.value.code == "data-remote"


def test_a_shard_is_fetched_once_even_by_several_processes_at_a_time(host: Host, tmp_path: Path) -> None:
    address = f"{host.url}/sets/shard-00000.tar"
    with ThreadPoolExecutor(3) as threads:
        opened = list(threads.map(lambda _: Photos.open([address], tmp_path), range(3)))
    again = Photos.open([address], tmp_path)
    assert all(photos == again for photos in opened)
    assert len(host.asked) == 1


def test_a_broken_connection_is_taken_up_where_it_broke(
    host: Host, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_PAUSE_S", 0.0)
    host.cuts = [1000, 1000]
    photos = Photos.open([f"{host.url}/sets/shard-00000.tar"], tmp_path)
    assert photos.entries[0].path.read_bytes() == shard.read_bytes()
    assert [wanted for _, wanted in host.asked] == ["", *(wanted for _, wanted in host.asked[1:])]
    assert len(host.asked) == 3
    assert all(wanted for _, wanted in host.asked[1:])


def test_an_address_without_a_shard_is_named(host: Host, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shard-00007\.tar answers 404"):
        Photos.open([f"{host.url}/sets/shard-00007.tar"], tmp_path / "cache")
    with pytest.raises(DataError, match=r"does not end in \.tar"):
        Photos.open([f"{host.url}/sets/*"], tmp_path)
    assert not list((tmp_path / "cache").rglob("*.tar"))


def test_a_shard_that_is_no_tar_is_named(host: Host, tmp_path: Path) -> None:
    host.files["/odd.tar"] = b"<html>not found</html>" * 100
    with pytest.raises(DataError, match=r"odd\.tar is not a tar shard"):
        Photos.open([f"{host.url}/odd.tar"], tmp_path)


def test_a_run_takes_addresses_on_the_command_line(host: Host, tmp_path: Path) -> None:
    recipe = tmp_path / "toy.toml"
    recipe.write_text("name = 'toy'\nsize = 'debug'\nsteps = 1\nbatch_size = 4\n")
    arguments = [
        "--data",
        f"{host.url}/sets/shard-{{00000,00001}}.tar",
        "--cache",
        str(tmp_path / "cache"),
    ]
    assert main(["pretrain", str(recipe), *arguments, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert (tmp_path / "run/toy.safetensors").is_file()


def test_photos_to_judge_by_may_lie_behind_an_address_too(
    host: Host, debug_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = ["evaluate", "reconstruct", str(debug_file), "--limit", "1", "--device", "cpu"]
    assert main([*asked, "--data", f"{host.url}/sets/shard-00000.tar"]) == 0
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 1
