"""One JSON line per request, and one per mistake of ours, all carrying the request id.

No file names, no picture bytes, no query text: a log may be read by people the pictures are not meant for.
"""

import logging
import sys
import time
from collections.abc import Callable

import structlog
from asgi_correlation_id import correlation_id
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = structlog.stdlib.get_logger("unmask.request")


def configure(level: str) -> None:
    """Send structlog's lines and those of all libraries to stdout as JSON.

    Args:
        level: Least level that is written: debug, info, warning or error.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request_id,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
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
    # uvicorn's own access log would double ours; httpx tells of every request gradio's client makes.
    for name, least in {"uvicorn.access": "CRITICAL", "uvicorn.error": "WARNING", "httpx": "WARNING"}.items():
        logging.getLogger(name).setLevel(least)


def _add_request_id(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if (request_id := correlation_id.get()) is not None:
        event["request_id"] = request_id
    return event


class AccessLog:
    """Writes the line and is the last boundary: what nobody caught is logged once and answered.

    Args:
        app: The next application.
        crashed: Makes the answer to a mistake of ours.
    """

    def __init__(self, app: ASGIApp, crashed: Callable[[], ASGIApp]) -> None:
        self.app = app
        self.crashed = crashed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception:
            logger.exception("request failed", method=scope["method"], path=scope["path"])
            if status == 0:
                await self.crashed()(scope, receive, watch)
        finally:
            took_ms = round((time.monotonic() - started) * 1000, 1)
            facts = {"method": scope["method"], "path": scope["path"], "status": status}
            logger.info("request", **facts, duration_ms=took_ms)
