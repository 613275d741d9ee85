"""Weights by name: what there is, what is here, and that it is still the same. How it gets here is ``pull``.

Names come from ``registry.toml`` and from ``add``. Files lie in a folder of the user, one folder a name, each
with ``pulled.json``: the SHA-256 of the first pull, which every later use is measured against. Nothing is fetched
that was not asked for by name.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from filelock import FileLock

from model.checkpoints import files
from model.checkpoints.files import refuse, write_json
from model.config import Target
from model.errors import CheckpointError

#: Where the Hub keeps a file: owner/name, file.
HUB = "https://huggingface.co/{}/resolve/main/{}"
#: Beside pulled files: where they came from, and their hashes.
RECORD = "pulled.json"
_ADDED = "added.json"
#: What page, service and command line take where no model is named (weights/README.md tells why).
DEFAULT = "mini"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One name and what is known of its weights; where it comes from is one of the first four.

    Attributes:
        name: As in commands and requests.
        file: Address of one file.
        hub: ``owner/name`` on the Hugging Face Hub.
        path: A file or folder of this machine.
        shipped: A file that comes with this package.
        bytes: Size, about.
        sha256: As published or as given to ``add``; empty where nobody says.
        md5: First digits of it, where no more is published.
        licence: As its owners state it.
        holds: ``full``, ``encoder`` or ``classifier``; empty: not said.
        predicts: What its decoder predicts; None where it has none or nobody says.
        trained_with: Masks and whatever else matters.
        shows: What to expect of it here.
        heads: Attention heads, where file and shape do not tell.
        decoder_heads: The same of the decoder.
    """

    name: str
    file: str = ""
    hub: str = ""
    path: str = ""
    shipped: str = ""
    bytes: int = 0
    sha256: str = ""
    md5: str = ""
    licence: str = "not stated"
    holds: str = ""
    predicts: Target | None = None
    trained_with: str = ""
    shows: str = ""
    heads: int | None = None
    decoder_heads: int | None = None

    @property
    def source(self) -> str:
        """Where it comes from, for a person."""
        return self.file or (self.hub and HUB.format(self.hub, "")) or self.path or "this package"


@dataclass(frozen=True)
class Found:
    """A name or path that leads to a file.

    Attributes:
        path: File or folder.
        entry: What the registry knows of it; None for a file that it does not know.
        digest: What its ``RawFile.digest`` was when it came; empty where nothing was recorded.
    """

    path: Path
    entry: Entry | None = None
    digest: str = ""

    def check(self, digest: str) -> None:
        """Refuse a file that changed since it was pulled or added.

        Raises:
            CheckpointError: It did.
        """
        if self.entry is None or self.digest in ("", digest):
            return
        name, added = self.entry.name, self.entry.path
        deed, remedy = "pulled", f"Remove {self.path} and pull {name} again."
        if added:
            deed, remedy = "added", f"Take the new one: python -m model weights add {name} {added} --replace."
        raise refuse(
            f"{self.path} has changed since it was {deed}: sha256 {digest}, recorded {self.digest}",
            remedy,
            "hash",
        )


State = Literal["shipped", "pulled", "added", "Hub cache", ""]


def weights_folder() -> Path:
    """Where pulled weights lie."""
    return files.cache("weights")


def shipped_folder() -> Path:
    """Where the weight files lie that come with this package: in the wheel beside the code, else in the checkout."""
    packaged = Path(__file__).parents[1] / "shipped"
    return packaged if packaged.exists() else Path(__file__).parents[2] / "weights"


def shipped(name: str = DEFAULT) -> Path:
    """A weight file that comes with this package."""
    return shipped_folder() / f"{name}.safetensors"


def entries() -> dict[str, Entry]:
    """All names, those of ``registry.toml`` first."""
    rows = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["weights"]
    known = {row["name"]: Entry(**row) for row in rows}
    allowed = {field.name for field in fields(Entry)}
    for name, row in _added().items():
        known.setdefault(name, Entry(**{key: row[key] for key in row.keys() & allowed}))
    return known


def state(entry: Entry) -> State:
    """Whether it is here, and how."""
    if entry.shipped:
        return "shipped" if shipped(entry.shipped).exists() else ""
    if entry.path:
        return "added"
    if _record(entry):
        return "pulled"
    return "Hub cache" if _in_hub_cache(entry.hub) else ""


def locate(name_or_path: str | Path) -> Found:
    """Where the weights of this name or path are; a path that exists wins over a name.

    Raises:
        CheckpointError: The name is known and its file is not here.
    """
    known = entries()
    path = Path(name_or_path)
    if _is_there(path):
        for entry in known.values():  # a path may be that of a name: then what was recorded holds too
            try:
                found = find(entry)
            except CheckpointError:  # a broken record is the affair of what it is about
                if path.resolve().is_relative_to((weights_folder() / entry.name).resolve()):
                    raise
                continue
            if found and path.resolve() == found.path.resolve():
                # But a file of the user's own, named by its path, is whatever it is now.
                return Found(path, entry, "" if entry.path else found.digest)
        return Found(path)
    name = str(name_or_path)
    entry = known.get(name) or Entry(name=name, hub=name if _NAME.fullmatch(name) and "/" in name else "")
    found = find(entry)
    if found:  # of a repository that was never added nothing is known but where it lies
        return found if name in known else Found(found.path)
    if name not in known:
        return Found(path)  # to be refused by whoever reads it, as any absent file
    if entry.path:
        raise refuse(
            f"{entry.path}, which {name} refers to, is gone",
            f"Restore it, or forget the name: python -m model weights remove {name}.",
            "missing",
        )
    raise refuse(
        f"The weights {name} are known, but not on this machine",
        f"Fetch them: python -m model weights pull {name}.",
        "not-pulled",
    )


def verify(names: Sequence[str] = ()) -> dict[str, str]:
    """Measure files against what was recorded.

    Args:
        names: Which; empty for all that are here.

    Returns:
        By name: empty where all is well, else what is wrong.

    Raises:
        CheckpointError: A name is unknown.
    """
    known = entries()
    chosen = [known_entry(name) for name in names] or [
        entry for entry in known.values() if state(entry) in ("pulled", "added")
    ]
    return {entry.name: "; ".join(_faults(entry)) for entry in chosen}


def add(entry: Entry, *, replace: bool = False) -> Entry:
    """Give a name to a file of this machine, an address or a repository of the Hub.

    Args:
        entry: The name and what is known of it.
        replace: The name may be one that was added before.

    Returns:
        The entry as it is kept: of a file with its whole path and its hash.

    Raises:
        CheckpointError: The name is taken or cannot be one, the file is not there, or address or hash is
            none.
    """
    if not _NAME.fullmatch(entry.name):
        raise refuse(
            f"{entry.name!r} cannot be a name", "Use letters, digits, . _ - and one / at most.", "name"
        )
    _check_free(entry.name, replace)
    if entry.sha256 and not re.fullmatch("[0-9a-f]{64}", entry.sha256):
        raise refuse(f"{entry.sha256:.80} is no sha256", "Give all of its 64 hex digits.", "hash")
    if entry.file:
        _check_address(entry)
    if entry.hub and not ("/" in entry.hub and _NAME.fullmatch(entry.hub)):
        raise refuse(f"hub:{entry.hub:.80} is no repository of the Hub", "Give hub:OWNER/NAME.", "address")
    if entry.path:
        path = Path(entry.path).absolute()
        with files.reading(path):
            digest = files.digest(path)
        if entry.sha256 not in ("", digest):
            raise refuse(f"{path} has sha256 {digest}, not {entry.sha256}", "Fetch it again.", "hash")
        entry = Entry(**vars(entry) | {"path": str(path), "sha256": digest})
    told = {field.name: of for field in fields(Entry) if (of := getattr(entry, field.name)) != field.default}
    with alone(_ADDED):
        _check_free(entry.name, replace)  # again: a large file takes its time
        rows = _added() | {entry.name: told}
        write_json(weights_folder() / _ADDED, {"weights": list(rows.values())})
    return entry


def _check_free(name: str, replace: bool) -> None:
    if name in entries() and not (replace and name in _added()):
        raise refuse(
            f"The name {name} is taken",
            "See `weights list`; choose another, or --replace one that was added.",
            "name",
        )


def remove(name: str) -> None:
    """Forget a name that was added; no file is touched.

    Raises:
        CheckpointError: It was not added.
    """
    with alone(_ADDED):
        rows = _added()
        if name not in rows:
            raise refuse(f"{name!r:.80} was never added", "See `weights list`.", "unknown")
        del rows[name]
        write_json(weights_folder() / _ADDED, {"weights": list(rows.values())})


@contextmanager
def alone(record: str) -> Iterator[None]:
    """Only one process at a time changes a record of ours: what another one wrote meanwhile would be lost.

    Raises:
        CheckpointError: The folder cannot be written to.
    """
    folder = weights_folder()
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(folder / f".{record}.lock"))
        except OSError as error:
            raise refuse(
                f"{folder} cannot be written to ({error.strerror or error})",
                "Set XDG_CACHE_HOME to a folder that can.",
                "write",
            ) from error
        yield


def _added() -> dict[str, dict[str, Any]]:
    """What ``add`` kept, by name."""
    return {row["name"]: row for row in read_json(weights_folder() / _ADDED).get("weights", [])}


def _check_address(entry: Entry) -> None:
    address = urlsplit(entry.file)
    safe = address.scheme == "https" or (
        address.scheme == "http" and (entry.sha256 or address.hostname in _THIS_MACHINE)
    )
    if not safe or not Path(address.path).name:
        raise refuse(
            f"{entry.file} is not an https address of a file",
            "Give an https address; an http one needs --sha256.",
            "address",
        )


def known_entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        CheckpointError: There is none.
    """
    known = entries()
    if name not in known:
        raise refuse(
            f"There are no weights named {name!r:.80}",
            "See `python -m model weights list`; `weights add` gives a name to a file or address.",
            "unknown",
        )
    return known[name]


def find(entry: Entry) -> Found | None:
    """The files of an entry, if they are here.

    Raises:
        CheckpointError: A record of them cannot be read.
    """
    if entry.shipped:
        path = shipped(entry.shipped)
        return Found(path, entry) if path.exists() else None
    if entry.path:
        return Found(Path(entry.path), entry, entry.sha256) if _is_there(Path(entry.path)) else None
    record = _record(entry)
    if record:
        first, *parts = (name for name in record if name not in files.CONFIGS)
        digest = files.joint_digest([record[name]["sha256"] for name in sorted(parts) or [first]])
        home = weights_folder() / entry.name
        return Found(home if entry.hub else home / first, entry, digest)
    cached = _in_hub_cache(entry.hub)
    return Found(cached, entry) if cached else None


def _is_there(path: Path) -> bool:
    with files.reading(path):
        return path.exists()


def _record(entry: Entry) -> dict[str, dict[str, Any]]:
    """What was pulled, if every file of it is still there."""
    home = weights_folder() / entry.name
    rows: dict[str, dict[str, Any]] = read_json(home / RECORD).get("files", {})
    return rows if rows and all((home / name).exists() for name in rows) else {}


def _faults(entry: Entry) -> Iterator[str]:
    if entry.shipped:
        return
    if entry.path:
        if not _is_there(Path(entry.path)):
            yield f"{entry.path} is gone"
        elif (now := files.digest(Path(entry.path))) != entry.sha256:
            yield f"sha256 is {now}, {entry.sha256} when it was added"
        return
    home = weights_folder() / entry.name
    rows = read_json(home / RECORD).get("files", {})
    if not rows:
        yield "not pulled"
    for name, facts in rows.items():
        path = home / name
        if not path.exists():
            yield f"{name} is gone"
        elif (now := files.sha256(path)) != facts["sha256"]:
            yield f"{name}: sha256 is {now}, {facts['sha256']} when it was pulled"


def _in_hub_cache(hub: str) -> Path | None:
    """The folder of a repository in huggingface_hub's cache, where that program is and has fetched it."""
    if not hub:
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for name in files.IN_FOLDER:
        path = try_to_load_from_cache(hub, name)
        if isinstance(path, str) and _is_whole(Path(path).parent):
            return Path(path).parent
    return None


def _is_whole(home: Path) -> bool:
    """Whether all parts of the weights in a folder are there; the program fetches them one by one."""
    try:
        files.parts(home)
    except CheckpointError:
        return False
    return True


def read_json(path: Path) -> dict[str, Any]:
    """A record of ours; empty where there is none yet.

    Raises:
        CheckpointError: It was changed and cannot be read.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise refuse(f"{path} cannot be read ({error})", "Repair or remove it.", "registry") from error
    if not isinstance(values, dict):
        raise refuse(f"{path} is not a JSON object", "Repair or remove it.", "registry")
    return values
