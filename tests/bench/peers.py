"""Servers to be compared: ours, and LitServe, BentoML and Ray Serve around the very same model and engine.

The peers are installed into a throw-away environment that sees ours behind its own packages.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.bench.load import Request, request

ROOT = Path(__file__).resolve().parents[2]
READY_S = 240.0
PEERS = ("litserve", "bentoml", "ray[serve]")

LITSERVE = """
import base64, sys
import litserve
from model import Options, load

class Api(litserve.LitAPI):
    def setup(self, device):
        self.model = load(sys.argv[2] or None, "cpu")
    def decode_request(self, request):
        return self.model.prepare(base64.b64decode(request["image"]), Options(seed=request["seed"], ssim=False))
    def batch(self, jobs):
        return jobs
    def predict(self, jobs):
        return list(zip(jobs, self.model.run(jobs)))
    def unbatch(self, results):
        return results
    def encode_response(self, result):
        return self.model.finish(*result).to_dict(("reconstruction",))

if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=8, batch_timeout=0.01), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
"""

BENTOML = """
import base64, json, os
import bentoml
from model import Options, load

@bentoml.service(traffic={"timeout": 25, "max_concurrency": 40}, workers=1)
class Peer:
    def __init__(self):
        self.model = load(os.environ["PEER_WEIGHTS"] or None, "cpu")
    @bentoml.api(batchable=True, max_batch_size=8, max_latency_ms=20000)
    def reconstruct(self, asked: list[str]) -> list[str]:
        given = [json.loads(one) for one in asked]
        jobs = [
            self.model.prepare(base64.b64decode(one["image"]), Options(seed=one["seed"], ssim=False)) for one in given
        ]
        done = zip(jobs, self.model.run(jobs))
        return [json.dumps(self.model.finish(*pair).to_dict(("reconstruction",))) for pair in done]
"""

RAY = """
import base64, os, sys
from ray import serve
from model import Options, load

@serve.deployment(max_ongoing_requests=40, ray_actor_options={"num_cpus": len(os.sched_getaffinity(0))})
class Peer:
    def __init__(self, weights):
        self.model = load(weights, "cpu")
    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.01)
    async def answer(self, asked):
        jobs = [
            self.model.prepare(base64.b64decode(one["image"]), Options(seed=one["seed"], ssim=False)) for one in asked
        ]
        done = zip(jobs, self.model.run(jobs))
        return [self.model.finish(*pair).to_dict(("reconstruction",)) for pair in done]
    async def __call__(self, request):
        return "ready" if request.method == "GET" else await self.answer(await request.json())

serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(Peer.bind(sys.argv[2] or None), blocking=True)
"""


@dataclass(frozen=True)
class Peer:
    """A server to be measured.

    Attributes:
        name: For the table.
        command: From a port, the command line.
        ready: Path that answers 200 when it is.
        make: From a port, a picture and a number, the request.
        health: Path that is asked while it is overloaded.
    """

    name: str
    command: Callable[[int], list[str]]
    ready: str
    make: Callable[[int, bytes, int], Request]
    health: str


def ours(weights: Path | None) -> Peer:
    """This service, without its page."""

    def command(port: int) -> list[str]:
        models = [f"UNMASK_MODELS={weights}"] if weights else []
        setting = [f"UNMASK_PORT={port}", "UNMASK_PAGE=false", "UNMASK_LOG_LEVEL=error", *models]
        return ["env", *setting, sys.executable, "-m", "server"]

    def make(port: int, picture: bytes, number: int) -> Request:
        path = f"/v1/reconstruct?seed={number}&panels=reconstruction&ssim=false"
        return request(port, path, picture, "image/jpeg")

    return Peer("Unmask", command, "/readyz", make, "/healthz")


def others(environment: Path, weights: Path | None) -> list[Peer]:
    """The peers, installed now."""
    python = environment / "bin" / "python"
    if not python.exists():
        uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")  # where `make setup` puts it
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(environment)], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(python), *PEERS]
        subprocess.run(install, check=True)
        here = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})["purelib"]
        # Behind its own packages, so that each server gets the versions it asks for, and all get our model.
        Path(here, "zz-ours.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{ROOT}\n")
    (environment / "lit.py").write_text(LITSERVE)
    (environment / "peer.py").write_text(BENTOML)
    (environment / "ray_peer.py").write_text(RAY)
    chosen = str(weights or "")

    def script(name: str) -> Callable[[int], list[str]]:
        return lambda port: [str(python), str(environment / name), str(port), chosen]

    def bento(port: int) -> list[str]:
        serve = [
            str(python),
            "-m",
            "bentoml",
            "serve",
            "peer:Peer",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        return ["env", "-C", str(environment), f"PEER_WEIGHTS={chosen}", *serve]

    def post(path: str, wrap: Callable[[dict[str, object]], object]) -> Callable[[int, bytes, int], Request]:
        def make(port: int, picture: bytes, number: int) -> Request:
            asked = {"image": base64.b64encode(picture).decode(), "seed": number}
            return request(port, path, json.dumps(wrap(asked)).encode(), "application/json")

        return make

    def plain(asked: dict[str, object]) -> object:
        return asked

    def listed(asked: dict[str, object]) -> object:
        return {"asked": [json.dumps(asked)]}

    return [
        Peer("LitServe", script("lit.py"), "/health", post("/predict", plain), "/health"),
        Peer("BentoML", bento, "/readyz", post("/reconstruct", listed), "/livez"),
        Peer("Ray Serve", script("ray_peer.py"), "/", post("/", plain), "/-/healthz"),
    ]


@contextmanager
def started(peer: Peer, log: Path) -> Iterator[int]:
    """Run a server on a free port of its own; yields the port.

    Raises:
        RuntimeError: It did not come up.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    with log.open("wb") as output:
        # A session of its own: some leave children behind when asked to stop, and those would answer the next run.
        process = subprocess.Popen(
            peer.command(port), cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}{peer.ready}", log)
            yield port
        finally:
            with suppress(ProcessLookupError):  # all have ended already
                os.killpg(process.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer:\n{log.read_text(errors='replace')[-2000:]}")
