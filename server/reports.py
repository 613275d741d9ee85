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
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
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
        self._heads = ThreadPoolExecutor(1, thread_name_prefix="unmask-head")  # whose thread owns the reader
        self._reader: _Reader | None = None

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
        try:
            return await asyncio.get_running_loop().run_in_executor(self._heads, self._read, head, name, size)
        except CheckpointError as error:  # the file is the client's
            raise BadRequestError(
                str(error), status=422, code=error.code, hint=error.hint, field="body"
            ) from error

    def _read(self, head: bytes, name: str, size: int | None) -> Report:
        self._reader = self._reader or _Reader()
        try:
            return self._reader.read(head, name, size)
        except (EOFError, OSError):
            self._reader = None
            raise OverloadedError(READER_RETRY_S) from None

    def close(self) -> None:
        """Begin no more, and give up what is read."""
        for pool in (self._pool, self._heads):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._reader is not None:
            self._reader.process.kill()

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


class _Reader:
    """A process that reads heads, one after the other. It is kept, for it imports for seconds."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._here, there = spawn.Pipe()
        self.process = spawn.Process(target=_serve, args=(there,), daemon=True)
        self.process.start()
        there.close()  # the process has its own: when that ends, so does this

    def read(self, *head: object) -> Report:
        """The report on a head.

        Raises:
            CheckpointError: It is none.
            EOFError, OSError: The process was killed.
        """
        self._here.send(head)
        told: Report | Exception = self._here.recv()
        if isinstance(told, Exception):
            raise told
        return told


def _serve(service: Connection[Any, Any]) -> None:
    """What the process does: stay behind the service while it runs, and leave with it."""
    stand_back()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the service's, which ends this process
    try:
        while True:
            service.send(_look(*service.recv()))
    except (EOFError, OSError):
        os._exit(0)  # the service was killed, and could not end it; taking torch apart would take seconds


def _look(head: bytes, name: str, size: int | None) -> Report | Exception:
    from model.checkpoints.report import inspect_header  # pulls torch

    try:
        report = inspect_header(head, name, size).to_dict()
    except Exception as error:  # noqa: BLE001 - handed to whoever waits
        return error
    del report["path"], report["digest"]
    return {"name": name, **report}
