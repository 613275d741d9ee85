"""The Use it tab: the programs it prints are run, the link it gives is opened."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from PIL import Image
from playwright.sync_api import Route

from tests.conftest import ROOT
from tests.e2e.conftest import OpenPage
from tests.e2e.explore_page import ExplorePage
from tests.e2e.tabs import foreign, open_tab

pytestmark = pytest.mark.e2e

REPORT_MS = 120_000  # its first reading weighs the whole file, and a test machine may be busy
VIEWS = {
    "a rule": "?pic=cat&strategy=block&ratio=0.5&seed=3&paste=0",
    "a drawn mask": "?pic=coffee&m=_wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA&n=14x14",
    "its errors": "?pic=cat&show=error",
    "its uncertainty": "?pic=cat&show=uncertainty",
}


def program(use: ExplorePage, way: str) -> str:
    use.choose("use-ways", way)
    return use.one(".um-use-code").inner_text()


@pytest.fixture
def use(new_page: OpenPage) -> ExplorePage:
    return open_tab(new_page(), "use")


@pytest.mark.parametrize("view", VIEWS.values(), ids=list(VIEWS))
def test_curl_and_python_run_as_printed_and_give_the_picture_on_screen(
    new_page: OpenPage, view: str, tmp_path: Path
) -> None:
    page = new_page()
    page.url += view
    use = open_tab(page, "use")
    if "uncertainty" in view:
        use.page.wait_for_function("window.unmask.shown().spread", timeout=60_000)
    for command in (
        ["bash", "-euo", "pipefail", "-c", program(use, "curl")],
        [sys.executable, "-c", program(use, "python")],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    error = use.evaluate("window.unmask.store.state.result.answer.metrics.colour_error_percent")
    if "uncertainty" not in view:
        assert str(error) in done.stdout, "the answer is that of the result on Explore"
    shown = parse_qs(view[1:]).get("show", ["pasted"])[0]
    panel = "reconstruction" if "paste=0" in view else shown
    with Image.open(tmp_path / "result.png") as sheet, Image.open(tmp_path / f"{panel}.png") as picture:
        assert sheet.width >= 3 * picture.width
        left = (sheet.width - picture.width) // 2
        assert sheet.crop((left, 0, left + picture.width, picture.height)).tobytes() == picture.tobytes()


def test_javascript_runs_as_printed_in_the_browser(use: ExplorePage) -> None:
    logged: list[str] = []
    use.page.on("console", lambda message: logged.append(message.text))
    use.evaluate(f"(async () => {{ {program(use, 'javascript')} }})()")
    error = use.evaluate("window.unmask.store.state.result.answer.metrics.colour_error_percent")
    assert logged[0].startswith(str(error))


@pytest.mark.skipif(not shutil.which("node"), reason="no node here")
def test_javascript_runs_as_printed_without_a_browser(use: ExplorePage, tmp_path: Path) -> None:
    script = tmp_path / "request.mjs"
    script.write_text(program(use, "javascript"))
    done = subprocess.run(["node", script], capture_output=True, text=True, timeout=120, check=False)
    assert "pasted" in done.stdout, done.stderr


@pytest.mark.skipif(not shutil.which("node"), reason="no node here")
def test_code_for_a_picture_of_ones_own_runs_with_the_key_that_is_asked_for(
    new_page: OpenPage, tmp_path: Path
) -> None:
    page = new_page()
    page.expected = ("Failed to load resource",)

    def keyed(route: Route) -> None:  # the page asks without credentials whether there is a key
        body = {"type": "urn:unmask:problem:unauthorised", "status": 401}
        route.fulfill(status=401, json=body)

    page.page.route("**/v1/info", keyed)
    use = open_tab(page, "use")
    use.page.wait_for_function("document.querySelector('.um-use-code').textContent.includes('X-API-Key')")
    use.evaluate(
        """() => { const { store } = window.unmask, { picture } = store.state;
        store.set({ picture: { ...picture, sample: '' } }); }"""
    )
    use.page.wait_for_function("document.querySelector('.um-use-code').textContent.includes('photo.jpg')")
    assert "UNMASK_API_KEY" in use.one(".um-use-hint").inner_text()
    shutil.copy(ROOT / "model/samples/coffee.jpg", tmp_path / "photo.jpg")
    (tmp_path / "request.mjs").write_text(program(use, "javascript"))
    error = use.evaluate("window.unmask.store.state.result.answer.metrics.colour_error_percent")
    for command in (
        ["node", "request.mjs"],
        [sys.executable, "-c", program(use, "python")],
        ["bash", "-euo", "pipefail", "-c", program(use, "curl")],
    ):
        assert "UNMASK_API_KEY" in command[-1] or command[0] == "node"
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "UNMASK_API_KEY": "of no use here"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert command[0] == "bash" or done.stdout.startswith(str(error))
    (tmp_path / "photo.jpg").write_bytes(b"no picture")
    done = subprocess.run(
        ["node", "request.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert "image-" in done.stderr, "a refusal is told in the service's words"


def test_values_are_quoted_for_the_shell(use: ExplorePage, tmp_path: Path) -> None:
    """A model's name is whatever its file says."""
    name = "a'b $(touch harm) @c;d"
    use.evaluate(
        """(name) => { const { store } = window.unmask;
        store.set({ fields: { ...store.state.fields, model: name } }); }""",
        name,
    )
    use.page.wait_for_function("document.querySelector('.um-use-code').textContent.includes('touch')")
    printed = program(use, "curl").replace("curl ", "printf '%s\\n' ")
    done = subprocess.run(["bash", "-c", printed], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert f"model={name}" in done.stdout.splitlines()
    assert list(tmp_path.iterdir()) == []
    compile(program(use, "python"), "printed", "exec")


def test_an_own_picture_is_named_in_neither_code_nor_link(new_page: OpenPage) -> None:
    use = open_tab(new_page(), "use")
    use.evaluate(
        """() => { const { store } = window.unmask, { picture } = store.state;
        store.set({ picture: { ...picture, sample: '', title: 'holiday in private.jpg' } }); }"""
    )
    use.page.wait_for_function("document.querySelector('.um-use-code').textContent.includes('photo.jpg')")
    for way in ("curl", "python"):
        assert "photo.jpg" in program(use, way)
        assert "holiday" not in program(use, way)
    assert "pic=" not in use.one(".um-use-address").input_value()
    assert "not part of the link" in use.one(".um-use-link-hint").inner_text()


def test_copying_puts_code_and_link_on_the_clipboard(use: ExplorePage) -> None:
    use.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for button, text in ((".um-use-copy", program(use, "curl")), (".um-use-copy-link", None)):
        use.one(button).click()
        use.page.wait_for_function(f"document.querySelector('{button}').textContent === 'Copied'")
        expected = text or use.one(".um-use-address").input_value()
        assert use.evaluate("navigator.clipboard.readText()") == expected


def test_copying_works_without_the_modern_clipboard(use: ExplorePage) -> None:
    """On a plain http:// address of the network there is none."""
    use.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    use.one(".um-use-copy").click()
    use.page.wait_for_function("document.querySelector('.um-use-copy').textContent === 'Copied'")


def test_the_model_card_says_what_it_is_and_what_it_must_not_be_used_for(use: ExplorePage) -> None:
    card = use.one(".um-use-model").inner_text()
    for part in ("mini", "3,734,914", "CC-BY-NC-4.0", "224 × 224", "pixels"):
        assert part in card
    assert "6,400 steps, 409,600 crops of photos seen" in card
    assert "mini, after 16,300 steps and 742,400 crops" in card
    assert "never use it to identify a face" in use.one(".um-use-limits").inner_text()
    report = use.one(".um-use-report")
    report.wait_for(timeout=REPORT_MS)
    assert "Unmask" in report.inner_text()
    use.screenshot("use-1440-light", full=True)


def test_a_service_that_can_make_no_report_says_why(new_page: OpenPage) -> None:
    """Without torch there is only a note (server/reports.py)."""
    report = {"path": "mini.safetensors", "note": "Reports need torch."}
    page = new_page()
    page.page.route(
        "**/v1/models/mini", lambda route: route.fulfill(json=route.fetch().json() | {"report": report})
    )
    use = open_tab(page, "use")
    use.one(".um-use-report dd").wait_for(timeout=REPORT_MS)
    assert use.one(".um-use-report").inner_text().split("\n") == ["Note", "Reports need torch."]


@pytest.mark.timeout(600)  # the first report pulls torch into the server
def test_a_checkpoint_is_told_by_its_head_and_stays_where_it_is(use: ExplorePage, tmp_path: Path) -> None:
    use.expected = ("Failed to load resource",)
    use.one(".um-use-report").wait_for(timeout=REPORT_MS)
    bodies: list[int] = []
    use.page.on("request", lambda request: bodies.append(len(request.post_data_buffer or b"")))

    def choose(path: Path, said: str) -> None:
        use.one(".um-use-file").set_input_files(path)
        use.page.wait_for_function(
            "(said) => document.querySelector('.um-use-open-say').textContent.includes(said)",
            arg=said,
            timeout=REPORT_MS,
        )

    weights = ROOT / "weights" / "mini.safetensors"
    choose(weights, "the head of mini.safetensors tells")
    told = use.one(".um-use-opened").inner_text()
    for part in (
        "3,734,914",
        "mini",
        "encoder and decoder",
        "224 × 224",
        "6 blocks, 192 wide, 3 heads",
        "Ready to",
    ):
        assert part in told
    assert (
        use.one(".um-use-command-line").inner_text()
        == "UNMASK_MODELS=mini.safetensors .venv/bin/python -m server"
    )
    assert max(bodies) < 256 * 1024 < weights.stat().st_size, "the weights were not sent"
    use.screenshot("use-checkpoint", full=True)
    use.one(".um-language").click()
    assert foreign(use, ".um-use-open") <= {"safetensors"}
    assert "编码器和解码器" in use.one(".um-use-opened").inner_text()
    use.one(".um-language").click()

    sent = len(bodies)
    hostile = tmp_path / "${alert(1)}'; touch harm <img onerror=x>.pth"
    hostile.write_bytes(b"PK\x03\x04" + bytes(1000))
    choose(hostile, "is not a .safetensors file")
    line = (
        use.one(".um-use-command-line").inner_text().replace(".venv/bin/python -m model inspect", "printf %s")
    )
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == hostile.name
    assert len(bodies) == sent, "nothing of another file is sent"

    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:100_000])
    choose(cut, "cut.safetensors cannot be used")
    assert "it was cut" in use.one(".um-use-open-reason").inner_text()
    assert use.one(".um-use-opened").is_hidden()
    assert [path.name for path in tmp_path.iterdir() if path.name == "harm"] == []


def test_of_two_files_the_later_one_is_told_though_its_answer_comes_first(
    use: ExplorePage, tmp_path: Path
) -> None:
    use.expected = ("Failed to load resource",)
    asked: list[str] = []
    held: list[Route] = []

    def answer(route: Route) -> None:
        name = parse_qs(route.request.url.partition("?")[2])["name"][0]
        asked.append(name)
        if name == "first.safetensors":
            held.append(route)
        elif asked.count(name) == 1:
            route.fulfill(status=503, headers={"Retry-After": "2"}, json={"status": 503})
        else:
            route.fulfill(status=422, json={"detail": f"that is {name}"})

    use.page.route("**/v1/inspect*", answer)
    head = (2).to_bytes(8, "little") + b"{}"
    said = "document.querySelector('.um-use-open-say').textContent"
    for name in ("first", "second"):
        (tmp_path / f"{name}.safetensors").write_bytes(head)
        use.one(".um-use-file").set_input_files(tmp_path / f"{name}.safetensors")
        use.page.wait_for_function(f"{said} !== ''")
    use.page.wait_for_function(f"{said}.includes('Trying again in')")
    use.page.wait_for_function(f"{said} === 'second.safetensors cannot be used:'")
    held[0].fulfill(status=422, json={"detail": "too late"})
    use.page.wait_for_timeout(300)
    assert use.one(".um-use-open-reason").inner_text() == "that is second.safetensors"
    assert asked == ["first.safetensors", "second.safetensors", "second.safetensors"]
