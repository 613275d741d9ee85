"""`python -m server`: serve page and API until SIGTERM or Ctrl-C, then exit with 0.

`python -m server cluster` does the same on Ray Serve, with replicas of the models.
"""

import argparse
import errno
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn
from pydantic import ValidationError

from server import logs
from server.models import find_sources
from server.protocol import Protocol
from server.settings import PREFIX, Settings, described, prepare_environment, unknown_variables

if TYPE_CHECKING:
    from server.service import Service

# Longer than the 60 s for which AWS's balancers and ingress-nginx keep theirs: who closes first must not be us, for
# what was just sent into a connection that closes is lost, and a POST is not sent again.
KEEP_ALIVE_S = 75
SWITCH_S = 0.001  # how long a thread that decodes or scores may keep the others waiting


class Server(uvicorn.Server):
    """uvicorn, announcing when it is ready and refusing new work as soon as it is asked to stop."""

    def __init__(self, config: uvicorn.Config, service: "Service", address: str) -> None:
        super().__init__(config)
        self.service = service
        self.address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        print(f"Unmask is ready at {self.address}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop: what runs is finished, what is new is refused."""
        self.service.drain()
        super().handle_exit(sig, frame)


def main() -> None:
    """Serve with the settings of the environment."""
    given = _read_arguments()
    on_cluster = given.pop("where") == "cluster"
    settings = _read_settings(given)
    signal.signal(signal.SIGTERM, _leave)
    listener = _bind(settings)
    logs.configure(settings.log_level)
    code: object = 0
    try:
        with tempfile.TemporaryDirectory(prefix="unmask-", ignore_cleanup_errors=True) as folder:
            if on_cluster:
                _serve_cluster(settings, listener)
            else:
                _serve(settings, listener, Path(folder))
    except KeyboardInterrupt:
        pass  # uvicorn raises it again after a clean stop
    except SystemExit as leaving:
        code = leaving.code
    logging.shutdown()
    sys.stdout.flush()
    # Everything is stopped and put away; taking torch and gradio apart would take the interpreter seconds more.
    os._exit(code if isinstance(code, int) else 0)


def _serve(settings: Settings, listener: socket.socket, folder: Path) -> None:
    from model import UnmaskError
    from server.main import build  # imports the page's library: after the checks that are quick

    (uploads := folder / "uploads").mkdir()
    (empty := folder / "empty").mkdir()
    try:
        app, service = build(settings, uploads)
    except UnmaskError as error:
        _fail(f"{error} {error.hint}")
    # What was loaded stays: a full collection would look through all of it, and nobody is answered meanwhile.
    gc.collect()
    gc.freeze()
    # The event loop gives the interpreter away at every read and write; it gets it back sooner than in 5 ms.
    sys.setswitchinterval(SWITCH_S)
    # Gradio may hand out files of the working folder when a handler names them: let there be none.
    os.chdir(empty)
    config = uvicorn.Config(
        app,
        http=partial(Protocol, refused=service.metrics.count_refused),  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        root_path=settings.root_path,
        forwarded_allow_ips=settings.believed,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.graceful_s,
    )
    Server(config, service, _address(listener, settings)).run(sockets=[listener])


def _serve_cluster(settings: Settings, listener: socket.socket) -> None:
    try:
        from server import cluster
    except ImportError as error:
        _fail(f"A cluster needs Ray Serve ({error}). Install it: uv pip install '.[cluster]'")
    address, port = _address(listener, settings), listener.getsockname()[1]
    listener.close()  # it was free; Ray's own front binds it
    cluster.start(settings.model_copy(update={"port": port}))
    signal.signal(signal.SIGTERM, _leave)  # Ray has put its own in place
    print(f"Unmask is ready at {address}", flush=True)
    try:
        signal.pause()
    finally:
        cluster.stop()


def _read_arguments() -> dict[str, Any]:
    """What stands on the command line: `where` to serve, and settings."""
    parser = argparse.ArgumentParser(
        prog="python -m server",
        usage="%(prog)s [cluster] [--host HOST] [--port PORT]",
        description="Serve page and API until SIGTERM or Ctrl-C.",
        epilog=f"Settings are environment variables, here with their defaults:\n\n{described()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "where", nargs="?", metavar="cluster", help="on Ray Serve, with replicas of the models"
    )
    for name in ("host", "port"):
        parser.add_argument(f"--{name}", help=f"in place of {PREFIX}{name.upper()}")
    given = vars(parser.parse_args())
    if given.setdefault("where", "here") not in ("here", "cluster"):
        parser.error(f"unrecognized argument: {given['where']}")
    return given


def _read_settings(given: Mapping[str, Any]) -> Settings:
    if unknown := unknown_variables():
        known = ", ".join(PREFIX + name.upper() for name in Settings.model_fields)
        _fail(f"Unknown setting {', '.join(unknown)}. Known are: {known}.")
    try:
        settings = Settings(**given)
    except ValidationError as error:
        names = [f"{PREFIX}{str(entry['loc'][0]).upper()}: {entry['msg']}" for entry in error.errors()]
        _fail("\n".join(names))
    try:
        if settings.models:  # told before torch is imported
            # The registry imports what listens to the environment at that moment.
            prepare_environment(settings, Path(tempfile.gettempdir()))
            find_sources(settings.models)
    except ValueError as error:
        _fail(f"{error} Set {PREFIX}MODELS to what is there, or leave it out.")
    if settings.run is None:
        return settings
    run = settings.run.absolute()
    try:
        next(run.iterdir(), None)
    except OSError as error:
        reason = f"{run!s:.200} is no folder that can be read ({error.strerror})"
        _fail(f"{reason}. Set {PREFIX}RUN to the folder of a run, or leave it out.")
    return settings.model_copy(update={"run": run})


def _bind(settings: Settings) -> socket.socket:
    """Take the port before the slow part, so that a taken one is told at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        reason = error.strerror or str(error)
        place = f"{settings.host} port {settings.port}"
        mend = "PORT to a free one"
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            mend = "HOST to an address of this machine, or to 0.0.0.0 for all of them"
        _fail(f"Cannot listen on {place}: {reason}. Set {PREFIX}{mend}.")
    return listener


def _address(listener: socket.socket, settings: Settings) -> str:
    """Where it listens: without the prefix, under which only a proxy answers."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listener.getsockname()[1]}"


def _leave(_: int, __: FrameType | None) -> None:
    """SIGTERM while loading leaves at once; later uvicorn has stopped already and raises it once more."""
    raise SystemExit(0)


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
