"""One JSON line per request, and one per mistake of ours, all carrying the request id.

No file names, no picture bytes, no query text: a log may be read by people the pictures are not meant for.
"""

import logging
import sys
from dataclasses import dataclass

import structlog
from asgi_correlation_id import correlation_id
from starlette.types import Scope

logger = structlog.stdlib.get_logger("unmask.request")


def configure(level: str) -> None:
    """Send structlog's lines and those of all libraries to stdout as JSON.

    Args:
        level: Lowest level that is written: debug, info, warning or error.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request_id,
    ]
    structlog.configure(
        # First: a line below the level costs nothing more.
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # uvicorn's own access log would double ours; httpx tells of every request gradio's client makes, Pillow of every
    # entry of a photo's EXIF, its place and its owner among them.
    least = {"uvicorn.access": "CRITICAL", "uvicorn.error": "WARNING", "httpx": "WARNING", "PIL": "WARNING"}
    for name, lowest in least.items():
        logging.getLogger(name).setLevel(lowest)


def _add_request_id(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if (request_id := correlation_id.get()) is not None:
        event["request_id"] = request_id
    return event


@dataclass(frozen=True)
class Seen:
    """A request that was answered.

    Attributes:
        scope: As the application left it, with the route it found.
        status: Of the answer, 0 where there was none.
        seconds: From the first byte to the last.
        surface: `page` for the service's own page in a browser, else `api`.
    """

    scope: Scope
    status: int
    seconds: float
    surface: str


def log_request(seen: Seen) -> None:
    """Write the line of a request.

    Args:
        seen: Which, and how it ended.
    """
    method, path = seen.scope["method"], seen.scope["path"]
    logger.info(
        "request", method=method, path=path, status=seen.status, duration_ms=round(1000 * seen.seconds, 1)
    )


def log_crash(scope: Scope) -> None:
    """Write down the mistake of ours that is being handled."""
    logger.exception("request failed", method=scope["method"], path=scope["path"])
