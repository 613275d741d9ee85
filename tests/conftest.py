"""What tests of more than one room share: where the checkout is, a browser, a really started server."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import browser

ROOT = Path(__file__).resolve().parents[1]
READY_WITHIN_S = 270  # about 10 s on a quiet desk; a loaded two-core machine has taken ten times that

# How long an example takes is the machine's affair.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

#: The dearest files, which begin first: one that begins last leaves every other process idle until it ends.
DEAR = ("test_pretrain_states.py", "test_axe.py", "test_compare.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files as `make test` gives them out."""
    places = {name: place for place, name in enumerate(DEAR)}
    items.sort(key=lambda item: places.get(item.path.name, len(DEAR)))


@pytest.fixture(scope="session", autouse=True)
def _proofs_of_toys_are_thrown_away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("proofs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.loading.proofs", lambda: folder)
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def browser_path() -> str:
    """Return a Chromium's path; the tests that need one are skipped where there is none."""
    path = browser.find()
    if path is None:
        pytest.skip("no browser found: `make test` installs one, CHROMIUM= names one")
    return path


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start `python -m server` once for all tests that talk to it from outside, and stop it after them."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with started_server(log) as url:
        yield url


@contextmanager
def started_server(log: Path, **settings: str) -> Iterator[str]:
    """Run the service on a free port, its output in `log`, what it keeps beside it; yield its address once ready.

    Args:
        log: Where its output goes.
        settings: Further variables of its environment.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    own = {
        "UNMASK_HOST": "127.0.0.1",
        "UNMASK_PORT": str(port),
        "XDG_CACHE_HOME": str(log.with_name("cache")),
        "UNMASK_DEADLINE_S": "120",  # tests also run on busy machines
        "UNMASK_MAX_QUEUE_S": "60",
    }
    environment = {**os.environ, **own, **settings}
    command = [sys.executable, "-m", "server"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        try:
            _wait_until_ready(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the server ended with {process.returncode}:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.2)
    pytest.fail(f"the server was not ready after {READY_WITHIN_S} s:\n{log.read_text()[-3000:]}")
