"""`python -m server` as an operator sees it: what it prints, how it stops, how it fails."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.server.conftest import photo

ROOT = Path(__file__).resolve().parents[2]
START_S = 240  # seconds on a quiet machine, many on a loaded one


@contextmanager
def start(tmp_path: Path, **settings: Any) -> Iterator["subprocess.Popen[str]"]:
    """Start the service without its page, which is what takes long; at the end it is killed, if it still runs."""
    own = {"TMPDIR": tmp_path, "XDG_CACHE_HOME": tmp_path / "cache"}
    chosen = {"UNMASK_PAGE": "false", "UNMASK_PORT": "0"} | own | settings
    with subprocess.Popen(
        [sys.executable, "-m", "server"],
        cwd=ROOT,
        env={**os.environ, **{name: str(value) for name, value in chosen.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def failure(tmp_path: Path, **settings: Any) -> str:
    """What a start that cannot succeed says."""
    with start(tmp_path, **settings) as process:
        _, told = process.communicate(timeout=START_S)
        assert process.returncode == 1
        assert "Traceback" not in told
        return told


@pytest.mark.slow
def test_it_says_when_it_is_ready_and_finishes_what_runs_when_asked_to_stop(
    tmp_path: Path, proved_weights: Path
) -> None:
    with start(tmp_path, UNMASK_MODELS=proved_weights, UNMASK_GRACEFUL_S=60) as process:
        assert process.stdout is not None
        ready = process.stdout.readline().strip()
        assert ready.startswith("Unmask is ready at http://127.0.0.1:")
        address = ready.rpartition(" ")[2]
        assert httpx.get(f"{address}/readyz").status_code == 200
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
            form = httpx.Request("POST", f"{address}/reconstruct", files={"image": ("a.png", photo())})
            body = form.read()
            head = "".join(f"{name}: {value}\r\n" for name, value in form.headers.items())
            connection.sendall(f"POST /reconstruct HTTP/1.1\r\n{head}\r\n".encode() + body[:100])
            time.sleep(0.3)  # the request is under way when the signal comes
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            connection.sendall(body[100:])
            answer = connection.makefile("rb").readline()
        log, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert answer == b"HTTP/1.1 200 OK\r\n"
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"GET /readyz", "POST /reconstruct"} == {f"{line['method']} {line['path']}" for line in lines}
    assert {"status", "duration_ms", "request_id", "timestamp", "level"} <= lines[0].keys()
    assert list(tmp_path.glob("unmask-*")) == [], "the private folder is left behind"


@pytest.mark.slow
def test_clients_behind_a_proxy_are_told_apart_and_the_log_keeps_their_photos_secrets(
    tmp_path: Path, proved_weights: Path
) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
        host = "::"  # where IPv4 comes as ::ffff:127.0.0.1
    except OSError:
        host = "127.0.0.1"
    exif = Image.Exif()
    exif[0x010E] = "Anna's garden"
    image = io.BytesIO()
    Image.new("RGB", (64, 64)).save(image, "JPEG", exif=exif)
    settings = {"HOST": host, "CLIENT_RATE": "1/day", "LOG_LEVEL": "debug", "MODELS": proved_weights}
    settings["ROOT_PATH"] = "/unmask"  # which the proxy takes away: no part of where the service listens
    with start(tmp_path, **{f"UNMASK_{name}": value for name, value in settings.items()}) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip().rpartition(":")[2]

        def status(client: str) -> int:
            files, headers = {"image": ("a.jpg", image.getvalue())}, {"X-Forwarded-For": client}
            url = f"http://127.0.0.1:{port}/reconstruct"
            return httpx.post(url, files=files, headers=headers, timeout=START_S).status_code

        asked = ("192.0.2.1", "192.0.2.2", "192.0.2.1")
        assert [status(client) for client in asked] == [200, 200, 429]
        process.send_signal(signal.SIGTERM)
        log, errors = process.communicate(timeout=START_S)
    assert "reconstruct" in log
    assert "Anna" not in log + errors


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="reads what a process has loaded as Linux tells it"
)
def test_a_weight_file_s_head_is_read_by_another_process_which_ends_with_the_service(tmp_path: Path) -> None:
    weights = ROOT / "weights" / "mini.safetensors"  # whose proof lies beside it: the service needs no torch
    data = weights.read_bytes()
    head = data[: 8 + int.from_bytes(data[:8], "little")]
    kind = {"Content-Type": "application/octet-stream"}
    with start(tmp_path, UNMASK_MODELS=weights) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip().rpartition(" ")[2] + "/v1/inspect"
        assert httpx.post(url, content=head, headers=kind, timeout=START_S).status_code == 200
        assert "libtorch" not in maps(process.pid)
        [reader] = [child for child in children(process.pid) if "libtorch" in maps(child)]
        os.kill(reader, signal.SIGKILL)  # as the system does where memory ends
        refused = httpx.post(url, content=head, headers=kind, timeout=START_S)
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        assert httpx.post(url, content=head, headers=kind, timeout=START_S).status_code == 200
        [reader] = [child for child in children(process.pid) if "libtorch" in maps(child)]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=START_S)
    assert "leaked" not in errors
    until = time.monotonic() + 10
    while maps(reader):
        assert time.monotonic() < until, "the reader outlives its service"
        time.sleep(0.05)


def children(parent: int) -> list[int]:
    """The processes that a process has begun."""
    begun = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(child) for listing in begun for child in listing.read_text().split()]


def maps(process: int) -> str:
    """What a process has loaded; nothing of one that has ended."""
    try:
        return Path(f"/proc/{process}/maps").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.slow
def test_an_unreadable_weight_file_is_told_and_ends_the_start(tmp_path: Path) -> None:
    weights = tmp_path / "broken.safetensors"
    weights.write_bytes(b"no weights")
    assert "broken.safetensors" in failure(tmp_path, UNMASK_MODELS=weights)


def test_a_missing_weight_file_is_told_at_once(tmp_path: Path) -> None:
    assert "nowhere.safetensors" in failure(tmp_path, UNMASK_MODELS="nowhere.safetensors")


def test_a_taken_port_is_told_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = failure(tmp_path, UNMASK_PORT=port)
    assert str(port) in told
    assert "UNMASK_PORT" in told


def test_a_mistyped_or_wrong_setting_is_told_at_once(tmp_path: Path) -> None:
    assert "UNMASK_PROT" in failure(tmp_path, UNMASK_PROT="1")
    assert "UNMASK_MAX_BYTES" in failure(tmp_path, UNMASK_MAX_BYTES="many")
