"""What a visitor meets before touching anything."""

from __future__ import annotations

import pytest
from playwright.sync_api import Route

from tests.e2e.conftest import OpenPage

pytestmark = pytest.mark.e2e

SIZES = ((1440, 900), (1100, 800), (768, 1024), (390, 844), (320, 640))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_view_is_a_finished_result(new_page: OpenPage, scheme: str) -> None:
    explore = new_page(scheme=scheme).open()
    assert explore.one(".um-count").inner_text() == "147 of 196 patches hidden"
    assert explore.mask.count("1") == 147
    sentence = explore.one(".um-sentence").inner_text()
    assert sentence.startswith("The model saw 49 of 196 patches.")
    assert "a plain fill:" in sentence
    assert explore.one("h1").inner_text() == "Hide most of a picture. The model fills in the rest."
    assert explore.status == ""
    assert explore.evaluate("document.body.classList.contains('dark')") is (scheme == "dark")
    background = explore.evaluate(
        "getComputedStyle(document.querySelector('.gradio-container')).backgroundColor"
    )
    assert background == ("rgb(15, 18, 22)" if scheme == "dark" else "rgb(255, 255, 255)")
    assert len(explore.sent()) == 1, "one request is enough for the first result"
    explore.screenshot(f"first-1440-{scheme}")


def test_the_page_is_light_to_load(new_page: OpenPage) -> None:
    explore = new_page(cold=True)
    sizes: list[int] = []
    session = explore.page.context.new_cdp_session(explore.page)
    session.send("Network.enable")
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    explore.open()
    explore.page.wait_for_timeout(500)
    assert sum(sizes) < 600_000, "a result on screen, everything counted as it went over the line"
    assert len(explore.requests) < 80


def test_no_width_scrolls_sideways(new_page: OpenPage, subtests: pytest.Subtests) -> None:
    explore = new_page(SIZES[-1]).open()
    for width, height in SIZES:
        explore.resize(width, height)
        with subtests.test(width=width):
            assert explore.evaluate("document.documentElement.scrollWidth") <= width
            overflowing = explore.evaluate(
                """() => [...document.querySelectorAll('.um *, .um-head *')].filter((n) => n.checkVisibility()
                     && !n.closest('.um-unseen, .um-skip, dialog')
                     && n.getBoundingClientRect().right > innerWidth + 0.5).map((n) => n.className)"""
            )
            assert overflowing == []
            side = explore.one(".um-grid").bounding_box()
            assert side is not None
            assert side["width"] % 14 == 0, "patches are whole pixels"
            explore.screenshot(f"width-{width}", full=True)


def test_a_phone_has_touchable_patches_and_shows_the_result_below(new_page: OpenPage) -> None:
    explore = new_page((390, 844), touch=True).open()
    grid, result, bar = (explore.one(s).bounding_box() for s in (".um-grid", ".um-result", ".um-sticky"))
    assert grid is not None
    assert result is not None
    assert bar is not None
    assert grid["width"] / 14 == 24
    assert grid["x"] >= 27, "room beside the grid to scroll the page"
    assert bar["y"] - result["y"] >= 180, "much of the result is seen above the bar"
    explore.screenshot("first-390-light")


@pytest.mark.parametrize("size", [(844, 390), (667, 375)])
def test_on_a_phone_that_lies_both_pictures_fit_on_one_screen(
    new_page: OpenPage, size: tuple[int, int]
) -> None:
    explore = new_page(size, touch=True).open()
    left, right = (explore.one(s).bounding_box() for s in (".um-grid", ".um-result"))
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    assert 22 * 14 <= left["height"] <= size[1] - 44, "with their captions"
    explore.screenshot(f"lying-{size[0]}")


def test_where_the_page_is_long_in_coming_its_name_is_seen(new_page: OpenPage) -> None:
    explore = new_page(cold=True)
    held: list[Route] = []
    explore.page.route("**/assets/index-*.js", lambda route: held.append(route), times=1)
    explore.page.goto(explore.url, wait_until="commit")
    before = "getComputedStyle(document.querySelector('gradio-app'), '::before')"
    explore.page.wait_for_function(f"{before}.visibility === 'visible'")
    assert explore.evaluate(f"{before}.content") == '"Unmask"'
    held[0].continue_()
    explore.settle()
    assert explore.evaluate(f"{before}.content") == "none"


def test_the_colours_can_be_switched_and_stay(new_page: OpenPage) -> None:
    explore = new_page().open()
    explore.one(".um-theme").click()
    assert explore.evaluate("document.body.classList.contains('dark')")
    explore.open()
    assert explore.evaluate("document.body.classList.contains('dark')")


def test_in_forced_colours_a_switch_that_is_on_differs_from_one_that_is_off(new_page: OpenPage) -> None:
    explore = new_page()
    explore.page.emulate_media(forced_colors="active")
    explore.open()
    colour = "(node) => getComputedStyle(node).backgroundColor"
    on, off = ".um-view input:checked + span", ".um-view input:not(:checked) + span >> nth=0"
    assert explore.one(on).evaluate(colour) != explore.one(off).evaluate(colour)
    on = explore.one(".um-paste").evaluate(colour)
    explore.one(".um-paste").click()
    assert explore.one(".um-paste").evaluate(colour) != on


def test_in_a_low_window_no_bar_covers_the_page(new_page: OpenPage) -> None:
    explore = new_page((360, 225)).open()  # 1440 x 900, magnified four times
    assert explore.one(".um-sticky").is_hidden()
    assert explore.one(".um-share").is_visible()
    explore.one(".um-seed-row .um-shuffle").click()
    explore.settle()
    explore.resize(360, 740)
    assert explore.one(".um-sticky").is_visible()
    assert explore.one(".um-share").is_hidden()


def test_what_came_of_a_gesture_is_said_once(new_page: OpenPage) -> None:
    explore = new_page().open()
    explore.one(".um-sample").nth(1).click()
    explore.page.wait_for_function(
        "document.querySelector('.um-say').textContent.startsWith('Cat. The model saw 49 of 196')"
    )
    explore.press("hide")
    assert "Everything is hidden." in explore.one(".um-say").inner_text()
    explore.press("undo")
    explore.settle()
    for view, said in (
        ("error", "Error map of Cat. The model saw"),
        ("uncertainty", "Uncertainty map of Cat"),
    ):
        explore.choose("view", view)
        explore.page.wait_for_function(
            "(said) => document.querySelector('.um-say').textContent.startsWith(said)", arg=said
        )
    explore.one(".um-try-main").click()
    explore.settle()
    explore.evaluate(
        """() => {
          const say = document.querySelector('.um-say');
          window.heard = [];
          new MutationObserver(() => window.heard.push(say.textContent)).observe(say, { childList: true });
        }"""
    )
    explore.press("undo")
    explore.page.wait_for_function("window.heard.includes('147 of 196 patches hidden')")
    assert not [said for said in explore.evaluate("window.heard") if "drawn mask" in said]


def test_reduced_motion_is_respected(new_page: OpenPage) -> None:
    explore = new_page()
    explore.page.emulate_media(reduced_motion="reduce")
    explore.open()
    explore.evaluate("() => { document.querySelector('.um-bar').hidden = false; }")
    ours = "(a) => a.playState === 'running' && a.effect.target.closest('.um, .um-head')"
    assert explore.evaluate(f"document.getAnimations().filter({ours}).length") == 0
