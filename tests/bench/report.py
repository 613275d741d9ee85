"""Where figures go: the terminal, and ``docs/benchmarks.md`` between markers."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from pathlib import Path

from model.devices import usable_cpus

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def publish(section: str, text: str, *, write: bool) -> None:
    """Print a section, and with ``write`` put it into the page in place of what stood there."""
    text = f"Measured {datetime.date.today().isoformat()} on {machine()}.\n\n{text}"
    print(f"## {section}\n\n{text}\n")
    if not write:
        return
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def machine() -> str:
    """The processor, in words."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    flags = next((line for line in _cpuinfo() if line.startswith("flags")), "")
    widest = next(
        (name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in flags), "no AVX2"
    )
    return f"{usable_cpus()} cores of {names[0] if names else platform.machine()} ({widest})"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
