"""What the description at `/docs` says beyond the types: bodies in three forms, examples, shared answers."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from server import problems, schemas
from server.answers import FORMS, JSON, NDJSON
from server.inputs import FORM, PICTURE
from server.schemas import BatchFields, ReconstructFields
from server.security import HEALTH_PATHS

BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
BASE64: dict[str, Any] = {"type": "string", "contentEncoding": "base64"}

# The smallest picture that is served: eight pixels square, one colour.
TINY = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR42mOMYoAAJgaKGAAbfgBq+MZE2wAAAABJRU5ErkJggg=="


def _files(kind: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        "image": kind | {"description": schemas.PHOTO},
        "drawing": kind | {"description": schemas.DRAWING},
    }


def _many(kind: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"images": {"type": "array", "items": kind, "description": "The photos. " + schemas.PHOTO}}


# What refusals look like: type, detail, and the field that is at fault.
PROBLEMS = {
    400: ("json", "The body is no JSON object.", "body"),
    401: ("unauthorised", "This service needs a key.", None),
    404: ("not-found", "There is nothing at this path. The API is described at /docs.", None),
    406: ("not-acceptable", "The answer comes in other forms, and 'Accept' excludes all of them.", "Accept"),
    413: ("too-large", "'image' is larger than the allowed 16 MiB.", "image"),
    415: ("content-type", "The body is 'text/plain', which is not accepted.", "Content-Type"),
    422: ("invalid-fields", "'seed' is wrong: must be a whole number.", "seed"),
    500: ("internal", "Something went wrong on our side.", None),
    503: (
        "overloaded",
        "The service is busy and its queue is full. Send the same request again in 2 s.",
        None,
    ),
    504: ("deadline-exceeded", "The request was given up after 10 s.", None),
}

KEYS = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
    "password": {"type": "http", "scheme": "basic", "description": "Any name; the key is the password."},
}

RECONSTRUCT: dict[str, Any] = {
    "parameters": schemas.query_parameters(ReconstructFields),
    "requestBody": {
        "required": True,
        "content": {
            FORM: {"schema": schemas.form_schema(ReconstructFields, _files(BINARY))},
            JSON: {
                "schema": schemas.json_schema(ReconstructFields, _files(BASE64)),
                "examples": {
                    "random": {
                        "summary": "Three of four patches, repeatable",
                        "value": {"image": TINY, "ratio": 0.75, "seed": 7},
                    },
                    "indices": {
                        "summary": "Chosen patches",
                        "value": {"image": TINY, "strategy": "indices", "indices": [0, 1, 14]},
                    },
                },
            },
            PICTURE: {"schema": BINARY},
        },
    },
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


BATCH: dict[str, Any] = {
    "parameters": schemas.query_parameters(BatchFields),
    "requestBody": {
        "required": True,
        "content": {
            FORM: {"schema": schemas.form_schema(BatchFields, _many(BINARY))},
            JSON: {
                "schema": schemas.json_schema(BatchFields, _many(BASE64)),
                "examples": {
                    "ratios": {
                        "summary": "One photo, two ratios, two seeds",
                        "value": {"images": [TINY], "ratios": [0.5, 0.75], "seeds": [1, 2]},
                    }
                },
            },
            PICTURE: {"schema": BINARY},
        },
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


def install(app: FastAPI, *, keyed: bool) -> None:
    """Complete the description of `app` with what its routes share.

    Args:
        app: The API.
        keyed: Whether it asks for a key.
    """
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas.components())
            if keyed:
                _add_keys(document)
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
                operation["responses"] |= {
                    str(status): answer for status, answer in problem_responses(401).items()
                }
