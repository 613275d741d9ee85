"""What the description at `/docs` says beyond the types: bodies in three forms, examples, shared answers."""

import base64
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

from model import labels
from server import problems, schemas
from server.answers import FORMS, JSON, NDJSON
from server.inputs import FORM, PICTURE
from server.schemas import BatchFields, EmbedFields, NoFields, ReconstructFields
from server.security import HEALTH_PATHS

Schema = dict[str, Any]
Files = Callable[[Schema], dict[str, Schema]]

BINARY: Schema = {"type": "string", "format": "binary"}
BASE64: Schema = {"type": "string", "contentEncoding": "base64"}

# The smallest picture that is served: eight pixels square, one colour.
TINY = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR42mOMYoAAJgaKGAAbfgBq+MZE2wAAAABJRU5ErkJggg=="


# What refusals look like: type, detail, and the field that is at fault.
PROBLEMS = {
    400: ("json", "The body is no JSON object.", "body"),
    401: ("unauthorised", "This service needs a key.", None),
    404: ("not-found", "There is nothing at this path. The API is described at /docs.", None),
    406: ("not-acceptable", "The answer comes in other forms, and 'Accept' excludes all of them.", "Accept"),
    408: ("slow-body", "The request's body had not arrived after 60 s.", None),
    413: ("too-large", "'image' is larger than the allowed 16 MiB.", "image"),
    415: ("content-type", "The body is 'text/plain', which is not accepted.", "Content-Type"),
    422: ("invalid-fields", "'seed' is wrong: must be a whole number.", "seed"),
    429: (
        "too-many-requests",
        "A client may send 120 per 1 minute here, and this one sent more. Send the same request again in 12 s.",
        None,
    ),
    500: ("internal", "Something went wrong on our side.", None),
    501: ("no-torch", "Reports on weight files need torch, which this service comes without.", None),
    503: (
        "overloaded",
        "The service is busy and takes no more for the moment. Send the same request again in 2 s.",
        None,
    ),
    504: ("deadline-exceeded", "The request was given up after 10 s.", None),
}

KEYS = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
    "password": {"type": "http", "scheme": "basic", "description": "Any name; the key is the password."},
}

# The same, as it comes back from the service.
LABELLED = base64.b64encode(
    labels.write(
        np.full((8, 8, 3), 127, np.uint8),
        {labels.MARK: labels.FORM, "strategy": "random", "ratio": "0.75", "seed": 7, "panels": ["masked"]},
    )
).decode()


def body(
    model: type[BaseModel], files: Files, examples: Mapping[str, tuple[str, dict[str, Any]]]
) -> dict[str, Any]:
    """The description of a request in its three forms, and of its fields in the query.

    Args:
        model: The text fields.
        files: Makes the schema of each file field out of that of one file; the first is required.
        examples: As JSON, by name: what it shows, and the body.
    """
    listed = {name: {"summary": text, "value": value} for name, (text, value) in examples.items()}
    return {
        "parameters": schemas.query_parameters(model),
        "requestBody": {
            "required": True,
            "content": {
                FORM: {"schema": schemas.form_schema(model, files(BINARY))},
                JSON: {"schema": schemas.json_schema(model, files(BASE64)), "examples": listed},
                PICTURE: {"schema": BINARY},
            },
        },
    }


def _photo(kind: Schema) -> dict[str, Schema]:
    return {"image": kind | {"description": schemas.PHOTO}}


def _photo_and_drawing(kind: Schema) -> dict[str, Schema]:
    return _photo(kind) | {"drawing": kind | {"description": schemas.DRAWING}}


def _photos(kind: Schema) -> dict[str, Schema]:
    return {"images": {"type": "array", "items": kind, "description": "The photos. " + schemas.PHOTO}}


RECONSTRUCT = body(
    ReconstructFields,
    _photo_and_drawing,
    {
        "random": ("Three of four patches, repeatable", {"image": TINY, "ratio": 0.75, "seed": 7}),
        "indices": ("Chosen patches", {"image": TINY, "strategy": "indices", "indices": [0, 1, 14]}),
        "whole": (
            "The whole picture at its aspect",
            {"image": TINY, "fit": "whole", "grid": "12x18", "seed": 7},
        ),
        "complete": (
            "Every patch predicted from others",
            {"image": TINY, "cover": "complete", "panels": ["error"]},
        ),
    },
)
BATCH = body(
    BatchFields,
    _photos,
    {
        "ratios": (
            "One photo, two ratios, two seeds",
            {"images": [TINY], "ratios": [0.5, 0.75], "seeds": [1, 2]},
        )
    },
)
EMBED = body(EmbedFields, _photo, {"mean": ("Mean over the patches", {"image": TINY, "kind": "mean"})})
SETTINGS = body(NoFields, _photo, {"picture": ("A picture as it was answered", {"image": LABELLED})})

INSPECT: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/octet-stream": {"schema": BINARY}}}
}


def answer(schema: str) -> dict[str, Any]:
    """The description of an answer as JSON, by the name of its schema."""
    return {
        "description": "The answer.",
        "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


RECONSTRUCTION: dict[str, Any] = {
    "description": "The reconstruction.",
    "headers": {
        "X-Unmask-Seed": {"description": "Repeats the mask.", "schema": {"type": "integer"}},
        "X-Unmask-Hidden-Count": {"description": "Hidden patches.", "schema": {"type": "integer"}},
        "X-Unmask-Mask": {"description": "The mask's hash.", "schema": {"type": "string"}},
        "X-Unmask-Model": {"description": "SHA-256 of the weights.", "schema": {"type": "string"}},
        "ETag": {"description": "Where the request can be repeated.", "schema": {"type": "string"}},
    },
    "content": {
        media_type: {
            "schema": {"$ref": "#/components/schemas/ReconstructAnswer"} if media_type == JSON else BINARY
        }
        for media_type in FORMS
    },
}


BATCH_ANSWER: dict[str, Any] = {
    "description": "The reconstructions, in order.",
    "headers": {
        "X-Unmask-Items": {"description": "How many entries follow.", "schema": {"type": "integer"}},
        "X-Unmask-Model": {"description": "SHA-256 of the weights.", "schema": {"type": "string"}},
    },
    "content": {
        JSON: {"schema": {"$ref": "#/components/schemas/BatchAnswer"}},
        NDJSON: {"schema": {"$ref": "#/components/schemas/BatchItem"}},
    },
}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The description of refusals, with an example each.

    Args:
        statuses: Those a route answers with.
    """
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {
                problems.MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": _example(status),
                }
            },
        }
        for status in statuses
    }


def _example(status: int) -> dict[str, Any]:
    code, detail, field = PROBLEMS[status]
    errors = [{"field": field, "message": detail, "hint": "See the description."}] if field else []
    return {
        "type": problems.TYPE_PREFIX + code,
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": "6f1c0e7a5d0b4c0e9d6c2f4b8a7e3d21",
        "errors": errors,
    }


def install(app: FastAPI, *, keyed: bool, limited: bool) -> None:
    """Complete the description of `app` with what its routes share.

    Args:
        app: The API.
        keyed: Whether it asks for a key.
        limited: Whether one client may send only so much.
    """
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas.components())
            if keyed:
                _add_keys(document)
            if limited:
                for operations in document["paths"].values():
                    if "post" in operations:
                        _add_refusal(operations["post"], 429)
        return plain()

    app.openapi = openapi  # type: ignore[method-assign] # the framework's own way to extend it


def _add_keys(document: dict[str, Any]) -> None:
    document["components"]["securitySchemes"] = KEYS
    document["security"] = [{name: []} for name in KEYS]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path in HEALTH_PATHS:
                operation["security"] = []
            else:
                _add_refusal(operation, 401)


def _add_refusal(operation: dict[str, Any], status: int) -> None:
    operation["responses"] |= {str(status): answer for status, answer in problem_responses(status).items()}
