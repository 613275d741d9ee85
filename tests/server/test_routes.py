import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import httpx
import jsonschema_rs
import pytest
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from model import PANELS, STRATEGIES, CheckpointError, Options
from server.app import create_app
from server.batcher import STAND_BACK
from server.samples import read_samples
from server.security import local_path
from server.settings import Settings
from tests.server.conftest import (
    FakeEngine,
    FakeJob,
    FakeResult,
    build_app,
    into,
    png,
    post,
    problem_of,
    running,
)

OPERATIONS = ("reconstruct", "reconstruct/batch", "embed", "settings")


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[TestClient]:
    app, _ = build_app(engine, max_bytes=64 * 1024)
    with running(app) as client:
        yield client


def fields_of(response: Any, status: int = 422) -> list[str]:
    return [error["field"] for error in problem_of(response, status)["errors"]]


def test_both_addresses_answer_the_same(client: TestClient) -> None:
    for path in ("/reconstruct", "/v1/reconstruct"):
        answer = client.post(path, files={"image": ("a.png", png())})
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        assert list(answer.json()["images"]) == ["masked", "reconstruction", "original"]
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_the_accept_header_picks_the_form(client: TestClient) -> None:
    wants = {
        "image/png": "image/png",
        "image/*": "image/png",
        "image/png;q=0.5, application/json": "application/json",
        "text/html, image/png, */*;q=0.8": "image/png",
        "image/webp": "image/webp",
        "image/jpeg, image/png;q=0.9": "image/jpeg",
        "image/avif, image/webp, */*;q=0.8": "image/webp",
        "*/*": "application/json",
        "*": "application/json",
        "": "application/json",
        "application/*": "application/json",
    }
    for accept, kind in wants.items():
        answer = post(client, headers={"accept": accept})
        assert answer.headers["content-type"] == kind, accept
    lines = httpx.Headers([("accept", "text/html"), ("accept", "image/png")])
    assert post(client, headers=lines).headers["content-type"] == "image/png", "they are one list"
    png_answer = post(client, headers={"accept": "image/png"})
    assert (png_answer.headers["x-unmask-seed"], png_answer.headers["x-unmask-hidden-count"]) == ("1", "1")
    assert fields_of(post(client, headers={"accept": "text/html"}), 406) == ["Accept"]
    assert fields_of(post(client, headers={"accept": "image/png;q=0, application/json;q=x"}), 406) == [
        "Accept"
    ]


def test_an_unknown_field_is_named_with_the_allowed_ones(client: TestClient) -> None:
    error = problem_of(post(client, mask_ratio="0.5"), 422)["errors"][0]
    assert error["field"] == "mask_ratio"
    for name in ("image", "ratio", "hidden_count", "seed", "indices", "drawing", "panels"):
        assert name in error["hint"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", "x"),
        ("seed", "1.5"),
        ("seed", "9" * 5000),
        ("seed", "٣"),
        ("hidden_count", "1e3"),
        ("ratio", "nan"),
        ("ratio", "1e999999999"),
        ("ratio", " "),
        ("indices", "1,2"),
        ("indices", "[1, true]"),
        ("indices", "[" * 30000),
        ("panels", "masked,mask"),
        ("panels", ","),
        ("panels", "masked,masked"),
        ("interpolation", "perhaps"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: str, client: TestClient) -> None:
    assert fields_of(post(client, None, **{field: value})) == [field]


@pytest.mark.parametrize("seed", ["--5", "-", "5-", "1e3", "1" * 13])
def test_a_number_that_is_none_is_told_in_words(seed: str, client: TestClient) -> None:
    assert (
        "'seed' is wrong: must be a whole number of at most 12 digits."
        in problem_of(post(client, seed=seed), 422)["detail"]
    )


def test_all_wrong_values_are_named_at_once(client: TestClient) -> None:
    assert fields_of(post(client, seed="x", ratio="y", panels="z")) == ["ratio", "seed", "panels"]


def test_a_repeated_field_is_refused(client: TestClient) -> None:
    answer = client.post("/reconstruct", files={"image": ("a", png())}, data={"seed": ["1", "2"]})
    assert fields_of(answer) == ["seed"]


def test_files_and_texts_are_not_mixed_up(client: TestClient) -> None:
    assert fields_of(client.post("/reconstruct", files={"seed": ("a", b"1"), "image": ("a", png())})) == [
        "seed"
    ]
    answer = client.post("/reconstruct", data={"image": "text"}, files={"drawing": ("a", png())})
    assert fields_of(answer) == ["image"]


def test_a_missing_picture_is_named(client: TestClient) -> None:
    assert fields_of(client.post("/reconstruct", files={"drawing": ("a", png())})) == ["image"]
    # what a browser sends for a file input left empty
    assert fields_of(client.post("/reconstruct", files={"image": ("", b"")})) == ["image"]


def test_what_is_left_empty_in_a_form_counts_as_left_out(client: TestClient) -> None:
    empty = {"seed": "", "ratio": "", "panels": "", "ssim": "", "drawing": ""}
    assert post(client, None, **empty).status_code == 200
    assert fields_of(post(client, sed="")) == ["sed"]


def test_a_form_never_touches_the_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpooledTemporaryFile, "rollover", lambda _: pytest.fail("it is on the disk"))
    large = client.post("/v1/reconstruct/batch", files={"images": ("a", bytes(2**21))})
    assert fields_of(large, 413) == ["images"], "read in full"


def test_a_packed_body_is_refused_by_name(client: TestClient) -> None:
    for encoding, status in (("gzip", 415), ("br, gzip", 415), ("Identity", 200)):
        answer = post(client, headers={"content-encoding": encoding})
        assert answer.status_code == status
        if status == 415:
            assert fields_of(answer, 415) == ["Content-Encoding"]
            assert encoding in answer.json()["detail"]


def test_of_many_mistakes_the_first_are_named_and_the_others_counted(client: TestClient) -> None:
    problem = problem_of(client.post("/reconstruct", json={f"f{number}": 0 for number in range(1000)}), 422)
    assert len(problem["errors"]) == 20
    assert "And 980 more are wrong." in problem["detail"]


@pytest.mark.parametrize("name", ["image", "drawing"])
def test_a_file_that_is_too_large_is_named(name: str, client: TestClient) -> None:
    files = {"image": ("a", png()), name: ("a", b"x" * (64 * 1024 + 1))}
    body = problem_of(client.post("/reconstruct", files=files), 413)
    assert body["errors"][0]["field"] == name
    assert "65536" in body["errors"][0]["hint"]
    files[name] = ("a", b"x" * (64 * 1024))
    assert client.post("/reconstruct", files=files).status_code != 413


@pytest.mark.parametrize("kind", ["text/plain", "video/mp4", "application/x-www-form-urlencoded", ""])
def test_another_kind_of_body_is_refused_with_the_accepted_ones(kind: str, client: TestClient) -> None:
    answer = client.post("/reconstruct", content=b"{}", headers={"content-type": kind})
    assert fields_of(answer, 415) == ["Content-Type"]
    for accepted in ("multipart/form-data", "image/*", "application/json"):
        assert accepted in answer.json()["detail"]


def test_one_mistake_is_told_with_its_remedy(client: TestClient) -> None:
    for asked, remedy in (
        ({"files": {"file": png()}}, "Allowed are image, drawing,"),
        ({"json": {"image": "https://example.org/cat.jpg"}}, "Send the file's bytes in base64"),
        ({"json": {"image": "", "crop": [0, 0, 224]}}, "'crop' is wrong: must be text. With fit 'square'"),
    ):
        assert remedy in client.post("/reconstruct", **asked).json()["detail"]


def test_a_broken_form_is_refused(client: TestClient) -> None:
    kind = {"content-type": "multipart/form-data"}  # written by hand, a common mistake
    assert fields_of(client.post("/reconstruct", content=b"nonsense", headers=kind), 400) == ["Content-Type"]
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert fields_of(client.post("/reconstruct", content=b"nonsense", headers=kind), 400) == ["body"]
    many = client.post("/reconstruct", files={"image": ("a", png())}, data={f"f{i}": "" for i in range(100)})
    assert fields_of(many, 400) == ["body"]
    assert "32 texts of 64 KiB" in many.json()["detail"]


@pytest.mark.parametrize("charset", ["punycode", "undefined", "latin-1", "a" * 60_000, '"utf-16"'])
def test_a_form_in_another_charset_is_refused_before_it_is_read(
    charset: str, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codecs.lookup", lambda _: pytest.fail("it is looked up"))
    kind = f"multipart/form-data; boundary=b; charset={charset}"
    answer = client.post("/reconstruct", content=b"--b--", headers={"content-type": kind})
    assert fields_of(answer, 415) == ["Content-Type"]
    assert "only utf-8 is accepted" in answer.json()["detail"]


def test_a_form_may_say_that_it_is_utf_8(client: TestClient) -> None:
    form = httpx.Request("POST", "http://t", files={"image": ("a", png())}, data={"seed": "1"})
    for charset in ("utf-8", '"UTF-8"'):
        headers = {"content-type": f"{form.headers['content-type']}; charset={charset}"}
        assert client.post("/reconstruct", content=form.read(), headers=headers).status_code == 200


def test_a_form_that_was_cut_off_is_refused_and_loses_no_field(client: TestClient) -> None:
    image = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + png()
    ratio = b'\r\n--b\r\nContent-Disposition: form-data; name="ratio"\r\n\r\n0.5'
    whole, headers = image + ratio + b"\r\n--b--", {"content-type": "multipart/form-data; boundary=b"}
    assert client.post("/reconstruct", content=whole, headers=headers).status_code == 200
    for missing in (1, 2, 5, 8, 20, len(ratio), len(ratio) + 20):
        refused = client.post("/reconstruct", content=whole[:-missing], headers=headers)
        assert "ends before its last boundary" in problem_of(refused, 400)["detail"]


def test_wrong_methods_and_paths_are_problems(client: TestClient) -> None:
    refused = client.get("/reconstruct")
    problem_of(refused, 405)
    assert refused.headers["allow"] == "POST"
    assert client.put("/v1/info").headers["allow"] == "GET, HEAD"
    for path in ("/nope", "/v1/nope", "/v1/samples/nope", "/v1/samples/..%2f..%2fetc"):
        problem_of(client.get(path), 404)


def test_a_path_that_ends_in_a_slash_leads_nowhere_else(client: TestClient) -> None:
    headers = {"host": "evil.example"}
    for path in ("/v1/models/", "/v1/reconstruct/", "/docs/", "/healthz/"):
        problem_of(client.get(path, headers=headers), 404)
    for path in ("/reconstruct/", "/v1/reconstruct/batch/"):
        problem_of(client.post(path, content=b"x" * 300_000, headers=headers), 404)


def test_health_is_told(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/v1/model").json() == {"name": "fake"}


def test_head_is_answered_wherever_get_is(client: TestClient) -> None:
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        head = client.head(path)
        assert head.status_code == (client.get(path).status_code if "get" in operations else 405), path
        assert "head" not in operations
        assert not head.content
    counted = client.get("/metrics").text
    assert 'unmask_requests_total{method="HEAD",route="/v1/info",status="200",surface="api"} 1.0' in counted


def test_a_draining_service_is_alive_but_not_ready(engine: FakeEngine) -> None:
    app, service = build_app(engine)
    with running(app) as client:
        service.drain()
        assert client.get("/healthz").status_code == 200
        for refused in (client.get("/readyz"), post(client)):
            problem_of(refused, 503)
            assert refused.headers["retry-after"]


def test_a_request_id_is_taken_over_only_when_harmless(client: TestClient) -> None:
    assert client.get("/healthz", headers={"x-request-id": "abc_1-2"}).headers["x-request-id"] == "abc_1-2"
    for bad in ("a" * 65, "a b", 'a"b'):
        assert client.get("/healthz", headers={"x-request-id": bad}).headers["x-request-id"] != bad


def test_a_mistake_of_ours_tells_nothing_about_the_inside(engine: FakeEngine) -> None:
    engine.fails_on = png()
    app, _ = build_app(engine)
    with running(app) as client:
        body = problem_of(post(client), 500)
        assert "network broke" not in json.dumps(body)
        assert post(client, png((1, 2, 3))).status_code == 200


def test_a_model_that_fails_while_it_computes_is_written_down(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: object) -> None:
        raise CheckpointError("small needs torch.", code="torch-missing", hint="Install it.")

    monkeypatch.setattr(engine, "prepare", prepare)
    app, _ = build_app(engine)
    with running(app) as client, capture_logs() as logs:
        problem_of(post(client), 500)
        batch = client.post("/v1/reconstruct/batch", files={"images": png()}).json()
    assert batch["items"][0]["problem"]["status"] == 500
    assert len([line for line in logs if line.get("exc_info")]) == 2


def test_a_mistake_of_ours_has_the_headers_of_every_answer(engine: FakeEngine) -> None:
    engine.fails_on = png()
    app, _ = build_app(engine, cors_origins=("https://a.example",))
    with running(app) as client:
        crashed, fine = (
            post(client, image, headers={"origin": "https://a.example"}) for image in (png(), png((1, 2, 3)))
        )
    problem_of(crashed, 500)
    assert "Origin" in crashed.headers["vary"]
    for name in ("access-control-allow-origin", "x-content-type-options", "referrer-policy"):
        assert crashed.headers[name] == fine.headers[name]


def test_a_request_that_is_given_up_at_the_end_is_told_to_come_again(engine: FakeEngine) -> None:
    app, service = build_app(engine)

    async def scene() -> httpx.Response:
        async with app.router.lifespan_context(app), httpx.AsyncClient(**into(app)) as client:
            engine.gate.clear()
            given_up = asyncio.create_task(client.post("/reconstruct", files={"image": ("a", png())}))
            await asyncio.to_thread(engine.entered.wait, 10)
            service.drain()
            given_up.cancel()  # as the server does once its patience is over
            answer = await given_up
            engine.gate.set()
            return answer

    answer = asyncio.run(scene())
    assert problem_of(answer, 503)["type"].endswith("shutting-down")
    assert answer.headers["retry-after"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_who_cancels_a_request_of_a_running_service_is_obeyed(engine: FakeEngine) -> None:
    app, _ = build_app(engine)

    async def scene() -> None:
        async with app.router.lifespan_context(app), httpx.AsyncClient(**into(app)) as client:
            engine.gate.clear()
            left = asyncio.create_task(client.post("/reconstruct", files={"image": ("a", png())}))
            await asyncio.to_thread(engine.entered.wait, 10)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            engine.gate.set()

    asyncio.run(scene())


def test_the_description_is_complete(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    assert description["openapi"].startswith("3.1")
    operation = description["paths"]["/v1/reconstruct"]["post"]
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["image"]
    assert form["properties"]["strategy"]["anyOf"][0]["enum"] == list(STRATEGIES)
    assert all(name in form["properties"]["panels"]["description"] for name in PANELS)
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "image/*", "application/json"}
    assert {parameter["name"] for parameter in operation["parameters"]} == set(form["properties"]) - {
        "image",
        "drawing",
    }
    for status in ("400", "406", "413", "415", "422", "503", "504"):
        assert "application/problem+json" in operation["responses"][status]["content"]
    assert "Retry-After" in operation["responses"]["503"]["headers"]


def test_every_operation_says_what_it_does_in_one_of_the_groups(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    operations = [each for path in description["paths"].values() for each in path.values()]
    assert all(len(operation["tags"]) == 1 for operation in operations)
    assert all(operation["summary"].endswith(".") for operation in operations)
    assert operations[0]["parameters"][0]["name"] == "strategy", "what a request is about comes first"
    groups = {operation["tags"][0] for operation in operations}
    assert groups == {tag["name"] for tag in description["tags"]}
    assert description["paths"]["/v1/models"]["get"]["tags"] == ["Models"]


def test_generated_clients_have_room_for_a_seed_and_get_the_bytes_of_a_picture(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    answer = description["components"]["schemas"]["ReconstructAnswer"]["properties"]["seed"]
    operation = description["paths"]["/v1/reconstruct"]["post"]
    (asked,) = (each["schema"] for each in operation["parameters"] if each["name"] == "seed")
    for schema in (
        answer["anyOf"][0],
        asked,
        operation["responses"]["200"]["headers"]["X-Unmask-Seed"]["schema"],
    ):
        assert (schema["type"], schema["format"]) == ("integer", "int64")
    (picture,) = description["paths"]["/v1/samples/{name}"]["get"]["responses"]["200"]["content"].values()
    assert picture["schema"]["format"] == "binary"
    batch = description["paths"]["/v1/reconstruct/batch"]["post"]["responses"]["406"]["content"]
    assert "application/x-ndjson" in batch["application/problem+json"]["example"]["detail"]


def test_the_description_is_valid_and_has_no_default_that_programs_would_send(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    for operation in (description["paths"][f"/v1/{name}"]["post"] for name in OPERATIONS):
        in_query = [parameter["schema"] for parameter in operation["parameters"]]
        for kind, content in operation["requestBody"]["content"].items():
            schema = content["schema"]
            jsonschema_rs.meta.validate(schema | {"$schema": "https://json-schema.org/draft/2020-12/schema"})
            fields = schema.get("properties", {}).values()
            for field in (*fields, *in_query):
                assert "default" not in field
                for example in field.get("examples", ()):
                    jsonschema_rs.validate(field, example)
            for example in content.get("examples", {}).values():
                jsonschema_rs.validate(schema, example["value"])
            if kind == "multipart/form-data":
                file = schema["properties"][schema["required"][0]]
                assert file.get("items", file)["contentMediaType"] == "application/octet-stream"


def test_refusals_are_described_as_they_are_made(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.fails_on = png((1, 2, 3))
    digest = hashlib.sha256(b"key").hexdigest()
    app, service = build_app(engine, client_rate="8/hour", api_keys=(digest,))
    hasty, _ = build_app(engine, deadline_s=0.1, api_keys=(digest,))
    key = {"x-api-key": "key"}

    def told(answer: Any) -> Any:
        """A problem without its request's id, and with the numbers and models of another service."""
        text = (
            json.dumps(answer | {"instance": ""})
            .replace("mini, mini-random", "fake")
            .replace("minute", "hour")
        )
        return json.loads(re.sub(r"\d+(\.\d+)?", "0", text))

    with running(app) as client:
        described = client.get("/openapi.json", headers=key).json()["paths"]

        def check(path: str, status: int, answer: Any, method: str = "post") -> None:
            content = described[path][method]["responses"][str(status)]["content"]
            assert told(content["application/problem+json"]["example"]) == told(problem_of(answer, status))

        def send(path: str = "/reconstruct", **body: Any) -> Any:
            asked: dict[str, Any] = {"headers": key, "files": {"image": png()}}
            return client.post(path, **asked | body)

        check("/v1/models", 401, client.get("/v1/models"), "get")
        check("/v1/models/{name}", 404, client.get("/v1/models/maxi", headers=key), "get")
        check("/reconstruct", 400, send(files=None, json=[]))
        check("/reconstruct", 406, send(headers=key | {"accept": "text/html"}))
        check("/reconstruct", 413, send(files={"image": bytes(16 * 2**20 + 1)}))
        check(
            "/reconstruct", 415, send(files=None, content=b"a", headers=key | {"content-type": "text/plain"})
        )
        check("/reconstruct", 422, send(data={"seed": "x"}))
        check("/reconstruct", 500, send(files={"image": engine.fails_on}))
        check("/v1/settings", 404, send("/v1/settings"))
        engine.gate.clear()
        with running(hasty) as other:
            check("/reconstruct", 504, other.post("/reconstruct", headers=key, files={"image": png()}))
            engine.gate.set()
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        octets = key | {"content-type": "application/octet-stream"}
        check("/v1/inspect", 501, send("/v1/inspect", files=None, content=b"a", headers=octets))
        check("/reconstruct", 429, send())
        service.drain()
        check("/readyz", 503, client.get("/readyz"), "get")


def test_every_reference_in_the_description_leads_somewhere(client: TestClient) -> None:
    description = client.get("/openapi.json").json()

    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from ([value["$ref"]] if "$ref" in value else [])
            value = list(value.values())
        if isinstance(value, list):
            for inner in value:
                yield from references(inner)

    for reference in set(references(description)):
        found = description
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def test_the_docs_page_asks_nobody_outside(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "://" not in page.text.replace("http://www.w3.org", "")
    for path in (
        "/docs-assets/swagger-ui-bundle.js",
        "/docs-assets/swagger-ui.css",
        "/docs-assets/favicon.png",
    ):
        assert path in page.text
        assert client.get(path).status_code == 200


def test_samples_are_listed_with_their_licence_and_cached(engine: FakeEngine) -> None:
    _, service = build_app(engine)
    with running(create_app(service, Settings(), read_samples())) as client:
        listed = client.get("/v1/samples").json()["samples"]
        assert len(listed) >= 6
        for sample in listed:
            assert sample["licence"] in ("CC0", "Public domain")
            photo = client.get(sample["url"])
            assert photo.headers["content-type"] == "image/jpeg"
            assert client.get(sample["thumb"]).headers["content-type"] == "image/webp"
            tag = photo.headers["etag"]
            for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
                again = client.get(sample["url"], headers={"if-none-match": known})
                assert (again.status_code, again.content) == (304, b"")
            assert again.headers.keys() >= {"etag", "cache-control"}
            assert client.get(sample["url"], headers={"if-none-match": '"other"'}).status_code == 200
        described = client.get("/openapi.json").json()["paths"]
        for path in ("/v1/samples/{name}", "/v1/samples/{name}/thumb"):
            responses = described[path]["get"]["responses"]
            assert "ETag" in responses["200"]["headers"]
            assert "content" not in responses["304"], "a copy that is kept still holds: without a body"


def test_addresses_in_answers_carry_the_prefix_of_a_proxy(engine: FakeEngine) -> None:
    _, service = build_app(engine)
    app = create_app(service, Settings(), read_samples())
    with TestClient(app, root_path="/unmask") as client:
        sample = client.get("/v1/samples").json()["samples"][0]
        assert sample["url"] == f"/unmask/v1/samples/{sample['name']}"
        assert client.get(sample["thumb"].removeprefix("/unmask")).status_code == 200


@pytest.mark.parametrize(
    ("path", "root", "local"),
    [
        ("/unmask", "/unmask", "/"),
        ("/unmask/docs", "/unmask", "/docs"),
        ("/docs", "/unmask", "/docs"),
        ("/docs", "", "/docs"),
    ],
)
def test_a_path_is_known_with_the_prefix_of_a_proxy_and_without(path: str, root: str, local: str) -> None:
    assert local_path({"path": path, "root_path": root}) == local


def test_a_full_queue_answers_503_before_the_body_is_read(engine: FakeEngine) -> None:
    engine.gate.clear()
    app, _ = build_app(engine, max_waiting=2)

    async def scene() -> None:
        async with app.router.lifespan_context(app), httpx.AsyncClient(**into(app)) as c:

            async def ask() -> httpx.Response:
                return await c.post("/reconstruct", files={"image": ("a", png())})

            taken = [asyncio.create_task(ask()) for _ in range(2)]
            await asyncio.to_thread(engine.entered.wait, 10)
            await asyncio.sleep(0.05)

            async def never_read() -> Any:
                raise AssertionError("the body was read")
                yield b""

            refused = await c.post(
                "/reconstruct",
                content=never_read(),
                headers={"content-type": "multipart/form-data; boundary=b"},
            )
            problem_of(refused, 503)
            assert int(refused.headers["retry-after"]) >= 1
            labelled = await c.post("/v1/settings", files={"image": ("a", png())})
            problem_of(labelled, 503)  # a header is small, and what stands in it may not be
            engine.gate.set()
            assert [answer.status_code for answer in await asyncio.gather(*taken)] == [200, 200]
            assert (await ask()).status_code == 200

    asyncio.run(scene())


def test_what_was_computed_does_not_wait_behind_what_is_decoded(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, decoding, decoded = png((9, 9, 9)), threading.Event(), threading.Event()

    def prepare(image: bytes, options: Options) -> FakeJob:
        if image == large:
            decoding.set()
            assert decoded.wait(20)
        return FakeJob(image)

    monkeypatch.setattr(engine, "prepare", prepare)
    engine.gate.clear()
    app, _ = build_app(engine, decode_threads=1)

    async def scene() -> None:
        async with app.router.lifespan_context(app), httpx.AsyncClient(**into(app)) as c:
            first = asyncio.create_task(c.post("/reconstruct", files={"image": ("a", png())}))
            await asyncio.to_thread(engine.entered.wait, 10)
            behind = asyncio.create_task(c.post("/reconstruct", files={"image": ("a", large)}))
            await asyncio.to_thread(decoding.wait, 10)
            engine.gate.set()
            try:
                assert (await asyncio.wait_for(first, 10)).status_code == 200
            finally:
                decoded.set()
            assert (await behind).status_code == 200

    asyncio.run(scene())


def test_pictures_at_full_size_are_made_one_at_a_time_and_nobody_else_waits(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, made, paint = [], threading.Event(), FakeResult.full_size

    def full_size(result: FakeResult, image: bytes, name: str) -> Any:
        begun.append(name)
        assert made.wait(20)
        return paint(result, image, name)

    monkeypatch.setattr(FakeResult, "full_size", full_size)
    app, _ = build_app(engine, decode_threads=4)
    large: dict[str, Any] = {"files": {"image": ("a", png())}, "headers": {"accept": "image/webp"}}

    async def scene() -> None:
        async with app.router.lifespan_context(app), httpx.AsyncClient(**into(app)) as c:
            held = [asyncio.create_task(c.post("/reconstruct?full_size=true", **large)) for _ in range(2)]
            while sum(map(len, engine.batches)) < 2:
                await asyncio.sleep(0.01)
            try:
                assert (await asyncio.wait_for(c.post("/reconstruct", **large), 10)).status_code == 200
                assert begun == ["pasted"]
            finally:
                made.set()
            assert [answer.status_code for answer in await asyncio.gather(*held)] == [200] * 2

    asyncio.run(scene())


def test_a_picture_waits_for_its_share_of_the_threads_that_decode(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(image: bytes, options: Options) -> FakeJob:
        time.sleep(0.4)
        return FakeJob(image)

    monkeypatch.setattr(engine, "prepare", prepare)
    app, service = build_app(engine, decode_threads=16)
    with running(app) as client:
        post(client)
        with service._line.admit("another network"):
            assert 0.4 / 16 <= service.turn("").wait_s < 0.4


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_who_decodes_or_encodes_stands_back_behind_who_answers(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, int] = {}

    def watched(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*given: Any) -> Any:
            seen[name] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            return work(*given)

        return noted

    monkeypatch.setattr(engine, "prepare", watched("decodes", engine.prepare))
    monkeypatch.setattr(engine, "finish", watched("encodes", engine.finish))
    app, _ = build_app(engine)
    with running(app) as client:
        assert post(client).status_code == 200
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert seen == dict.fromkeys(("decodes", "encodes"), max(STAND_BACK, mine))


def test_a_request_past_its_deadline_is_given_up(engine: FakeEngine) -> None:
    engine.gate.clear()
    app, _ = build_app(engine, deadline_s=0.1)
    with running(app) as client:
        problem_of(post(client), 504)
        engine.gate.set()
        # On a busy machine even what is quick takes a while.
        while (answer := post(client)).status_code == 504:
            pass
        assert answer.status_code == 200


def test_no_work_is_done_for_a_client_that_left(engine: FakeEngine) -> None:
    app, _ = build_app(engine)
    stays, left = png(), png((9, 9, 9))
    request = httpx.Request("POST", "http://t", files={"image": ("a", left)})
    content, kind = request.read(), request.headers["content-type"].encode()
    scope = {
        "type": "http", "method": "POST", "path": "/reconstruct", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", kind)], "server": ("t", 80), "client": ("c", 1), "scheme": "http",
    }  # fmt: skip
    sent: list[Any] = []

    async def scene() -> None:
        messages: Iterator[dict[str, Any]] = iter(
            [{"type": "http.request", "body": content}, {"type": "http.disconnect"}]
        )

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        async with app.router.lifespan_context(app), httpx.AsyncClient(**into(app)) as client:
            engine.gate.clear()  # the worker is busy when the other client comes and goes
            busy = asyncio.create_task(client.post("/reconstruct", files={"image": ("a", stays)}))
            await asyncio.to_thread(engine.entered.wait, 10)
            await app(scope, receive, send)
            engine.gate.set()
            assert (await busy).status_code == 200

    asyncio.run(scene())
    assert sent[0]["status"] == 499
    assert engine.batches == [[stays]]


def test_concurrent_pictures_are_never_mixed_up(engine: FakeEngine) -> None:
    app, _ = build_app(engine, max_queue_s=120.0)
    pictures = [png((shade, 0, 255 - shade)) for shade in range(40)]

    async def scene() -> None:
        async with app.router.lifespan_context(app), httpx.AsyncClient(**into(app)) as c:
            answers = await asyncio.gather(
                *(c.post("/reconstruct", files={"image": ("a", p)}) for p in pictures)
            )
        for picture, answer in zip(pictures, answers, strict=True):
            assert answer.json()["images"]["original"] == picture.hex()

    asyncio.run(scene())
    assert max(len(batch) for batch in engine.batches) > 1


def test_other_pages_may_call_only_when_allowed(engine: FakeEngine) -> None:
    for origins, answer in (((), None), (("https://a.example",), "https://a.example")):
        app, _ = build_app(engine, cors_origins=origins)
        engine.gate.set()
        with running(app) as client:
            headers = client.get("/healthz", headers={"origin": "https://a.example"}).headers
            assert headers.get("access-control-allow-origin") == answer


def test_other_pages_may_send_every_form_of_a_request(engine: FakeEngine) -> None:
    app, _ = build_app(engine, cors_origins=("https://a.example",))
    with running(app) as client:
        headers = {
            "origin": "https://a.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type,x-api-key",
        }
        assert client.options("/v1/reconstruct", headers=headers).status_code == 200
        refused = client.options("/v1/reconstruct", headers=headers | {"origin": "https://b.example"})
        assert "Disallowed CORS origin" in problem_of(refused, 400)["detail"]


def test_importing_the_server_loads_no_torch() -> None:
    code = "import sys, server.app, server.main; sys.exit('torch' in sys.modules or 'gradio' in sys.modules)"
    root = Path(__file__).parent.parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
