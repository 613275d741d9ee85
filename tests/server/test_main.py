"""The mounted page: what Gradio would leave open stays closed, and its refusals are problems too."""

import asyncio
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from server.main import check_closed, filled, mount_page, paths
from server.security import PAGE_PATHS, is_api
from server.settings import Settings
from tests.server.conftest import FakeEngine, build_app, post, problem_of, running

SECRET = "only-on-the-disk"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that no visitor has uploaded."""
    path = tmp_path / "elsewhere" / "secret.txt"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "uploads"
    folder.mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    return folder


COMPONENTS = ("File", "Image", "JSON", "Textbox", "HTML", "Gallery")


async def mount_leaky_page(app: FastAPI) -> tuple[gr.Blocks, FastAPI]:
    """Mount inside a running event loop: where there is none, Gradio makes one and forgets to close it."""
    page = leaky_page()
    return page, mount_page(app, page, Settings())


def leaky_page() -> gr.Blocks:
    """A page with all that ever handed out files: components that echo what they are given."""
    page = gr.Blocks(analytics_enabled=False)
    with page:
        for name in COMPONENTS:
            given, returned = getattr(gr, name)(), gr.JSON()
            given.change(lambda value: str(value), given, returned, api_name=name.lower())
        content = gr.Textbox()
        file = gr.File()
        file.upload(lambda path: Path(path).read_text(), file, content, api_name="read")
    return page


@pytest.fixture
def mounted(engine: FakeEngine, uploads: Path) -> Iterator[tuple[TestClient, FastAPI]]:
    app, _ = build_app(engine)
    _, inside = asyncio.run(mount_leaky_page(app))
    with running(app) as client:
        yield client, inside


def file_data(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture
def bare(uploads: Path) -> Iterator[tuple[TestClient, gr.Blocks]]:
    """The page mounted as the service does it, behind none of the service's guards."""
    app = FastAPI()
    page, _ = asyncio.run(mount_leaky_page(app))
    with TestClient(app) as client:
        yield client, page


def call(client: TestClient, name: str, value: object) -> str:
    """What a visitor gets to see of one call of Gradio's own interface."""
    joined = client.post(f"/gradio_api/call/{name}", json={"data": [value]})
    assert joined.status_code == 200
    return client.get(f"/gradio_api/call/{name}/{joined.json()['event_id']}").text


def test_a_posted_path_is_never_read(bare: tuple[TestClient, gr.Blocks], secret: Path, uploads: Path) -> None:
    """The ways to a local file; only the flag that the mount sets stands between them and the disk."""
    client, _ = bare
    for name in ("read", *(component.lower() for component in COMPONENTS)):
        for value in (file_data(str(secret)), [file_data(str(secret))], {"inner": file_data(str(secret))}):
            seen = call(client, name, value)
            assert "event: error" in seen
            assert SECRET not in seen
    assert client.get(f"/gradio_api/file={secret}").status_code == 403
    assert not any(path.is_file() for path in uploads.rglob("*")), "a copy was made"


def test_the_probe_would_notice_an_open_hole(bare: tuple[TestClient, gr.Blocks], secret: Path) -> None:
    client, page = bare
    page.has_launched = False
    assert SECRET in call(client, "read", file_data(str(secret)))


def test_nothing_is_fetched_for_a_visitor(mounted: tuple[TestClient, FastAPI]) -> None:
    client, _ = mounted
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.3)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
        for path in (
            f"/gradio_api/file={address}",
            f"/gradio_api/file%3D{address}",
            f"/gradio_api/proxy={address}",
        ):
            problem_of(client.get(path), 404)
        body = {"data": [file_data(address)], "fn_index": 0, "session_hash": "s"}
        problem_of(client.post("/gradio_api/queue/join", json=body), 404)
        with pytest.raises(TimeoutError):
            listener.accept()


CLOSED = (
    "/gradio_api/runs",
    "/gradio_api/run-history/x",
    "/monitoring/summary",
    "/gradio_api/dev/reload",
    "/gradio_api/process_recording",
    "/gradio_api/component_server",
    "/gradio_api/call/read",
    "/gradio_api/call/v2/read",
    "/gradio_api/run/read",
    "/gradio_api/api/read",
    "/gradio_api/openapi.json",
    "/gradio_api/info",
    "/config",
    "/gradio_api/deep_link",
    "/gradio_api/custom_component/x",
    "/login",
    "/gradio_api/proxy=http://a.example",
    "/gradio_api/vibe-editor",
    "/gradio_api/app_id",
    "/gradio_api/upload",
    "/gradio_api/queue/join",
    "/gradio_api/queue/data",
    "/gradio_api/heartbeat/x",
    "/gradio_api/file=/etc/passwd",
    "/gradio_api/startup-events",
    "/gradio_api/reset",
    "/gradio_api/cancel",
    "//gradio_api/info",
    "/nope",
)


def test_paths_the_page_does_not_need_are_not_there(mounted: tuple[TestClient, FastAPI]) -> None:
    client, _ = mounted
    for path in CLOSED:
        problem_of(client.get(path), 404)
        problem_of(client.post(path, json={"data": []}), 404)


def test_no_socket_is_opened(mounted: tuple[TestClient, FastAPI]) -> None:
    client, _ = mounted
    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect("/gradio_api/queue/join"):
        pass
    assert closed.value.code == 1008


def test_names_that_no_file_can_have_are_not_there(mounted: tuple[TestClient, FastAPI]) -> None:
    client, _ = mounted
    for folder in ("/assets", "/static"):
        for name in ("a" * 3000, "%C3%A4" * 200, "a/" * 3000, "a%00b", "%FF", "a" * 200):
            problem_of(client.get(f"{folder}/{name}"), 404)


def test_no_route_of_gradio_reads_a_file_or_fetches_an_address(
    mounted: tuple[TestClient, FastAPI], secret: Path
) -> None:
    client, inside = mounted
    routes = sorted(set(paths(inside.routes)))
    assert len(routes) > 60, "gradio's routes are found"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.1)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        for route in routes:
            if is_api(filled(route)):
                continue
            for aim in (str(secret), f"..%2f..%2f..%2f..{secret}", address, quote(address, safe="")):
                for answer in (
                    client.get(filled(route, aim)),
                    client.post(filled(route, aim), json={"data": [file_data(aim)], "fn_index": 0}),
                ):
                    assert SECRET not in answer.text
                    assert answer.status_code in (200, 400, 403, 404, 405), (route, answer.status_code)
                    assert answer.status_code != 200 or filled(route) in PAGE_PATHS, route
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_start_is_refused_where_gradio_answers_more_than_was_looked_at(
    mounted: tuple[TestClient, FastAPI], bare: tuple[TestClient, gr.Blocks]
) -> None:
    _, inside = mounted
    _, page = bare
    check_closed(page, inside)

    @inside.get("/static/upload/{name}")
    def upload(name: str) -> str:
        return name

    with pytest.raises(RuntimeError, match="/static/upload"):
        check_closed(page, inside)
    inside.router.routes.pop()
    page.has_launched = False
    with pytest.raises(RuntimeError, match="posted"):
        check_closed(page, inside)


def test_refusals_inside_the_page_are_problems(mounted: tuple[TestClient, FastAPI]) -> None:
    client, inside = mounted
    problem_of(client.get("/assets/nope.js"), 404)
    problem_of(client.get("/assets/..%2f..%2fnope"), 403)
    problem_of(client.post("/theme.css"), 405)

    @inside.get("/static/broken")
    def broken() -> None:
        raise RuntimeError("inside details")

    inside.router.routes.insert(0, inside.router.routes.pop())
    assert "inside details" not in str(problem_of(client.get("/static/broken"), 500))


def test_the_api_keeps_its_own_paths_beside_the_page(mounted: tuple[TestClient, FastAPI]) -> None:
    client, _ = mounted
    assert post(client).status_code == 200
    problem_of(client.get("/reconstruct"), 405)
    problem_of(client.delete("/v1/reconstruct"), 405)
    problem_of(client.get("/v1/nope"), 404)
    assert "swagger" in client.get("/docs").text


def test_the_page_comes_with_a_policy_that_names_its_inline_scripts(
    mounted: tuple[TestClient, FastAPI],
) -> None:
    client, _ = mounted
    policies = set()
    for accepted, encoding in (("identity", None), ("gzip, br;q=0", "gzip"), ("br;q=0.1", "br")):
        page = client.get("/", headers={"accept-encoding": accepted})
        assert page.headers.get("content-encoding") == encoding
        policies.add(page.headers["content-security-policy"])
        assert page.headers["cache-control"] == "no-cache"
    assert len(policies) == 1, "the scripts are hashed as the browser unpacks them"
    assert page.status_code == 200
    assert "gradio" in page.text
    policy = page.headers["content-security-policy"]
    assert policy.count("'sha256-") >= page.text.count("<script>") > 0
    assert "'unsafe-inline'" not in policy.split("style-src")[0]
    assert "frame-ancestors 'self'" in policy
    for name in (
        "x-content-type-options",
        "referrer-policy",
        "permissions-policy",
        "cross-origin-opener-policy",
    ):
        assert name in page.headers


def test_files_of_the_page_are_packed_as_asked_for_and_tagged_as_what_they_are(
    mounted: tuple[TestClient, FastAPI],
) -> None:
    client, _ = mounted
    script = next(iter(re.findall(r"assets/index-[^\"]+\.js", client.get("/").text)))
    tags = {}
    for accepted, encoding in (("gzip;q=0, br;q=0", None), ("gzip, br;q=0", "gzip"), ("br", "br")):
        answer = client.get(f"/{script}", headers={"accept-encoding": accepted})
        assert answer.headers.get("content-encoding") == encoding
        tags[encoding] = answer.headers["etag"]
    assert tags["gzip"] == tags["br"] == f"W/{tags[None]}"


def test_a_forged_host_does_not_end_up_in_the_page(mounted: tuple[TestClient, FastAPI]) -> None:
    client, _ = mounted
    page = client.get("/", headers={"x-forwarded-host": "evil.example", "x-forwarded-proto": "https"})
    assert "evil.example" not in page.text
    assert "https://testserver" not in page.text
