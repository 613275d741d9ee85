"""The key: asked for everywhere but for health, in three ways to send it."""

import asyncio
import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from server.app import create_app
from server.main import mount_page
from server.samples import read_samples
from server.settings import Settings
from tests.server.conftest import FakeEngine, build_app, post, problem_of, running

KEY = "gr\u00fcn"
DIGESTS = (hashlib.sha256(b"another").hexdigest(), hashlib.sha256(KEY.encode()).hexdigest())
BASIC = base64.b64encode(f"any:{KEY}".encode()).decode()


async def mount(app: FastAPI) -> None:
    """Mount inside a running event loop: where there is none, Gradio makes one and forgets to close it."""
    mount_page(app, gr.Blocks(analytics_enabled=False), Settings())


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[TestClient]:
    app, _ = build_app(engine, api_keys=DIGESTS)
    asyncio.run(mount(app))
    with running(app) as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": KEY.encode()},
        {"x-api-key": b"another"},
        {"authorization": b"Bearer " + KEY.encode()},
        {"authorization": f"basic {BASIC}"},
        {"authorization": f"Basic {BASIC}"},
    ],
)
def test_a_key_opens_page_and_api(headers: dict[str, str], client: TestClient) -> None:
    assert post(client, headers=headers).status_code == 200
    for path in ("/", "/docs", "/v1/models", "/metrics"):
        assert client.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": ""},
        {"x-api-key": DIGESTS[0]},
        {"x-api-key": b"\xff\xfe"},
        {"authorization": b"Bearer"},
        {"authorization": b"Basic " + KEY.encode()},
        {"authorization": f"Digest {BASIC}"},
        {"authorization": "Basic " + base64.b64encode(b"another").decode()},
    ],
)
def test_without_a_key_only_health_is_told(headers: dict[str, str], client: TestClient) -> None:
    answers: list[Any] = [post(client, headers=headers)]
    for path in (
        "/",
        "/docs",
        "/openapi.json",
        "/v1/models",
        "/v1/samples",
        "/metrics",
        "/assets/x",
        "/nope",
    ):
        answers.append(client.get(path, headers=headers))
    for answer in answers:
        body = problem_of(answer, 401)
        assert body["type"].endswith("unauthorised")
        assert answer.headers["www-authenticate"].startswith("Basic ")
    for path in ("/healthz", "/readyz"):
        assert client.get(path, headers=headers).status_code == 200


@pytest.mark.parametrize(("keys", "kept_by"), [((), "public"), (DIGESTS, "private")])
def test_what_needs_a_key_is_kept_by_no_shared_cache(
    keys: tuple[str, ...], kept_by: str, engine: FakeEngine
) -> None:
    _, service = build_app(engine)
    app = create_app(service, Settings(api_keys=keys), read_samples())
    with running(app) as client:
        for path in ("/v1/samples/cat", "/v1/samples/cat/thumb"):
            photo = client.get(path, headers={"x-api-key": "another"})
            assert photo.headers["cache-control"] == f"{kept_by}, max-age=86400"
        unknown = client.get("/v1/samples/nope", headers={"x-api-key": "another"})
        assert unknown.headers["cache-control"] == "no-store"


def test_the_description_says_how_to_send_it(client: TestClient) -> None:
    description = client.get("/openapi.json", headers={"x-api-key": "another"}).json()
    assert description["components"]["securitySchemes"]["key"]["name"] == "X-API-Key"
    assert "401" in description["paths"]["/v1/reconstruct"]["post"]["responses"]
    assert "401" not in description["paths"]["/healthz"]["get"]["responses"]
