"""The Compare tab: rows run, are labelled, name their options, follow Explore and can be kept."""

from __future__ import annotations

import io
import json
import urllib.request
from base64 import b64decode
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from PIL import Image
from playwright.sync_api import FilePayload, Locator, Route

from model import images
from model.__main__ import main
from tests.conftest import ROOT
from tests.e2e.conftest import OpenPage
from tests.e2e.explore_page import ExplorePage
from tests.e2e.test_pictures import HEIC, large_quarters, quarters, wait_for_picture

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

LONG = 240_000  # a row is many reconstructions, and the machine may be busy


@pytest.fixture(scope="module")
def compared(shared_page: OpenPage) -> ExplorePage:
    """The Compare tab, its first row run, for tests that only look at that row or run others."""
    return opened(shared_page().open())


@pytest.fixture
def compare(explore: ExplorePage) -> ExplorePage:
    """The Compare tab of this test's own, its first row run."""
    return opened(explore)


def opened(explore: ExplorePage) -> ExplorePage:
    explore.one("button[role=tab]").nth(1).click()
    pictures(explore, "ratios", 12)
    return explore


# The row says that Explore shows something else by now.
OLD = """(name) => document.querySelector(`.um-row-${name} .um-progress`).textContent.startsWith('Explore shows')"""


def row(page: ExplorePage, name: str) -> Locator:
    return page.one(f".um-row-{name}")


def pictures(page: ExplorePage, name: str, count: int) -> None:
    script = """([name, count]) => { const row = document.querySelector('.um-row-' + name);
      return row.querySelectorAll('.um-figure img').length === count && row.querySelector('.um-halt').hidden; }"""
    page.page.wait_for_function(script, arg=[name, count], timeout=LONG)


def test_the_ratios_run_by_themselves_and_agree_with_explore(compared: ExplorePage) -> None:
    captions = [
        text.replace("\xa0", " ") for text in row(compared, "ratios").locator("figcaption").all_inner_texts()
    ]
    assert [caption.split(" ")[0] for caption in captions] == ["50%", "60%", "75%", "85%", "90%", "95%"]
    error = compared.evaluate("window.unmask.store.state.result.answer.metrics.colour_error_percent")
    assert captions[2] == f"75% hidden\nerror {error:.1f}%"
    alts = row(compared, "ratios").locator("img").evaluate_all("(all) => all.map((image) => image.alt)")
    assert alts[4] == "Coffee, 147 of 196 patches hidden, Random"
    assert alts[5].startswith("Reconstruction of Coffee by mini")
    compared.screenshot("compare-ratios", full=True)


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.convert("RGB").tobytes()


# Seconds of waiting take hundredths.
HURRY = """() => {
  const later = window.setTimeout;
  window.setTimeout = (run, ms, ...all) => later(run, ms >= 500 ? ms / 100 : ms, ...all);
}"""


def test_after_an_outage_the_row_that_runs_by_itself_goes_on_by_itself(explore: ExplorePage) -> None:
    explore.expected = ("Failed to load resource", "ERR_")
    explore.evaluate(HURRY)
    explore.page.route("**/v1/reconstruct", lambda route: route.abort(), times=9)
    opened(explore)


def test_page_rest_and_command_line_give_the_same_pixels(
    compared: ExplorePage, server_url: str, tmp_path: Path
) -> None:
    lines = str(row(compared, "ratios").locator("pre").text_content()).splitlines()
    assert len(lines) == 6
    fields = {key: values[0] for key, values in parse_qs(lines[2]).items()}
    photo = urllib.request.urlopen(f"{server_url}/v1/samples/coffee").read()
    query = "&".join(f"{key}={value}" for key, value in fields.items())
    request = urllib.request.Request(
        f"{server_url}/v1/reconstruct?{query}",
        data=photo,
        headers={"Content-Type": "image/jpeg", "Accept": "application/json"},
    )
    answer = json.load(urllib.request.urlopen(request, timeout=120))
    shown = row(compared, "ratios").locator("img").nth(5).get_attribute("src") or ""
    picture = pixels(b64decode(shown.partition(",")[2]))
    assert pixels(b64decode(answer["images"]["pasted"].partition(",")[2])) == picture
    (tmp_path / "coffee.jpg").write_bytes(photo)
    options = {key: value for key, value in fields.items() if key in ("strategy", "ratio", "seed")}
    command = [
        "reconstruct",
        str(tmp_path / "coffee.jpg"),
        "--panels",
        "pasted",
        "--out",
        str(tmp_path / "out.png"),
    ]
    assert main([*command, *(part for key, value in options.items() for part in (f"--{key}", value))]) == 0
    assert pixels((tmp_path / "out.png").read_bytes()) == picture


def test_the_figures_of_the_paper_are_one_press_away(compare: ExplorePage) -> None:
    compare.one(".um-preset-fig4").click()
    pictures(compare, "ratios", 6)
    assert [text.split(" ")[0] for text in row(compare, "ratios").locator("figcaption").all_inner_texts()] == [
        "75%", "85%", "95%",
    ]  # fmt: skip
    compare.one(".um-preset-fig6").click()
    pictures(compare, "strategies", 12)
    captions = row(compare, "strategies").locator("figcaption b").all_inner_texts()
    assert captions == [
        "Random 75%", "mini", "mini-random", "The original",
        "Block 50%", "mini", "mini-block", "The original",
        "Grid 75%", "mini", "mini-grid", "The original",
    ]  # fmt: skip
    notes = row(compare, "strategies").locator("figcaption").all_inner_texts()
    assert "trained on Block 50% only" in notes[6].replace("\xa0", " ")
    assert "only" not in notes[5]
    assert compare.one(".um-trained").inner_text() == (
        "mini, the model used here, was trained with 65–85% of the patches hidden. "
        "Of its masks 90% were Random, 5% were Block, 5% were Grid."
    )
    cells = compare.one(".um-paper td").all_inner_texts()
    assert [cells[i] for i in (0, 1, 3, 4, 6, 7)] == ["84.9%", "73.5%", "83.9%", "72.3%", "84.0%", "66.0%"]
    compare.screenshot("compare-strategies", full=True)


def test_the_whole_picture_is_predicted_and_doubted(compared: ExplorePage) -> None:
    assert "reconstructions: 12" in row(compared, "whole").locator(".um-go").inner_text()
    row(compared, "whole").locator(".um-go").click()
    pictures(compared, "whole", 5)
    captions = row(compared, "whole").locator("figcaption").all_inner_texts()
    assert "4 masks that cover the picture" in captions[1]
    assert "most in row" in captions[2]
    assert "Where 8 masks disagree" in captions[4]
    compared.screenshot("compare-whole", full=True)


def test_the_sheet_holds_every_example_and_is_a_png(compared: ExplorePage) -> None:
    compared.one(".um-preset-fig2").click()
    pictures(compared, "gallery", 24)
    assert (
        compared.one(".um-row-gallery img").first.get_attribute("alt")
        == "Coffee, 157 of 196 patches hidden, Random"
    )
    with compared.page.expect_download() as waiting:
        compared.one(".um-sheet").click()
    kept = waiting.value.path().read_bytes()
    assert "compositeWithTrainedAlgorithmicMedia" in images.notes(kept)["xmp"]
    sheet = Image.open(io.BytesIO(kept))
    sheet.load()
    assert (sheet.format, waiting.value.suggested_filename) == ("PNG", "unmask-sheet-80.png")
    assert sheet.width >= 6 * 224
    assert sheet.height >= 4 * 224
    compared.screenshot("compare-gallery", full=True)


def test_own_pictures_make_a_sheet_and_a_broken_one_is_told(compare: ExplorePage) -> None:
    compare.expected = ("Failed to load resource",)
    hostile = "<img src=x onerror=document.title='owned'>.png"
    files: list[FilePayload] = [
        {"name": hostile, "mimeType": "image/png", "buffer": large_quarters()},
        {"name": "broken.png", "mimeType": "image/png", "buffer": b"this is no picture"},
        {"name": "IMG_1.HEIC", "mimeType": "image/heic", "buffer": HEIC},
    ]
    compare.one(".um-files .um-file").set_input_files(files)
    pictures(compare, "gallery", 3)
    captions = row(compare, "gallery").locator(".um-triptych > figcaption").all_inner_texts()
    assert captions[0].startswith(hostile)
    assert captions[1] == "broken.png could not be read"
    assert "IMG_1.HEIC is an iPhone photo" in captions[2]
    assert "Save it as JPEG" in captions[2]
    assert compare.page.title() == "Unmask"
    compare.one(".um-samples-again").wait_for()


def test_more_pictures_than_a_sheet_holds_are_told(compare: ExplorePage) -> None:
    files: list[FilePayload] = [
        {"name": f"{n}.txt", "mimeType": "text/plain", "buffer": b"no picture, and not sent"}
        for n in range(25)
    ]
    compare.one(".um-files .um-file").set_input_files(files)
    left_out = row(compare, "gallery").locator(".um-left-out")
    assert left_out.inner_text() == "The first 24 of your 25 pictures: a sheet holds no more."
    captions = row(compare, "gallery").locator(".um-triptych > figcaption")
    captions.nth(23).wait_for(timeout=LONG)
    assert captions.all_inner_texts() == [f"{n}.txt could not be read" for n in range(24)]
    compare.one(".um-language").click()
    assert left_out.inner_text().startswith("仅取 25 张图片")
    compare.one(".um-language").click()
    compare.one(".um-files .um-file").set_input_files(files[:2])
    assert left_out.inner_text() == ""


def test_the_walk_can_be_kept_as_one_moving_picture(compare: ExplorePage) -> None:
    compare.page.emulate_media(reduced_motion="reduce")
    compare.one(".um-walk-go").click()
    compare.one(".um-walk-save").wait_for(timeout=LONG)
    assert compare.one(".um-walk-label").inner_text().startswith("95% hidden"), "nothing plays by itself"
    compare.one(".um-walk-range").fill("0")
    assert compare.one(".um-walk-label").inner_text().startswith("10% hidden")
    with compare.page.expect_download() as waiting:
        compare.one(".um-walk-save").click()
    kept = waiting.value.path().read_bytes()
    assert "compositeWithTrainedAlgorithmicMedia" in images.notes(kept)["xmp"]
    moving = Image.open(io.BytesIO(kept))
    assert moving.format == "WEBP"
    assert getattr(moving, "n_frames", 1) == 18
    compare.screenshot("compare-walk", full=True)


def test_a_walk_plays_from_its_beginning_when_it_is_made(compare: ExplorePage) -> None:
    compare.one(".um-walk-go").click()
    compare.page.wait_for_function(
        """() => document.querySelector('.um-walk-go').textContent === 'Pause'
             && document.querySelector('.um-walk-label').textContent.startsWith('15%')""",
        timeout=LONG,
    )
    compare.one(".um-walk-go").click()
    assert compare.one(".um-walk-go").inner_text() == "Play"


def test_the_figures_of_all_tabs_take_turns(explore: ExplorePage) -> None:
    explore.evaluate(
        """() => {
          const ask = window.fetch; let under = 0; window.asked = 0; window.most = 0;
          window.fetch = (url, options) => {
            if (!String(url).endsWith('v1/reconstruct')) return ask(url, options);
            window.asked += 1; under += 1; window.most = Math.max(window.most, under);
            return ask(url, options).finally(() => { under -= 1; });
          };
        }"""
    )
    for place in (1, 2):
        explore.one("button[role=tab]").nth(place).click()
    explore.page.wait_for_function("window.asked >= 8", timeout=LONG)  # six of Compare, two of How it works
    assert explore.evaluate("window.most") == 1


def test_a_walk_ends_with_the_picture_it_was_begun_for(compare: ExplorePage) -> None:
    seen: list[Route] = []

    def three(route: Route) -> None:
        seen.append(route)
        if len(seen) <= 3:
            route.continue_()

    compare.page.route("**/v1/reconstruct", three)
    compare.one(".um-walk-go").click()
    compare.page.wait_for_function("() => !document.querySelector('.um-walk-stage').hidden")  # some frames
    compare.page.unroute("**/v1/reconstruct")
    other: FilePayload = {"name": "other.png", "mimeType": "image/png", "buffer": quarters()}
    compare.one(".um-file").first.set_input_files(other)
    compare.page.wait_for_function("() => window.unmask.state.picture.title === 'other.png'", timeout=LONG)
    compare.settle()
    compare.page.wait_for_function("() => document.querySelector('.um-walk-stage').hidden")
    assert compare.one(".um-walk-go").inner_text().startswith("Make the walk"), "anew"


def test_a_walk_that_was_stopped_goes_on_where_it_stopped(compare: ExplorePage) -> None:
    go, said = compare.one(".um-walk-go"), compare.one(".um-walk-progress")
    some = "() => Number(document.querySelector('.um-walk-range').max) >= 2"
    go.click()
    compare.page.wait_for_function(some, timeout=LONG)
    go.click()
    compare.page.wait_for_function(
        "() => document.querySelector('.um-walk-progress').textContent === 'Stopped.'"
    )
    made = int(compare.one(".um-walk-range").get_attribute("max") or 0) + 1
    assert go.inner_text() == f"Make the walk (reconstructions: {18 - made})"
    compare.one(".um-language").click()
    assert said.inner_text() == "已停止。"
    compare.one(".um-language").click()
    before = len(compare.sent())
    go.click()
    compare.one(".um-walk-save").wait_for(timeout=LONG)
    walked = [float(fields["ratio"]) for fields in compare.sent()[before:]]
    assert walked == [(10 + 5 * i) / 100 for i in range(made, 18)]


def test_another_language_relabels_and_asks_nothing(compare: ExplorePage) -> None:
    asked = len(compare.sent())
    compare.one(".um-language").click()
    assert row(compare, "ratios").locator("h2").inner_text() == "最多能遮住多少？"
    assert row(compare, "ratios").locator("figcaption").first.inner_text().startswith("遮住 50%")
    assert len(compare.sent()) == asked


def test_a_change_on_explore_is_told_and_not_followed_by_itself(compare: ExplorePage) -> None:
    tabs, line = compare.one("button[role=tab]"), row(compare, "ratios").locator(".um-progress").first
    tabs.nth(0).click()
    compare.click(2, 2)
    compare.settle()
    asked = len(compare.sent())
    tabs.nth(1).click()
    assert not line.text_content(), "a row with shares of its own would be asked the same"
    tabs.nth(0).click()
    compare.one(".um-shuffle").first.click()
    compare.settle()
    tabs.nth(1).click()
    compare.page.wait_for_function(
        "document.querySelector('.um-row-ratios .um-progress').textContent.startsWith('Explore shows')"
    )
    assert len(compare.sent()) == asked + 1


def test_a_row_keeps_the_name_of_what_it_was_asked_with(compare: ExplorePage) -> None:
    stale = "document.querySelector('.um-row-ratios .um-progress').textContent.startsWith('Explore shows')"
    image = row(compare, "ratios").locator("img").nth(1)
    before = image.get_attribute("alt")
    for name, told in (("Cat", True), ("Coffee", False)):
        compare.one("button[role=tab]").nth(0).click()
        compare.one(f".um-sample:has(img[alt={name}])").click()
        compare.page.wait_for_function(
            "(name) => window.unmask.store.state.picture.title === name", arg=name, timeout=LONG
        )
        compare.one("button[role=tab]").nth(1).click()
        compare.page.wait_for_function(f"{stale} === {str(told).lower()}")
        assert image.get_attribute("alt") == before, "still coffee's pictures"
    compare.one(".um-models select").select_option("mini-block")
    compare.page.wait_for_function(stale, timeout=LONG)


def test_each_row_is_told_to_be_old_by_what_it_was_made_with(explore: ExplorePage) -> None:
    tabs, file = explore.one("button[role=tab]"), io.BytesIO()
    Image.linear_gradient("L").resize((640, 320)).save(file, "PNG")
    explore.upload("wide.png", file.getvalue())
    wait_for_picture(explore, "wide.png")
    opened(explore)
    row(explore, "gallery").locator(".um-go").click()
    pictures(explore, "gallery", 24)

    tabs.nth(0).click()
    explore.one(".um-move-range").press("End")
    explore.page.wait_for_function("window.unmask.store.state.fields.crop === '320,0,320'")
    tabs.nth(1).click()
    explore.page.wait_for_function(OLD, arg="ratios")
    assert not explore.evaluate(OLD, "gallery"), "its pictures have nothing to do with that square"

    row(explore, "ratios").locator(".um-go").click()
    pictures(explore, "ratios", 12)
    tabs.nth(0).click()
    explore.one(".um-whole-row").click()
    explore.page.wait_for_function("window.unmask.store.state.fields.fit === 'whole'")
    explore.settle()
    tabs.nth(1).click()
    explore.page.wait_for_function(OLD, arg="ratios")

    for old in (False, True):
        tabs.nth(0).click()
        explore.one(".um-grid").click(position={"x": 40 if old else 4, "y": 4})
        explore.settle()
        tabs.nth(1).click()
        if not old:
            row(explore, "models").locator(".um-go").click()
            pictures(explore, "models", 4)
            assert not explore.evaluate(OLD, "models")
    explore.page.wait_for_function(OLD, arg="models")


def test_a_hostile_model_name_is_only_a_name(new_page: OpenPage) -> None:
    name = "${document.title='owned'}{{x}}<img src=x onerror=document.title='owned'>"
    explore = new_page()

    def two(route: Route) -> None:
        served = route.fetch().json()["models"]
        route.fulfill(json={"models": [*served, {**served[0], "name": name, "strategy": name}]})

    explore.page.route("**/v1/models", two)
    explore.open()
    explore.one(".um-models select").wait_for()
    assert name in explore.one(".um-models option").all_inner_texts()
    explore.one("button[role=tab]").nth(1).click()
    listed = "(name) => [...document.querySelector('.um-model-b').options].some((one) => one.value === name)"
    explore.page.wait_for_function(listed, arg=name, timeout=30_000)
    assert explore.page.title() == "Unmask"
    assert explore.one("img[src=x]").count() == 0


def test_what_the_lesson_says_of_its_third_step_is_so(server_url: str) -> None:
    photo = urllib.request.urlopen(f"{server_url}/v1/samples/astronaut").read()
    found = {}
    for rule in ("random&ratio=0.5", "block&ratio=0.5", "random&ratio=0.75", "grid&ratio=0.75"):
        assert f"tab=explore&pic=astronaut&strategy={rule}&seed=7" in (ROOT / "docs/lesson.md").read_text(
            encoding="utf-8"
        )
        request = urllib.request.Request(
            f"{server_url}/v1/reconstruct?strategy={rule}&seed=7&panels=masked",
            data=photo,
            headers={"Content-Type": "image/jpeg", "Accept": "application/json"},
        )
        found[rule] = json.load(urllib.request.urlopen(request, timeout=120))["metrics"]["ssim"]
    assert found["random&ratio=0.5"] > found["block&ratio=0.5"]
    assert found["random&ratio=0.75"] < found["grid&ratio=0.75"], "as much hidden, and sharper"


def test_shares_that_cannot_be_read_stay_as_typed_with_the_limits(compare: ExplorePage) -> None:
    field, told = compare.one(".um-ratios-text"), compare.one(".um-ratios-bad")
    for wrong in ("abc", "0, 100", ", ".join(str(share) for share in range(20, 40))):
        field.fill(wrong)
        field.blur()
        assert field.input_value() == wrong
        assert field.get_attribute("aria-invalid") == "true"
        assert told.inner_text() == "Up to 12 shares from 1 to 99%, with commas between them."
    field.fill("0.5,0.75")
    field.blur()
    assert (field.input_value(), told.inner_text()) == ("50, 75", "")
    assert "reconstructions: 2" in row(compare, "ratios").locator(".um-go").inner_text()


# A model by name is answered with the problem as often as is said, then as ever.
REFUSE_MODEL = """([name, problem, times]) => {
  const ask = window.fetch;
  window.fetch = (url, options) => {
    if (options?.body?.get?.('model') !== name || !times--) return ask(url, options);
    const body = JSON.stringify({ type: 'urn:unmask:problem:' + problem, status: 503 });
    return Promise.resolve(new Response(body, { status: 503, headers: { 'Retry-After': '2' } }));
  };
}"""


def test_a_model_that_cannot_be_had_is_named_and_the_other_one_shown(compare: ExplorePage) -> None:
    compare.one(".um-model-b").select_option("mini-block")
    compare.evaluate(REFUSE_MODEL, ["mini-block", "model-loading", 1])
    models = row(compare, "models")
    models.locator(".um-go").click()
    compare.page.wait_for_function(
        "document.querySelector('.um-row-models .um-progress').textContent === 'Model is loading'"
    )
    pictures(compare, "models", 4)
    compare.evaluate(REFUSE_MODEL, ["mini-block", "model-unavailable", 99])
    models.locator(".um-go").click()
    pictures(compare, "models", 3)
    assert models.locator(".um-progress").inner_text() == "1 of 2 could not be made: mini-block."


def test_an_example_that_cannot_be_fetched_leaves_its_place_empty(compare: ExplorePage) -> None:
    compare.expected = ("Failed to load resource",)
    compare.page.route("**/v1/samples/cat", lambda route: route.fulfill(status=404, json={"status": 404}))
    row(compare, "gallery").locator(".um-go").click()
    pictures(compare, "gallery", 21)
    captions = row(compare, "gallery").locator(".um-triptych > figcaption").all_inner_texts()
    assert captions[1] == "Cat could not be read"
    assert row(compare, "gallery").locator(".um-progress").inner_text() == "1 of 8 could not be made: Cat."
