"""What a weight file is, told without torch in this process: kept beside the file, or asked of another process.

Importing torch takes seconds, hundreds of megabytes that are never given back, and the interpreter's lock from
whoever is being served.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import model as model_package
from model.loading import report_beside

Report = dict[str, Any]

NO_TORCH = "Reports need torch, which the slim image comes without; take the full one."


class Reports:
    """Reports by file, each made once. Belongs to the event loop."""

    def __init__(self) -> None:
        self._made: dict[Path, asyncio.Task[Report]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="unmask-report")  # one process at a time

    async def get(self, path: Path, digest: str) -> Report:
        """The report on a file; its folder is left out. Whoever stops waiting stops nothing.

        Args:
            path: The file, or its folder.
            digest: Of the weights, which a kept report must name.
        """
        task = self._made.get(path)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._made[path] = asyncio.create_task(self._make(path, digest))
        return await asyncio.shield(task)

    def close(self) -> None:
        """Begin no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _make(self, path: Path, digest: str) -> Report:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: report_beside(path, digest) or _ask(path))


def _ask(path: Path) -> Report:
    """What `python -m model inspect` says, in a process of its own."""
    if importlib.util.find_spec("torch") is None:
        return {"path": path.name, "note": NO_TORCH}
    command = [sys.executable, "-m", "model", "inspect", str(path.absolute()), "--json"]
    where = Path(model_package.__file__).parents[1]  # found there, wherever this process stands
    told = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    if told.returncode:
        raise RuntimeError(f"{path.name} has no report: {told.stderr[-2000:]}")
    report: Report = json.loads(told.stdout)
    return report | {"path": path.name}
