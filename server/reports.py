"""What a weight file is, told without torch in this process: kept beside the file, or asked of other processes.

Importing torch takes seconds, hundreds of megabytes that are never given back, and the interpreter's lock from
whoever is being served.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import model as model_package
from model import CheckpointError
from model.loading import report_beside
from server.batcher import stand_back
from server.problems import BadRequestError, NoTorchError, OverloadedError

Report = dict[str, Any]

NO_TORCH = "Reports need torch, which the slim image does not have; use the full one."
READER_RETRY_S = 10


class Reports:
    """Reports on files, each made once, and on heads of files that clients hold. Belongs to the event loop."""

    def __init__(self) -> None:
        self._made: dict[tuple[Path, str], asyncio.Task[Report]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="unmask-report")  # one process at a time
        # Begun by the first head, and kept: it imports for seconds.
        self._reader: ProcessPoolExecutor | None = None

    async def get(self, path: Path, digest: str) -> Report:
        """The report on a file; its folder is left out. Whoever stops waiting stops nothing.

        Args:
            path: The file, or its folder.
            digest: Of the weights, which a kept report must name.
        """
        made = (path, digest)  # a file can be another one by the time it is loaded again
        task = self._made.get(made)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._made[made] = asyncio.create_task(self._make(path, digest))
        return await asyncio.shield(task)

    async def of_head(self, head: bytes, name: str, size: int | None) -> Report:
        """The report on a safetensors file by its head alone; one at a time, in a process that waits for the next.

        Args:
            head: The first bytes of the file.
            name: The file's, for messages.
            size: The file's bytes, where they are known.

        Raises:
            BadRequestError: It is not such a head.
            NoTorchError: This service comes without torch.
            OverloadedError: The process was killed, such as for memory; another is begun for the next head.
        """
        if importlib.util.find_spec("torch") is None:
            raise NoTorchError
        if self._reader is None:
            spawn = multiprocessing.get_context("spawn")
            self._reader = ProcessPoolExecutor(1, spawn, initializer=_begin_reading)
        reader = self._reader
        try:
            return await asyncio.get_running_loop().run_in_executor(reader, _look, head, name, size)
        except CheckpointError as error:  # the file is the client's
            raise BadRequestError(
                str(error), status=422, code=error.code, hint=error.hint, field="body"
            ) from error
        except BrokenProcessPool:
            if self._reader is reader:  # else whoever was told first has had another begun
                self._reader = None
            raise OverloadedError(READER_RETRY_S) from None

    def close(self) -> None:
        """Begin no more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._reader is not None:
            self._reader.shutdown(wait=False, cancel_futures=True)

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


def _begin_reading() -> None:
    """Set up the process that reads heads: behind the service while it runs, and gone with it."""
    stand_back()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's, which ends this process
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    service = multiprocessing.parent_process()
    assert service is not None
    service.join()
    os._exit(0)  # the service was killed, and could not end it


def _look(head: bytes, name: str, size: int | None) -> Report:
    from model.checkpoints.report import inspect_header  # pulls torch

    report = inspect_header(head, name, size).to_dict()
    del report["path"], report["digest"]
    return {"name": name, **report}
