"""Four tabs on one page: each has its address, all look at the same picture, none listens for another."""

from __future__ import annotations

import re
import urllib.request
from itertools import product
from urllib.parse import parse_qsl, urlsplit

import pytest

from model import __version__
from tests.conftest import ROOT
from tests.e2e.conftest import OpenPage
from tests.e2e.explore_page import ExplorePage
from tests.e2e.test_pictures import HAND_OVER, quarters, wait_for_picture

pytestmark = pytest.mark.e2e

LABELS = {
    "en-GB": ["Explore", "Compare", "How it works", "Use it"],
    "zh-CN": ["探索", "对比", "原理", "使用"],
}


def open_tab(explore: ExplorePage, place: int) -> None:
    explore.one("button[role=tab]").nth(place).click()


@pytest.mark.parametrize("locale", LABELS)
def test_every_tab_has_its_name_and_its_address(new_page: OpenPage, locale: str) -> None:
    explore = new_page(locale=locale).open()
    assert explore.one("button[role=tab]").all_inner_texts() == LABELS[locale]
    for place, name in ((1, "compare"), (2, "learn"), (3, "use")):
        open_tab(explore, place)
        explore.page.wait_for_url(f"**tab={name}*")
        explore.one(f"#unmask-{name} h1").wait_for()
    open_tab(explore, 0)
    explore.page.wait_for_function("!location.search.includes('tab=')")


def test_an_address_opens_its_tab_and_the_picture_is_there(new_page: OpenPage) -> None:
    explore = new_page()
    explore.url += "?tab=compare"
    explore.open()
    assert explore.one(".um-compare h1").inner_text() == "Compare on the same picture"
    assert not explore.one(".um-grid").is_visible()
    explore.one(".um-row-ratios .um-figure img").first.wait_for(timeout=60_000)
    open_tab(explore, 0)
    side = explore.one(".um-grid").bounding_box()
    assert side is not None
    assert side["width"] == 448, "sized when it comes into view"


def test_what_is_typed_and_dropped_on_another_tab_is_not_explores(explore: ExplorePage) -> None:
    mask = explore.mask
    open_tab(explore, 1)
    explore.one(".um-compare h1").wait_for()
    for key in ("i", "s", "Control+z", "?"):
        explore.page.keyboard.press(key)
    assert explore.mask == mask
    assert not explore.one(".um-keys").is_visible()


def test_all_four_tabs_are_seen_and_nothing_scrolls_sideways(
    explore: ExplorePage, subtests: pytest.Subtests
) -> None:
    open_tab(explore, 1)
    explore.one(".um-compare h1").wait_for()
    for width in (1440, 768, 390, 320):
        explore.resize(width, 900)
        with subtests.test(width=width):
            for place in range(4):
                box = explore.one("button[role=tab]").nth(place).bounding_box()
                assert box is not None
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= width + 0.5
            assert explore.evaluate("document.documentElement.scrollWidth") <= width
            cut = explore.evaluate(
                """() => [...document.querySelectorAll('.um-compare *')].filter((n) => n.checkVisibility()
                     && !n.closest('.um-scroll') && n.getBoundingClientRect().right > innerWidth + 0.5)
                     .map((n) => n.className)"""
            )
            assert cut == []
            explore.screenshot(f"compare-{width}", full=True)


def test_on_a_phone_a_tab_is_headed_by_its_largest_words_and_its_lead(
    new_page: OpenPage, subtests: pytest.Subtests
) -> None:
    explore = new_page((390, 844)).open()
    for place, name in ((1, "compare"), (2, "learn"), (3, "use")):
        open_tab(explore, place)
        with subtests.test(tab=name):
            explore.one(f"#unmask-{name} .um-lead").wait_for()
            first, *others = (
                explore.one(f"#unmask-{name} :is(h1, h2)")
                .filter(visible=True)
                .evaluate_all("(all) => all.map((node) => parseFloat(getComputedStyle(node).fontSize))")
            )
            assert first > max(others)


def test_the_first_link_skips_to_what_the_open_tab_is_about(explore: ExplorePage) -> None:
    for place, focused in ((0, "um-grid"), (3, "um-use-title")):
        open_tab(explore, place)
        explore.one(".um-skip").focus()
        explore.page.keyboard.press("Enter")
        assert explore.evaluate("document.activeElement.id") == focused
        assert "#" not in explore.page.url


# One caption's heading and what stands beside it, by their texts, not their boxes.
OVERLAPS = """() => [...document.querySelectorAll('.um-caption')].filter((caption) => {
  const [left, right] = [...caption.children].map((node) => {
    const range = document.createRange(); range.selectNodeContents(node); return range.getBoundingClientRect();
  });
  return left.right > right.left;
}).map((caption) => caption.textContent)"""


def test_for_the_classroom_what_is_talked_about_is_on_one_screen(
    new_page: OpenPage, subtests: pytest.Subtests
) -> None:
    explore = new_page()
    explore.url += "?present=1&pic=cat"
    explore.open()
    for size, view in product(((1024, 768), (1280, 720), (1366, 768)), ("result", "error")):
        explore.resize(*size)
        explore.choose("view", view)
        explore.settle()
        for language in ("en", "zh"):
            with subtests.test(size=size, view=view, language=language):
                explore.page.wait_for_function(
                    "document.querySelector('.um-facts').getBoundingClientRect().bottom + scrollY <= innerHeight"
                )
                assert explore.evaluate(OVERLAPS) == []
            explore.evaluate("document.querySelector('.um-language').click()")  # not shown in the classroom
    assert explore.one(".um-strip").is_hidden(), "the class is to guess"


def test_for_the_classroom_only_the_tabs_stay_and_all_is_larger(new_page: OpenPage) -> None:
    explore = new_page()
    explore.open()
    usual = explore.one(".um-grid").bounding_box()
    explore.one(".um-presenting").click()
    assert "present=1" in explore.page.url
    assert explore.one(".um-head > :visible").all_inner_texts() == ["Leave presentation"]
    larger = explore.one(".um-grid").bounding_box()
    assert usual is not None
    assert larger is not None
    assert larger["width"] > usual["width"]
    mask = explore.mask
    explore.click(9, 12)
    explore.settle()
    assert [i for i in range(196) if explore.mask[i] != mask[i]] == [9 * 14 + 12]
    assert explore.evaluate("document.documentElement.scrollWidth") <= 1440
    explore.screenshot("present")
    open_tab(explore, 3)
    explore.one("#unmask-use h1").wait_for()
    assert explore.one(".um-use-code").is_visible(), "the heading promises it"
    explore.one(".um-presenting").click()
    assert "present" not in explore.page.url
    assert explore.one(".um-brand").is_visible()
    open_tab(explore, 0)
    explore.page.wait_for_function("document.querySelector('.um-grid').getBoundingClientRect().width === 448")


def test_below_every_tab_stand_the_lesson_the_terms_and_the_version(
    explore: ExplorePage, subtests: pytest.Subtests
) -> None:
    for place in (1, 2, 3, 0):
        open_tab(explore, place)
        with subtests.test(tab=place):
            text = explore.one(".um-foot").inner_text()
            assert f"Unmask {__version__}" in text
            assert "Code: Apache-2.0" in text
            assert "Weights of mini: CC-BY-NC-4.0" in text
    links = explore.one(".um-foot > p a").evaluate_all("(all) => all.map((a) => [a.hostname, a.target])")
    assert {target for _, target in links} == {"_blank"}, "the picture and the mask are kept"
    assert ["arxiv.org", "_blank"] in links
    assert explore.one(".um-foot-api").get_attribute("href") == f"{explore.url}docs"
    for language, name in (("en", "lesson.md"), ("zh", "lesson.zh-CN.md")):
        explore.one(".um-lesson-open").click()
        steps = explore.one(".um-lesson li:visible").count()
        given = explore.one(".um-lesson a").evaluate_all("(all) => all.map((a) => a.search + a.hash)")
        explore.one(".um-lesson-close").click()
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        told = re.findall(r"\]\(http://127\.0\.0\.1:7860/(\?[^)]*present=1[^)]*)\)", text)
        assert steps == 7
        assert [fields_of(link) for link in given] == [fields_of(link) | {"lang": language} for link in told]
        explore.one(".um-language").click()


def fields_of(link: str) -> dict[str, str]:
    parts = urlsplit(link)
    return dict(parse_qsl(parts.query)) | {"part": parts.fragment}


def test_back_goes_through_the_tabs_and_stays_on_the_page(explore: ExplorePage) -> None:
    for place, name in ((3, "use"), (2, "learn")):
        open_tab(explore, place)
        explore.page.wait_for_url(f"**tab={name}*")
    explore.page.go_back()
    explore.one("#unmask-use h1").wait_for()
    explore.page.go_back()
    explore.one(".um-grid").wait_for()
    assert "tab=" not in explore.page.url
    explore.page.go_forward()
    explore.one("#unmask-use h1").wait_for()


def test_the_tabs_are_one_stop_and_the_arrows_move_among_them(explore: ExplorePage) -> None:
    tabs = explore.one("button[role=tab]")
    assert tabs.evaluate_all("(all) => all.map((one) => one.tabIndex)") == [0, -1, -1, -1]
    assert explore.one("[role=tablist]:visible").first.get_attribute("aria-label") == "Parts of the page"
    tabs.first.focus()
    for key, label in (("ArrowLeft", "Use it"), ("ArrowRight", "Explore"), ("End", "Use it")):
        explore.page.keyboard.press(key)
        assert explore.evaluate("document.activeElement.textContent.trim()") == label
        assert explore.one(".um-grid").is_visible(), "nothing opens by itself"
    explore.page.keyboard.press("Enter")
    panel = explore.one("[role=tabpanel]:visible")
    panel.locator("#unmask-use h1").wait_for()
    assert explore.one(f"#{panel.get_attribute('aria-labelledby')}").inner_text() == "Use it"


def test_the_address_of_a_row_leads_to_it(new_page: OpenPage) -> None:
    explore = new_page()
    explore.url += "?tab=compare#um-compare-models"
    explore.page.goto(explore.url, wait_until="commit")
    explore.page.wait_for_function(
        "document.activeElement.closest('#um-compare-models') && scrollY > 0", timeout=60_000
    )
    explore.one(".um-row-ratios .um-figure img").first.wait_for(timeout=60_000)
    top = explore.evaluate("document.activeElement.getBoundingClientRect().top")
    assert 0 <= top < 900, "still there when the rows above it have grown"


def test_a_picture_dropped_on_another_tab_opens_on_explore(explore: ExplorePage) -> None:
    open_tab(explore, 3)
    explore.one("#unmask-use h1").wait_for()
    explore.evaluate(HAND_OVER, ["drop", list(quarters())])
    wait_for_picture(explore, "dropped.png")
    assert explore.one(".um-grid").is_visible()
    leaves = """() => document.body.dispatchEvent(new DragEvent('dragover',
      {bubbles: true, cancelable: true, dataTransfer: (() => { const data = new DataTransfer();
        data.items.add(new File(['x'], 'x.txt')); return data; })()}))"""
    open_tab(explore, 2)
    assert explore.evaluate(leaves) is False, "the browser would open the file itself"


def test_a_link_to_the_page_is_shown_elsewhere_under_its_own_name(server_url: str) -> None:
    page = urllib.request.urlopen(server_url).read().decode()
    head = page[: page.index("<script")]
    assert re.findall(r'property="og:title" content="([^"]*)"', page) == ["Unmask"]
    assert "gradio" not in " ".join(re.findall(r"<meta[^>]*>", head)).lower()
    assert b"<svg" in urllib.request.urlopen(f"{server_url}/favicon.ico").read()
