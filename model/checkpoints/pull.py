"""Weights of a name fetched from where the registry says they are, and a record of what came.

licence accepted -> [Hub: its configs] -> one file, or an index and the parts it lists -> whole? -> pulled.json
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from model.checkpoints import files, registry
from model.checkpoints.download import download
from model.checkpoints.files import refuse
from model.checkpoints.registry import RECORD, Entry
from model.errors import CheckpointError

_ACCEPTED = "accepted.json"


def pull(
    name: str,
    *,
    accepted: bool = False,
    ask: Callable[[str], bool] | None = None,
) -> Path:
    """Fetch the weights of a name, unless they are here.

    Args:
        name: As in ``entries``.
        accepted: The caller accepts the licence.
        ask: Asked, with the licence's text, where it was not accepted before; None: refuse instead.

    Returns:
        The file, or the folder of it.

    Raises:
        CheckpointError: The name is unknown, the licence was not accepted, or the download failed.
    """
    entry = registry.known_entry(name)
    found = registry.find(entry)
    if found:
        return found.path
    if not (entry.file or entry.hub):
        raise refuse(f"{name} is at {entry.source}, which is not there", "Restore it.", "missing")
    _accept(entry, accepted, ask)
    home = registry.weights_folder() / name
    hashes = _fetch(entry, home)
    record = {
        "source": entry.source,
        "licence": entry.licence,
        "pulled": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "files": {key: {"sha256": h, "bytes": (home / key).stat().st_size} for key, h in hashes.items()},
    }
    files.write_json(home / RECORD, record)
    return home if entry.hub else home / next(iter(hashes))  # an index stands before its parts


def _fetch(entry: Entry, home: Path) -> dict[str, str]:
    """Bring the files of an entry: SHA-256 by name; the configs first, an index before its parts."""
    source = _Source(entry, home)
    hashes: dict[str, str] = {}
    absent: CheckpointError | None = None
    for name in (*files.CONFIGS, *files.IN_FOLDER) if entry.hub else (Path(urlsplit(entry.file).path).name,):
        earlier = _hash(home / name)
        try:
            hashes[name] = source.bring(name)
        except CheckpointError as error:
            if not entry.hub or error.code != "checkpoint-absent":
                raise
            # Another container may hold the same, and no config is needed by timm's names.
            absent = absent if name in files.CONFIGS else absent or error
            continue
        if name.endswith(files.INDEX):
            hashes |= source.bring_parts(files.parts_in(home / name), earlier == hashes[name])
        elif name not in files.CONFIGS:
            _check_whole(home / name)
        if name not in files.CONFIGS:
            return hashes
    assert absent is not None  # every container was asked for
    raise absent


class _Source:
    """Where the files of one entry come from and go to."""

    def __init__(self, entry: Entry, home: Path) -> None:
        self._entry, self._home = entry, home
        self._given = Path(urlsplit(entry.file).path).name  # the file that an address names
        # An earlier record outlives its files: what comes anew must be the same.
        record = registry.read_json(home / RECORD).get("files", {})
        self._before: dict[str, str] = {name: facts["sha256"] for name, facts in record.items()}

    def bring(self, name: str) -> str:
        """Fetch a file; its SHA-256."""
        entry = self._entry
        url = registry.HUB.format(entry.hub, name) if entry.hub else urljoin(entry.file, name)
        whole = name == self._given or name in files.IN_FOLDER
        # What is promised of several files holds for them together.
        whole = whole and not name.endswith(files.INDEX)
        return download(
            entry.file if name == self._given else url,  # with whatever stands behind the name
            self._home / name,
            sha256=self._before.get(name) or (entry.sha256 if whole else ""),
            md5=entry.md5 if name == self._given and whole else "",
        )

    def bring_parts(self, names: Sequence[str], unchanged: bool) -> dict[str, str]:
        """Fetch what an index lists; ``unchanged``: parts that came with it in an earlier try are kept."""
        hashes = {}
        for name in names:
            there = _hash(self._home / name) if unchanged else ""
            if not there or there != self._before.get(name, there):
                there = self.bring(name)
                _check_whole(self._home / name)
            hashes[name] = there
        joint, promised = files.joint_digest(list(hashes.values())), self._entry.sha256
        if promised and joint != promised:
            for name in names:
                (self._home / name).unlink()
            raise refuse(
                f"The parts of {self._entry.name} have sha256 {joint} together, but {promised} was promised; they "
                "were discarded",
                "Try again; if it happens twice, the files there are different ones: do not use them.",
                "hash",
            )
        return hashes


def _hash(path: Path) -> str:
    return files.sha256(path) if path.exists() else ""


def _accept(entry: Entry, accepted: bool, ask: Callable[[str], bool] | None) -> None:
    """Ask once per licence; an accepted licence holds for every other name under it."""
    answers = registry.weights_folder() / _ACCEPTED
    given = registry.read_json(answers)
    if entry.licence in given or entry.licence == "not stated":
        return
    text = f"{entry.name} from {entry.source}\nis under {entry.licence}."
    if entry.licence.startswith("CC-BY-NC"):
        text += (
            " You may share and change it with credit to its authors, and may not use it commercially."
            "\nhttps://creativecommons.org/licenses/by-nc/4.0/"
        )
    if not (accepted or (ask and ask(text))):
        raise refuse(
            f"The licence of {entry.name}, {entry.licence}, was not accepted",
            "Read it and give --accept-licence.",
            "licence",
        )
    with registry.alone(_ACCEPTED):
        given = registry.read_json(answers)
        files.write_json(answers, {**given, entry.licence: datetime.date.today().isoformat()})


def _check_whole(path: Path) -> None:
    """A login page that came with status 200 must not become the hash of record."""
    try:
        files.check_container(path)
    except CheckpointError:
        path.unlink()
        raise
