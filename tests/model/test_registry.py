"""Weights by name, fetched from a server of our own that cuts, lies and forgets."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from model.__main__ import main
from model.checkpoints import download, files, registry, store
from model.checkpoints.pull import pull
from model.checkpoints.registry import Entry
from model.checkpoints.report import inspect
from model.errors import CheckpointError
from model.loading import said_of
from model.reconstruct import load
from tests.host import Host, serving


@pytest.fixture
def host() -> Iterator[Host]:
    with serving() as host:
        yield host


@pytest.fixture(autouse=True)
def _at_home_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(download, "_PAUSE_S", 0)


@pytest.fixture
def weights(debug_file: Path, host: Host) -> bytes:
    """The debug model, offered by the host under the name ``debug``, licence not stated."""
    host.files["/w.safetensors"] = debug_file.read_bytes()
    registry.add(Entry(name="debug", file=f"{host.url}/w.safetensors"))
    return host.files["/w.safetensors"]


def _refused(name: str = "debug", **more: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        pull(name, **more)
    assert caught.value.hint
    return caught.value


# --- what is known ----------------------------------------------------------------------------------------------


def test_the_registry_holds_the_public_weights_and_every_one_says_what_it_is() -> None:
    known = registry.entries()
    assert {"mini", "mae-visualize-large-ganloss", "facebook/vit-mae-huge"} <= known.keys()
    assert len(known) == 23
    for entry in known.values():
        assert sum(map(bool, (entry.file, entry.hub, entry.shipped))) == 1, entry.name
        assert entry.file.startswith("https://") or not entry.file
        assert entry.licence == "CC-BY-NC-4.0"
        assert entry.bytes > 1e6
        assert entry.trained_with
        assert entry.shows
        assert (entry.predicts is not None) == (entry.holds == "full")


def test_every_shipped_model_has_a_name_and_is_what_the_registry_says() -> None:
    assert registry.locate("mini").path == registry.shipped()
    named = {name for name, entry in registry.entries().items() if entry.shipped}
    assert named == {path.stem for path in registry.shipped().parent.glob("*.safetensors")}
    for name in named:
        entry, said = registry.entries()[name], said_of(registry.locate(name).path)
        told = (said["target"], said["strategy"], said["licence"])
        assert told == (entry.predicts, entry.trained_with, entry.licence)


def test_a_known_name_that_is_not_here_says_how_to_get_it_and_fetches_nothing(host: Host) -> None:
    registry.add(Entry(name="debug", file=f"{host.url}/w.safetensors"))
    with pytest.raises(CheckpointError, match="known, but not on this machine") as caught:
        load(Path("debug"), "cpu")
    assert "weights pull debug" in caught.value.hint
    assert not host.asked


def test_an_unknown_name_is_an_absent_file() -> None:
    with pytest.raises(CheckpointError, match="no weight file at nobody/knows"):
        load(Path("nobody/knows"), "cpu")
    assert _refused("nobody").code == "checkpoint-unknown"


def test_an_added_file_that_cannot_be_looked_at_stands_in_no_other_ones_way(debug_file: Path) -> None:
    registry.add(Entry(name="far", path=str(debug_file)))
    record = registry.weights_folder() / "added.json"
    record.write_text(record.read_text().replace(str(debug_file), "/" + "x" * 300))
    assert registry.locate(debug_file).path == debug_file
    with pytest.raises(CheckpointError, match="xxx cannot be read"):
        registry.locate("far")


# --- pulling ----------------------------------------------------------------------------------------------------


def test_pulled_weights_open_by_their_name_and_are_not_fetched_twice(host: Host, weights: bytes) -> None:
    path = pull("debug")
    assert path.read_bytes() == weights
    assert pull("debug") == path
    assert len(host.asked) == 1
    checkpoint = store.read(Path("debug"))
    assert checkpoint.digest == hashlib.sha256(weights).hexdigest()
    assert inspect(Path("debug")).digest == checkpoint.digest
    assert sorted(p.name for p in path.parent.iterdir() if p.suffix != ".lock") == [
        "pulled.json",
        "w.safetensors",
    ]


def test_what_the_registry_knows_helps_a_file_that_does_not_say(host: Host, debug_network: Any) -> None:
    import torch

    out = Path.home() / "a.pth"
    out.parent.mkdir(parents=True)
    torch.save({"model": debug_network.state_dict()}, out)
    registry.add(Entry(name="mine", path=str(out), predicts="norm_pixel", licence="MIT"))
    checkpoint = store.read(Path("mine"))
    assert (checkpoint.name, checkpoint.network.config.target) == ("mine", "norm_pixel")
    assert checkpoint.card["licence"] == "MIT"
    assert inspect(Path("mine")).target_source == "the registry"


def test_a_cut_connection_goes_on_where_it_was_cut(host: Host, weights: bytes) -> None:
    host.cuts = [1000, 500]
    assert pull("debug").read_bytes() == weights
    assert [wanted for _, wanted in host.asked] == ["", "bytes=1000-", "bytes=1500-"]


def test_a_pull_that_gave_up_goes_on_in_the_next_one(host: Host, weights: bytes) -> None:
    host.cuts = [1000] + [0] * 5
    error = _refused()
    assert error.code == "checkpoint-cut"
    assert "goes on from there" in error.hint
    assert registry.state(registry.entries()["debug"]) == ""
    host.asked.clear()
    assert pull("debug").read_bytes() == weights
    assert host.asked == [("/w.safetensors", "bytes=1000-")]


@pytest.mark.parametrize("lacks", ["ranges", "tag"])
def test_a_server_that_cannot_go_on_sends_it_all_again(host: Host, weights: bytes, lacks: str) -> None:
    setattr(host, lacks, False)
    host.cuts = [1000]
    assert pull("debug").read_bytes() == weights


def test_a_file_that_changed_between_two_parts_is_begun_anew(host: Host, weights: bytes) -> None:
    host.cuts = [1000] + [0] * 5
    _refused()
    changed = weights.replace(b'"name":"debug"', b'"name":"gubed"')
    assert changed != weights
    host.files["/w.safetensors"] = changed
    assert pull("debug").read_bytes() == changed


def test_a_busy_server_is_asked_again(host: Host, weights: bytes) -> None:
    host.statuses = [503, 429]
    assert pull("debug").read_bytes() == weights


def test_the_cache_lies_where_the_desktop_says(
    host: Host, weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    registry.add(Entry(name="debug", file=f"{host.url}/w.safetensors"))
    assert pull("debug").is_relative_to(tmp_path / "elsewhere/unmask/weights")
    assert registry.locate("debug").path == pull("debug")


def test_a_whole_part_without_its_last_step_is_not_fetched_again(host: Host, weights: bytes) -> None:
    home = registry.weights_folder() / "debug"
    home.mkdir(parents=True)
    (home / "w.safetensors.download").write_bytes(weights)
    note = {"tag": '"x"', "total": len(weights), "sha256": ""}
    (home / "w.safetensors.download.json").write_text(json.dumps(note))
    assert pull("debug").read_bytes() == weights
    assert not host.asked


@pytest.mark.parametrize("promise", ["sha256", "md5"])
def test_another_file_than_promised_is_thrown_away(host: Host, weights: bytes, promise: str) -> None:
    registry.add(Entry(name="other", file=f"{host.url}/w.safetensors", **{promise: "0" * 64}))  # type: ignore[arg-type]
    error = _refused("other")
    assert error.code == "checkpoint-hash"
    assert "000000 was promised" in str(error)
    assert not list((registry.weights_folder() / "other").glob("w.*[!k]"))


def test_a_web_page_in_place_of_weights_is_not_recorded(host: Host, weights: bytes) -> None:
    cut, longer = weights[:-7], weights + b"xx"
    # The ninth byte of safetensors is a brace, of these pages too.
    for page in (b"<html>Please log in</html>", b"<script>{", b"\x09" + bytes(7) + b'{"a":[1]}', cut, longer):
        host.files["/w.safetensors"] = page
        assert _refused().code == "checkpoint-unreadable"
    host.files["/w.safetensors"] = weights
    assert pull("debug").exists()


def test_a_full_disk_is_said_before_anything_is_written(host: Host, weights: bytes) -> None:
    host.length = 10**16
    error = _refused()
    assert error.code == "checkpoint-disk"
    assert "MB free" in str(error)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_a_disk_that_fills_on_the_way_is_said(host: Host, weights: bytes) -> None:
    home = registry.weights_folder() / "debug"
    home.mkdir(parents=True)
    (home / "w.safetensors.download").symlink_to("/dev/full")
    error = _refused()
    assert error.code == "checkpoint-disk"
    assert os.strerror(errno.ENOSPC) in str(error)


def test_two_pulls_of_one_file_do_not_mix(host: Host, weights: bytes) -> None:
    home = registry.weights_folder() / "debug"
    home.mkdir(parents=True)
    with FileLock(home / "w.safetensors.download.lock"):
        assert _refused().code == "checkpoint-busy"


def test_a_host_out_of_reach_is_named(host: Host) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        registry.add(Entry(name="debug", file=f"http://127.0.0.1:{taken.getsockname()[1]}/w.pth"))
        error = _refused()
    assert error.code == "checkpoint-offline"
    assert "127.0.0.1" in str(error)
    assert "weights add NAME FILE" in error.hint


@pytest.mark.parametrize(("status", "says"), [(404, "weights list"), (403, "licence accepted there")])
def test_a_file_that_is_not_given_out_is_said(host: Host, weights: bytes, status: int, says: str) -> None:
    host.statuses = [status]
    error = _refused()
    assert error.code == "checkpoint-absent"
    assert str(status) in str(error)
    assert says in error.hint


# --- licences ---------------------------------------------------------------------------------------------------


def test_a_licence_is_shown_and_accepted_once(host: Host, weights: bytes) -> None:
    for name in ("one", "two"):
        registry.add(Entry(name=name, file=f"{host.url}/w.safetensors", licence="CC-BY-NC-4.0"))
    assert _refused("one").code == "checkpoint-licence"
    assert _refused("one", ask=lambda text: False).code == "checkpoint-licence"
    assert not host.asked
    shown: list[str] = []
    pull("one", ask=lambda text: not shown.append(text))  # type: ignore[func-returns-value]
    assert "may not use it commercially" in shown[0]
    assert pull("two").exists()


# --- ever after -------------------------------------------------------------------------------------------------


def test_a_file_that_changed_since_it_was_pulled_is_refused_by_name_and_by_path(
    host: Host, weights: bytes
) -> None:
    path = pull("debug")
    path.write_bytes(weights[:-4] + b"\0\0\0\0")
    for way in (Path("debug"), path):
        with pytest.raises(CheckpointError, match="changed since it was pulled") as caught:
            load(way, "cpu")
        assert caught.value.code == "checkpoint-hash"
    assert "sha256 is" in registry.verify()["debug"]


def test_a_second_pull_must_bring_what_the_first_brought(host: Host, weights: bytes) -> None:
    path = pull("debug")
    path.unlink()
    host.files["/w.safetensors"] = weights[:-4] + b"\0\0\0\0"
    assert _refused().code == "checkpoint-hash"
    host.files["/w.safetensors"] = weights
    assert pull("debug").read_bytes() == weights


def test_verify_measures_all_that_is_here(host: Host, weights: bytes, debug_file: Path) -> None:
    pull("debug")
    registry.add(Entry(name="mine", path=str(debug_file)))
    assert registry.verify() == {"debug": "", "mine": ""}
    debug_file.write_bytes(weights[:-4] + b"\0\0\0\0")
    assert "when it was added" in registry.verify(["mine"])["mine"]
    assert registry.verify(["mae-visualize-base"]) == {"mae-visualize-base": "not pulled"}


def test_a_file_of_ones_own_that_changed_is_taken_anew_or_opened_by_its_path(
    host: Host, weights: bytes, debug_file: Path
) -> None:
    registry.add(Entry(name="mine", path=str(debug_file)))
    text = debug_file.read_bytes()
    debug_file.write_bytes(text.replace(b'"name":"debug"', b'"name":"other"'))
    assert debug_file.read_bytes() != text
    with pytest.raises(CheckpointError, match="changed since it was added") as caught:
        store.read(Path("mine"))
    assert "weights add mine" in caught.value.hint
    assert store.read(debug_file).name == "other", "named by its path it is whatever it is now"
    with pytest.raises(CheckpointError, match="is taken"):
        registry.add(Entry(name="mine", path=str(debug_file)))
    registry.add(Entry(name="mine", path=str(debug_file)), replace=True)
    assert store.read(Path("mine")).name == "other"
    with pytest.raises(CheckpointError, match="is taken"):
        registry.add(Entry(name="mini-grid", path=str(debug_file)), replace=True)


def test_names_added_side_by_side_are_all_kept(debug_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = threading.Barrier(4, timeout=10)
    digest = files.digest

    def slow(path: Path) -> str:
        reached.wait()  # all have looked whether their name is free, and none has written
        return digest(path)

    monkeypatch.setattr(files, "digest", slow)
    names = [f"n{number}" for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: registry.add(Entry(name=name, path=str(debug_file))), names))
    assert registry.entries().keys() >= set(names)


def test_a_folder_of_weights_that_cannot_be_made_is_said(
    debug_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"file.* cannot be read"):
        registry.add(Entry(name="mine", path=str(debug_file)))


def test_a_path_that_no_disk_can_hold_is_said() -> None:
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        store.read(Path("x" * 300))
    assert caught.value.code == "checkpoint-unreadable"


def test_a_file_of_ones_own_that_is_gone_is_said_and_its_name_can_be_forgotten(
    host: Host, weights: bytes, debug_file: Path
) -> None:
    registry.add(Entry(name="mine", path=str(debug_file)))
    pull("debug")
    debug_file.unlink()
    assert registry.verify() == {"debug": "", "mine": f"{debug_file} is gone"}
    with pytest.raises(CheckpointError, match="is gone") as caught:
        store.read(Path("mine"))
    assert caught.value.code == "checkpoint-missing"
    assert main(["weights", "remove", "mine"]) == 0
    assert "mine" not in registry.entries()
    assert main(["weights", "remove", "mini-grid"]) == 2


# --- the Hub ----------------------------------------------------------------------------------------------------


def _offer_on_the_hub(host: Host, folder: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "HUB", host.url + "/{}/{}")
    for name in ("config.json", "preprocessor_config.json", weights):
        host.files[f"/facebook/vit-mae-base/{name}"] = (folder / name).read_bytes()


@pytest.mark.parametrize("weights_name", ["model.safetensors", "pytorch_model.bin"])
def test_a_hub_repository_is_pulled_and_opens_by_its_name(
    tmp_path: Path, host: Host, debug_file: Path, monkeypatch: pytest.MonkeyPatch, weights_name: str
) -> None:
    import torch
    from safetensors.torch import load_file

    from model.checkpoints.convert import convert

    folder = convert(debug_file, tmp_path / "h1", to="huggingface")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    _offer_on_the_hub(host, folder, weights_name, monkeypatch)
    home = pull("facebook/vit-mae-base", accepted=True)
    assert sorted(path.name for path in home.iterdir() if path.suffix != ".lock") == sorted(
        ["config.json", "preprocessor_config.json", "pulled.json", weights_name]
    )
    checkpoint = store.read(Path("facebook/vit-mae-base"))
    assert checkpoint.layout == "huggingface"
    assert checkpoint.card["licence"] in ("CC-BY-NC-4.0", "none")
    (home / "config.json").write_text("{}")
    assert "config.json: sha256 is" in registry.verify(["facebook/vit-mae-base"])["facebook/vit-mae-base"]


@pytest.fixture
def parts(tmp_path: Path, debug_file: Path) -> Path:
    """The debug model as transformers writes a large one: a config, an index and three parts."""
    from safetensors.torch import load_file, save_file

    from model.checkpoints.convert import convert

    folder = convert(debug_file, tmp_path / "parts", to="huggingface")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    where: dict[str, str] = {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        save_file({name: tensors[name] for name in names[number::3]}, folder / file)
        where |= dict.fromkeys(names[number::3], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def _weights_in(home: Path) -> list[str]:
    return sorted(path.name for path in home.glob("model*") if path.suffix != ".lock")


def test_a_hub_repository_in_parts_is_pulled_whole_and_a_part_that_changed_is_noticed(
    host: Host, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "HUB", host.url + "/{}/{}")
    host.files |= {f"/facebook/vit-mae-huge/{file.name}": file.read_bytes() for file in parts.glob("[cm]*")}
    home = pull("facebook/vit-mae-huge", accepted=True)
    assert _weights_in(home) == _weights_in(parts)
    assert len(_weights_in(home)) == 4
    assert store.read(Path("facebook/vit-mae-huge")).digest == store.read(parts).digest
    assert registry.verify() == {"facebook/vit-mae-huge": ""}
    part = home / "model-00002-of-00003.safetensors"
    part.write_bytes(part.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CheckpointError, match="changed since it was pulled"):
        store.read(Path("facebook/vit-mae-huge"))


def test_an_address_of_an_index_brings_its_parts_and_what_came_is_not_fetched_again(
    host: Host, parts: Path
) -> None:
    host.files |= {f"/w/{file.name}": file.read_bytes() for file in parts.glob("model*")}
    last = host.files.pop("/w/model-00003-of-00003.safetensors")
    registry.add(Entry(name="large", file=f"{host.url}/w/model.safetensors.index.json", predicts="pixel"))
    assert "model-00003-of-00003.safetensors answers 404" in str(_refused("large"))
    assert registry.state(registry.entries()["large"]) == ""
    host.asked.clear()
    host.files["/w/model-00003-of-00003.safetensors"] = last
    pull("large")
    assert [path for path, _ in host.asked] == [
        "/w/model.safetensors.index.json", "/w/model-00003-of-00003.safetensors"
    ]  # fmt: skip
    assert store.read(Path("large")).digest == store.read(parts).digest


def test_parts_that_are_not_what_was_promised_are_thrown_away(host: Host, parts: Path) -> None:
    host.files |= {f"/w/{file.name}": file.read_bytes() for file in parts.glob("model*")}
    registry.add(Entry(name="large", file=f"{host.url}/w/model.safetensors.index.json", sha256="0" * 64))
    assert _refused("large").code == "checkpoint-hash"
    assert _weights_in(registry.weights_folder() / "large") == ["model.safetensors.index.json"]


@pytest.mark.parametrize("where", [{}, {"a": "../../evil"}, {"a": 3}])
def test_an_index_that_lists_no_weights_is_refused(host: Host, where: dict[str, Any]) -> None:
    host.files["/w/model.safetensors.index.json"] = json.dumps({"weight_map": where}).encode()
    registry.add(Entry(name="large", file=f"{host.url}/w/model.safetensors.index.json"))
    assert _refused("large").code == "checkpoint-unreadable"
    assert len(host.asked) == 1


def test_the_hash_that_the_hub_tells_on_the_way_is_checked(host: Host, weights: bytes) -> None:
    host.redirects["/hub.safetensors"] = f"{host.url}/w.safetensors"
    registry.add(Entry(name="moved", file=f"{host.url}/hub.safetensors"))
    host.headers["X-Linked-ETag"] = f'"{"0" * 64}"'
    assert _refused("moved").code == "checkpoint-hash"
    host.headers["X-Linked-ETag"] = f'"{hashlib.sha256(weights).hexdigest()}"'
    assert pull("moved").read_bytes() == weights


def test_what_huggingface_hub_has_fetched_is_used(
    tmp_path: Path, debug_file: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    from model.checkpoints.convert import convert

    repository = tmp_path / "cache" / "models--facebook--vit-mae-base"
    folder = convert(debug_file, repository / "snapshots" / "abc", to="huggingface")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    entry = registry.entries()["facebook/vit-mae-base"]
    assert registry.state(entry) == "Hub cache"
    assert pull("facebook/vit-mae-base") == folder
    assert store.read(Path("facebook/vit-mae-base")).layout == "huggingface"


def test_what_was_said_of_a_repository_holds_for_the_files_in_that_cache(
    tmp_path: Path, debug_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from safetensors.torch import load_file, save_file

    from model.checkpoints.convert import convert

    repository = tmp_path / "cache" / "models--me--mae"
    weights = convert(debug_file, repository / "snapshots" / "abc", to="huggingface") / "model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt"})  # as others write it, without what we know
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    before = store.read(Path("me/mae"))
    assert before.network.config.target == "pixel"
    registry.add(Entry(name="mine", hub="me/mae", predicts="norm_pixel"))
    after = store.read(Path("mine"))
    assert after.network.config.target == "norm_pixel"


def test_weights_in_parts_are_used_from_that_cache_once_all_parts_are_there(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "cache" / "models--facebook--vit-mae-huge"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots").mkdir()
    snapshot = parts.rename(repository / "snapshots" / "abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    entry = registry.entries()["facebook/vit-mae-huge"]
    assert registry.state(entry) == "Hub cache"
    assert store.read(Path("facebook/vit-mae-huge")).layout == "huggingface"
    (snapshot / "model-00001-of-00003.safetensors").unlink()
    assert registry.state(entry) == ""


# --- names of one's own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (Entry(name="mini-grid", file="https://example.org/w.pth"), "name"),
        (Entry(name="../up", file="https://example.org/w.pth"), "name"),
        (Entry(name="x", file="http://example.org/w.pth"), "address"),
        (Entry(name="x", file="file:///etc/passwd"), "address"),
        (Entry(name="x", file="https://example.org/"), "address"),
        (Entry(name="x", hub="vit-mae-base"), "address"),
        (Entry(name="x", hub="https://example.org/me/mae"), "address"),
        (Entry(name="x", file="http://example.org/w.pth", sha256="a"), "hash"),
        (Entry(name="x", path="/nowhere/w.pth"), "missing"),
    ],
)
def test_a_name_that_cannot_be_is_refused(entry: Entry, code: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        registry.add(entry)
    assert caught.value.code == f"checkpoint-{code}"


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_lists_adds_pulls_and_verifies(
    host: Host, weights: bytes, debug_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["weights", "add", "mine", str(debug_file), "--target", "pixel"]) == 0
    assert hashlib.sha256(weights).hexdigest() in capsys.readouterr().out
    assert main(["weights", "pull", "debug"]) == 0
    assert main(["weights", "list"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert "pulled" in rows["debug"]
    assert "added" in rows["mine"]
    assert "shipped" in rows["mini"]
    assert main(["weights", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "mini"
    assert main(["weights", "verify"]) == 0
    assert "mine: unchanged" in capsys.readouterr().out
    debug_file.write_bytes(b"x")
    assert main(["weights", "verify"]) == 2
    assert "mine: sha256 is" in capsys.readouterr().err


def test_the_command_takes_a_licence_from_the_keyboard_or_a_flag(
    host: Host, weights: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add(Entry(name="nc", file=f"{host.url}/w.safetensors", licence="CC-BY-NC-4.0"))
    monkeypatch.setattr("builtins.input", lambda text: "no")
    assert main(["weights", "pull", "nc"]) == 2
    assert "--accept-licence" in capsys.readouterr().err
    assert main(["weights", "pull", "nc", "--accept-licence"]) == 0


def test_two_processes_may_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    writes = f"files.write_json(Path({str(path)!r}), {{}})"
    other = f"from pathlib import Path; from model.checkpoints import files; {writes}"
    with files.replacing(path) as part:
        part.write_text("mine")
        subprocess.run([sys.executable, "-c", other], check=True)
        assert path.read_text() == "{}\n"
    assert path.read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["proof.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such pipes")
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path, Path()):
        with pytest.raises(CheckpointError, match="a folder or a device"), files.replacing(place):
            pytest.fail("begun")
    assert (tmp_path / "pipe").is_fifo()
