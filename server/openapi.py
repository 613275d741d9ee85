"""What the description at `/docs` says beyond the types: bodies in three forms, examples, shared answers."""

import base64
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from model import EVERY_PANEL, UnmaskError, provenance
from server import problems
from server.answers import FORMS, JSON, NDJSON, negotiate
from server.inputs import FORM, PICTURE, check, parse_object, unknown_kind
from server.responses import (
    BatchAnswer,
    EmbedAnswer,
    Problem,
    ReconstructAnswer,
    SettingsAnswer,
    WeightReport,
)
from server.schemas import SAMPLED, BatchFields, CommonFields, EmbedFields, NoFields, ReconstructFields
from server.security import HEALTH_PATHS
from server.settings import MIB

Schema = dict[str, Any]
Files = Callable[[Schema], dict[str, Schema]]

BINARY: Schema = {"type": "string", "format": "binary"}
# A file of a form: as OpenAPI 3.1 describes it, with what was usual before, which many programs still look for.
FILE = BINARY | {"contentMediaType": "application/octet-stream"}
BASE64: Schema = {"type": "string", "contentEncoding": "base64"}
NULL: Schema = {"type": "null"}
EMPTY: Schema = {"const": ""}

# The smallest picture that is served: eight pixels square, one colour.
TINY = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR42mOMYoAAJgaKGAAbfgBq+MZE2wAAAABJRU5ErkJggg=="


# How `/docs` groups the operations, in this order.
GROUPS = {
    "Reconstruct": "Hide patches of photos and let a model paint them.",
    "Read": "Features of a photo, how a picture was made, what a weight file is.",
    "Models": "What is served, and how it was trained.",
    "Samples": "Photos of known free licence to try.",
    "Service": "What the service takes, how long its line is, whether it is well.",
}

INSTANCE = "6f1c0e7a5d0b4c0e9d6c2f4b8a7e3d21"  # a request's id, for examples

KEYS = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
    "password": {"type": "http", "scheme": "basic", "description": "Any name; the key is the password."},
}

# The same, as it comes back from the service.
LABELLED = base64.b64encode(
    provenance.write(
        np.full((8, 8, 3), 127, np.uint8),
        {
            provenance.MARK: provenance.FORM,
            "strategy": "random",
            "ratio": "0.75",
            "seed": 7,
            "panels": ["masked"],
        },
    )
).decode()


JSON_TYPES: dict[str, Schema] = {
    "ratio": {"type": "number"},
    "indices": {"type": "array", "items": {"type": "integer"}},
    "panels": {"type": "array", "items": {"enum": list(EVERY_PANEL)}},
    "strategies": {"type": "array", "items": {"enum": list(SAMPLED)}},
    "ratios": {"type": "array", "items": {"type": "number"}},
    "seeds": {"type": "array", "items": {"type": "integer", "format": "int64"}},
}
PHOTO = "The photo: JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF."
DRAWING = "With strategy 'drawing': a black and white picture, white is hidden."


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
        "parameters": _query_parameters(model),
        "requestBody": {
            "required": True,
            "content": {
                FORM: {"schema": _form_schema(model, files(FILE))},
                JSON: {"schema": _json_schema(model, files(BASE64)), "examples": listed},
                PICTURE: {"schema": BINARY},
            },
        },
    }


def _form_schema(model: type[BaseModel], files: Mapping[str, Schema]) -> Schema:
    """The description of a form, where every text may be empty; the form at /docs sends them so.

    Args:
        model: The text fields.
        files: Schema of each file field; the first is required.
    """
    texts = {
        name: {"description": text, "anyOf": [kind, EMPTY], "examples": [""]}
        for name, (kind, text) in _texts(model).items()
    }
    return _object(model, files, texts)


def _json_schema(model: type[BaseModel], files: Mapping[str, Schema]) -> Schema:
    """The description of the same fields as JSON: numbers and lists are what they are, files are base64."""
    texts = {
        name: {"description": text, "anyOf": [JSON_TYPES.get(name, kind), NULL]}
        for name, (kind, text) in _texts(model).items()
    }
    return _object(model, files, texts)


def _query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    """The description of the same text fields in the query."""
    return [
        {"name": name, "in": "query", "required": False, "description": text, "schema": kind}
        for name, (kind, text) in _texts(model).items()
    ]


def _object(model: type[BaseModel], files: Mapping[str, Schema], texts: Mapping[str, Schema]) -> Schema:
    return {
        "title": model.__name__,
        "type": "object",
        "properties": {**files, **texts},
        "required": [next(iter(files))],
        "additionalProperties": False,
    }


def _texts(model: type[BaseModel]) -> dict[str, tuple[Schema, str]]:
    """What each text field is and means.

    What is left out stands in its words and is no default: programs send those, to every place that has one.
    """
    texts = {}
    properties = model.model_json_schema()["properties"]
    for name in sorted(properties, key=lambda name: name in CommonFields.model_fields):  # its own ones first
        described = properties[name]
        text = described.pop("description")
        kinds = [kind for kind in described.pop("anyOf", [described]) if kind != NULL]
        texts[name] = ({key: kinds[0][key] for key in kinds[0] if key not in ("default", "title")}, text)
    return texts


def _photo(kind: Schema) -> dict[str, Schema]:
    return {"image": kind | {"description": PHOTO}}


def _photo_and_drawing(kind: Schema) -> dict[str, Schema]:
    return _photo(kind) | {"drawing": kind | {"description": DRAWING}}


def _photos(kind: Schema) -> dict[str, Schema]:
    return {"images": {"type": "array", "items": kind, "description": "The photos. " + PHOTO}}


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
        "full_size": (
            "The photo at its own size, repainted: with 'Accept: image/png'",
            {"image": TINY, "full_size": True, "seed": 7},
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
        "X-Unmask-Seed": {
            "description": "Repeats the mask.",
            "schema": {"type": "integer", "format": "int64"},
        },
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


def _refusal(ask: Callable[..., object], *arguments: object) -> UnmaskError:
    """How something is refused, by asking for it."""
    try:
        ask(*arguments)
    except UnmaskError as error:
        return error
    raise AssertionError(f"{arguments} was to be refused")


# A refusal of each status as the service makes it, besides 500. A route that has another of a status names it.
REFUSED = (
    _refusal(parse_object, b"[]"),
    problems.UnauthorisedError(),
    problems.unknown("model", "maxi", ["mini", "mini-random"], field="model"),
    _refusal(negotiate, ["text/html"], FORMS),
    problems.SlowBodyError(60),
    problems.TooLargeError("image", 16 * MIB),
    unknown_kind("text/plain"),
    _refusal(check, ReconstructFields, {"seed": "x"}),
    problems.TooManyRequestsError("120 per 1 minute", 12),
    problems.NoTorchError(),
    problems.OverloadedError(2),
    problems.DeadlineExceededError(10),
)
REFUSALS = {answer.status_code: answer for answer in (problems.crashed(), *map(problems.from_error, REFUSED))}


RETRY_AFTER = {
    "Retry-After": {"description": "Seconds to wait before sending it again.", "schema": {"type": "integer"}}
}


def problem_responses(*refusals: int | UnmaskError) -> dict[int | str, dict[str, Any]]:
    """The description of refusals, with an example each.

    Args:
        refusals: Statuses a route answers with, or the error where it has one of its own.
    """
    answers = (REFUSALS[each] if isinstance(each, int) else problems.from_error(each) for each in refusals)
    return {
        answer.status_code: {
            "description": HTTPStatus(answer.status_code).phrase,
            **({"headers": RETRY_AFTER} if "retry-after" in answer.headers else {}),
            "content": {
                problems.MEDIA_TYPE: {
                    "schema": {"$ref": "#/components/schemas/Problem"},
                    "example": json.loads(bytes(answer.body)) | {"instance": INSTANCE},
                }
            },
        }
        for answer in answers
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
            document.setdefault("components", {}).setdefault("schemas", {}).update(_components())
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation["summary"], _, operation["description"] = operation["description"].partition(
                        "\n\n"
                    )
            if keyed:
                _add_keys(document)
            if limited:
                for operations in document["paths"].values():
                    if "post" in operations:
                        _add_refusal(operations["post"], 429)
        return plain()

    app.openapi = openapi  # type: ignore[method-assign] # the framework's own way to extend it


# What routes answer that encode it themselves.
HAND_DESCRIBED = (Problem, ReconstructAnswer, BatchAnswer, EmbedAnswer, SettingsAnswer, WeightReport)


def _components() -> dict[str, Schema]:
    """Answers that routes describe by hand, by name."""
    modes = [(model, "serialization") for model in HAND_DESCRIBED]
    _, top = models_json_schema(modes, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    definitions: dict[str, Schema] = top["$defs"]
    return definitions


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
