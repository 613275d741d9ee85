"""Errors as the client sees them: RFC 9457 problems, built in this one place.

Every refusal carries a stable type, what was wrong, the limit and what to do. An `UnmaskError` of the model
becomes a problem through `STATUS`; what nobody foresaw becomes a 500 that reveals nothing about the inside.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from asgi_correlation_id import correlation_id
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from model import CheckpointError, UnmaskError

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:unmask:problem:"
SCOPE_KEY = "unmask.problem"

# Codes of the model whose status is not 422; every other mistake of the caller is "unprocessable".
STATUS = {"image-format": 415, "image-pixels": 413}
OUR_FAULT = (CheckpointError,)


class ServiceError(UnmaskError):
    """A refusal by the service itself, not by the model."""

    status = 500
    title = "The service failed"

    def __init__(
        self,
        message: str,
        *,
        code: str,
        hint: str,
        field: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message, code=code, hint=hint, field=field)
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        self.errors: Sequence[Mapping[str, str]] = (
            [{"field": field, "message": message, "hint": hint}] if field else []
        )


class BadRequestError(ServiceError):
    """A request that cannot be understood, with the status that says why."""

    def __init__(self, message: str, *, status: int, code: str, hint: str, field: str | None = None) -> None:
        super().__init__(message, code=code, hint=hint, field=field)
        self.status = status
        self.title = _phrase(status)


def unknown(
    what: str, name: str, known: Iterable[str], *, status: int = 404, field: str = "name"
) -> BadRequestError:
    """The refusal of an unknown name.

    Args:
        what: Of what, in one word.
        name: As a client wrote it.
        known: Names that would be taken.
        status: HTTP status.
        field: Where it stood.
    """
    listed = ", ".join(known)
    return BadRequestError(
        f"There is no {what} '{name[:64]}'.",
        status=status,
        code=f"{what}-unknown",
        hint=f"Use one of {listed}." if listed else "See the list that named it.",
        field=field,
    )


MAX_NAMED = 20  # wrong fields in one problem


class InvalidFieldsError(ServiceError):
    """Form fields that are missing, unknown or wrong; all of them are named at once, or the first and how many more.

    Args:
        errors: Per bad field: `field`, `message`, `hint`.
    """

    status, title = 422, "Invalid fields"

    def __init__(self, errors: Sequence[Mapping[str, str]]) -> None:
        named = errors[:MAX_NAMED]
        messages = [error["message"] for error in named]
        if (more := len(errors) - MAX_NAMED) > 0:
            messages.append(f"And {more} more are wrong.")
        hint = named[0]["hint"] if len(errors) == 1 else "See 'errors' for what each field takes."
        super().__init__(" ".join(messages), code="invalid-fields", hint=hint)
        self.errors = named

    @classmethod
    def one(cls, field: str, message: str, hint: str) -> "InvalidFieldsError":
        """The same for a single field."""
        return cls([{"field": field, "message": message, "hint": hint}])


class TooLargeError(ServiceError):
    """More bytes than allowed."""

    status, title = 413, "Too large"

    def __init__(self, field: str, max_bytes: int) -> None:
        super().__init__(
            f"'{field}' is larger than the allowed {_size(max_bytes)}.",
            code="too-large",
            hint=f"Send at most {max_bytes} bytes; a smaller or more strongly compressed picture gives the same "
            "result; for a weight file the header is enough.",
            field=field,
        )


class SlowBodyError(ServiceError):
    """A body that did not arrive in time."""

    status, title = 408, "Too slow"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The request's body had not arrived after {seconds:g} s.",
            code="slow-body",
            hint="Send a smaller picture, or use a faster connection.",
        )
        self.headers = {"Connection": "close"}


class UnauthorisedError(ServiceError):
    """No key, or none of ours; the same answer for both."""

    status, title = 401, "Key needed"

    def __init__(self) -> None:
        super().__init__(
            "This service needs a key.",
            code="unauthorised",
            hint="Send it as 'X-API-Key', as 'Authorization: Bearer', or as the password a browser asks for.",
        )
        # The form browsers can ask for: the page's own requests then carry the key by themselves.
        self.headers = {"WWW-Authenticate": 'Basic realm="Unmask", charset="UTF-8"'}


class OverloadedError(ServiceError):
    """No room in the queue."""

    status, title = 503, "Busy"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(
            "The service is busy and takes no more requests for the moment.",
            code="overloaded",
            hint=f"Send the same request again in {retry_after_s} s.",
            retry_after_s=retry_after_s,
        )


class TooManyRequestsError(ServiceError):
    """More requests than one client may send."""

    status, title = 429, "Too many requests"

    def __init__(self, rate: str, retry_after_s: int) -> None:
        super().__init__(
            f"A client may send {rate} here, and this one sent more.",
            code="too-many-requests",
            hint=f"Send the same request again in {retry_after_s} s.",
            retry_after_s=retry_after_s,
        )


class ShuttingDownError(ServiceError):
    """The service stops and takes no new work."""

    status, title = 503, "Stopping"

    def __init__(self) -> None:
        super().__init__(
            "The service is stopping.",
            code="shutting-down",
            hint="Send the same request again soon.",
            retry_after_s=5,
        )


class ModelUnavailableError(ServiceError):
    """A model that is offered and cannot be had: its file is broken, or it does not fit into memory."""

    status, title = 503, "Model unavailable"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The model '{name}' cannot be loaded; the log of the service says why.",
            code="model-unavailable",
            hint="Use another one from /v1/models.",
            field="model",
            retry_after_s=30,
        )


class ModelLoadingError(ServiceError):
    """A model that is being loaded, and will be there soon."""

    status, title = 503, "Model loading"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The model '{name}' is still being loaded.",
            code="model-loading",
            hint="Send the same request again in 2 s.",
            field="model",
            retry_after_s=2,
        )


class ReportPendingError(ServiceError):
    """A report on a weight file that is being made, and will be there soon."""

    status, title = 503, "Report pending"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The report on '{name}' is still being made.",
            code="report-pending",
            hint="Send the same request again in 2 s.",
            field="name",
            retry_after_s=2,
        )


class NoTorchError(ServiceError):
    """A report that this service has not the means to make."""

    status, title = 501, "No torch"

    def __init__(self) -> None:
        super().__init__(
            "Reports on weight files need torch, which this service does not have.",
            code="no-torch",
            hint="Inspect the file with python -m model inspect FILE.",
        )


class DeadlineExceededError(ServiceError):
    """The work took longer than a request may take."""

    status, title = 504, "Too slow"

    def __init__(self, deadline_s: float) -> None:
        super().__init__(
            f"The request was given up after {deadline_s:g} s.",
            code="deadline-exceeded",
            hint="Send the same request again when the service is less busy.",
        )


class TooMuchWorkError(ServiceError):
    """One request that would hold up everybody for longer than any may take."""

    status, title = 422, "Too much work"

    def __init__(self, expected_s: float, deadline_s: float) -> None:
        super().__init__(
            f"This would take about {expected_s:.0f} s; the limit is {deadline_s:g} s.",
            code="too-much-work",
            hint="Ask for fewer samples, a smaller grid or a smaller model.",
        )


class ClientGoneError(ServiceError):
    """The client hung up; nobody reads the answer, the log does."""

    status, title = 499, "Client closed the connection"

    def __init__(self) -> None:
        super().__init__("The client closed the connection.", code="client-gone", hint="Nothing to do.")


class ProblemResponse(JSONResponse):
    """An answer that says in the request's scope which problem it is, for the count of refusals."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        """As ASCII: what a client wrote may hold lone surrogates, which no other encoding takes."""
        self.code = content["type"].removeprefix(TYPE_PREFIX)
        return json.dumps(content, allow_nan=False).encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        scope[SCOPE_KEY] = self.code
        await super().__call__(scope, receive, send)


def problem(
    status: int,
    code: str,
    *,
    detail: str,
    title: str | None = None,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Build the answer for one problem.

    Args:
        status: HTTP status.
        code: Stable slug; ends up in `type`.
        detail: What happened and what to do, for a person.
        title: The same for all problems of a type; the status phrase by default.
        errors: Per bad field: `field`, `message`, `hint`.
        headers: Further response headers.
    """
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + code,
        "title": title or _phrase(status),
        "status": status,
        "detail": detail,
        "instance": correlation_id.get(),
        "errors": [dict(error) for error in errors],
    }
    return ProblemResponse(body, status, {"Cache-Control": "no-store", **(headers or {})})


def from_error(error: UnmaskError) -> JSONResponse:
    """The problem for an error of the model or the service."""
    if isinstance(error, OUR_FAULT):
        return crashed()
    detail = f"{error} {error.hint}"
    if isinstance(error, ServiceError):
        return problem(
            error.status,
            error.code,
            title=error.title,
            detail=detail,
            errors=error.errors,
            headers=error.headers,
        )
    fields = [{"field": error.field, "message": str(error), "hint": error.hint}] if error.field else []
    return problem(STATUS.get(error.code, 422), error.code, detail=detail, errors=fields)


def crashed() -> JSONResponse:
    """The answer to a mistake of ours; the log has the details under the same request id."""
    detail = "Something went wrong on our side. If it happens again, report the request id in 'instance'."
    return problem(500, "internal", detail=detail)


def install(app: FastAPI) -> None:
    """Answer every error of `app` as a problem; mounted apps do not inherit this and need their own call."""

    async def on_unmask(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, UnmaskError)  # the registration below guarantees it
        if isinstance(error, OUR_FAULT):
            raise error  # to the last boundary, which writes it down
        return from_error(error)

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return _from_http(request, error)

    async def on_validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _from_validation(error)

    async def on_disconnect(_: Request, __: Exception) -> JSONResponse:
        return from_error(ClientGoneError())

    async def on_crash(_: Request, __: Exception) -> JSONResponse:
        return crashed()

    app.add_exception_handler(UnmaskError, on_unmask)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
    app.add_exception_handler(Exception, on_crash)


def _from_http(request: Request, error: HTTPException) -> JSONResponse:
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"  # always together, see `app.Head`
    path = request.url.path
    hints = {
        404: f"There is nothing at {path}. The API is described at /docs.",
        405: f"{request.method} is not possible at {path}; allowed: {headers.get('Allow', 'see /docs')}.",
    }
    default = str(error.detail) if error.status_code < 500 else _phrase(error.status_code)
    if error.status_code == 503:
        headers.setdefault("Retry-After", "2")  # gradio's full queue says none
    slug = _phrase(error.status_code).lower().replace(" ", "-")
    return problem(error.status_code, slug, detail=hints.get(error.status_code, default), headers=headers)


def _from_validation(error: RequestValidationError) -> JSONResponse:
    # The input itself is left out: it is the client's data and may be large.
    errors = [
        {
            "field": ".".join(str(part) for part in entry["loc"][1:]) or str(entry["loc"][0]),
            "message": f"{entry['msg']}.",
            "hint": "See /docs for what is allowed.",
        }
        for entry in error.errors()
    ]
    return from_error(InvalidFieldsError(errors))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused"


def _size(count: int) -> str:
    return f"{count / 1024**2:g} MiB" if count >= 1024**2 else f"{count / 1024:g} KiB"
