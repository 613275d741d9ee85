"""How a model was trained, for the page: its curve, and the same photos repainted along the way.

Beside `NAME.safetensors` lie `NAME.jsonl` (one line per report) and `NAME-training/` with `index.json` and sheets.
The folder of a run has the same under other names, beside the weights it leaves; one that still goes on can be watched.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.models import Source

# More points than a curve on a screen has pixels; longer records are thinned out.
MAX_POINTS = 2000
POINT = ("step", "samples", "loss", "lr")
VALIDATION = ("step", "samples", "val_loss")
MEDIA_TYPES = {".webp": "image/webp", ".png": "image/png"}


@dataclass(frozen=True)
class Record:
    """Where a training's record lies; any part may be absent.

    Attributes:
        curve: JSON lines with step, samples, loss and lr; of some val_loss, or that alone.
        pictures: Folder of sheets with `index.json`.
    """

    curve: Path
    pictures: Path

    def read(self, url: str) -> dict[str, Any]:
        """Points, losses on held-out photos and pictures. Reads files: not for the event loop.

        Args:
            url: Address of the pictures, to which a file's name is added.
        """
        index = self._index()
        # Apart from each other: few lines have a loss on held-out photos, and the first of them has no other.
        validated = (line for line in _lines(self.curve) if '"val_loss"' in line)
        return {
            "points": [point for line in _thinned(_lines(self.curve)) for point in _values(line, POINT)],
            "validation": [point for line in _thinned(validated) for point in _values(line, VALIDATION)],
            "photos": index.get("photos", []),
            "pictures": [
                {"step": entry["step"], "samples": entry["samples"], "url": url + entry["file"]}
                for entry in index.get("pictures", [])
            ],
        }

    def picture(self, name: str) -> tuple[bytes, str] | None:
        """Content and media type of a sheet; None where the index does not list it."""
        listed = {entry["file"] for entry in self._index().get("pictures", [])}
        # Only what is listed by a plain name: a client's text never becomes part of a path.
        if name not in listed or Path(name).name != name:
            return None
        path = self.pictures / name
        try:
            return path.read_bytes(), MEDIA_TYPES[path.suffix]
        except (OSError, KeyError):
            return None

    @property
    def exists(self) -> bool:
        """Whether there is anything to show."""
        return self.curve.is_file() or (self.pictures / "index.json").is_file()

    def _index(self) -> dict[str, Any]:
        try:
            index = json.loads((self.pictures / "index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return index if isinstance(index, dict) else {}


def find_records(sources: Sequence[Source], run: Path | None) -> dict[str, Record]:
    """Records by name: of the models, and of a run, which is called as its folder is.

    Args:
        sources: The models.
        run: Folder of a training run, which may still go on.
    """
    records = {source.name: _beside(source.path) for source in sources}
    if run is not None:
        records[run.name] = _inside(run)
    return records


def _beside(path: Path) -> Record:
    if path.is_dir():
        return _inside(path)
    beside = Record(path.with_suffix(".jsonl"), path.with_name(path.stem + "-training"))
    # Weights that were not moved out of their run's folder.
    return beside if beside.exists else _inside(path.parent)


def _inside(folder: Path) -> Record:
    return Record(folder / "metrics.jsonl", folder / "pictures")


def _thinned(lines: Iterable[str]) -> list[str]:
    """At most `MAX_POINTS` of them and the newest, evenly spaced."""
    kept: list[str] = []
    last, stride = "", 1
    for number, last in enumerate(lines):
        if number % stride == 0:
            kept.append(last)
        if len(kept) == MAX_POINTS:
            kept, stride = kept[::2], 2 * stride
    if kept and kept[-1] != last:
        kept.append(last)
    return kept


def _lines(path: Path) -> Iterable[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from file
    except OSError:
        return


def _values(line: str, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """These of a line, unless it lacks one: a run may be writing it just now."""
    try:
        values = json.loads(line)
        found = {name: values[name] for name in names}
        if all(math.isfinite(value) for value in found.values()):
            yield found | ({"target": str(values["target"])} if "target" in values else {})
    except (ValueError, KeyError, TypeError):
        return
