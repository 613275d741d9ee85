"""The Use it tab: the programs it prints are run, the link it gives is opened."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.conftest import OpenPage
from tests.e2e.explore_page import ExplorePage
from tests.e2e.tabs import axe_findings, foreign, open_tab

pytestmark = pytest.mark.e2e

REPORT_MS = 120_000  # its first reading weighs the whole file, and a test machine may be busy
VIEWS = {
    "a rule": "?pic=cat&strategy=block&ratio=0.5&seed=3&paste=0",
    "a drawn mask": "?pic=coffee&m=_wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA&n=14x14",
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
    for command in (
        ["bash", "-euo", "pipefail", "-c", program(use, "curl")],
        [sys.executable, "-c", program(use, "python")],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    error = use.evaluate("window.unmask.store.state.result.answer.metrics.colour_error_percent")
    assert str(error) in done.stdout, "the answer is that of the result on Explore"
    panel = "reconstruction" if "paste=0" in view else "pasted"
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
    for part in ("small", "11,652,352", "CC-BY-NC-4.0", "224 × 224", "pixels"):
        assert part in card
    assert "never read a face" in use.one(".um-use-limits").inner_text()
    report = use.one(".um-use-report")
    report.wait_for(timeout=REPORT_MS)
    assert "Unmask" in report.inner_text()
    use.screenshot("use-1440-light", full=True)


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (768, "dark"), (390, "dark"), (320, "light")])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_it_fits_and_axe_finds_nothing(new_page: OpenPage, width: int, scheme: str, language: str) -> None:
    use = open_tab(new_page((width, 900), scheme), "use", language)
    use.one(".um-use-report").wait_for(timeout=REPORT_MS)
    assert use.evaluate("document.documentElement.scrollWidth") <= width
    assert axe_findings(use) == set()
    if language == "zh":
        assert foreign(use, "#unmask-use") == set()
    use.screenshot(f"use-{width}-{scheme}-{language}", full=True)
