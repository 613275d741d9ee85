"""Two languages: the browser's decides, a switch changes it at once, and nothing of the other shows through."""

from __future__ import annotations

import re

import pytest

from tests.e2e.conftest import OpenPage
from tests.e2e.explore_page import ExplorePage

pytestmark = pytest.mark.e2e

# Names (the models' too), keys of the keyboard, file types, the other language's own name: the same in every language.
ALLOWED = set(
    re.split(
        r"\W+",
        "Unmask English mini random block grid JPEG PNG WebP MB Ctrl Shift Home End Z Y S I A O r c MAE "
        "He et al API Apache CC BY NC docs lesson zh CN md",
    )
)

# Every text that is shown or spoken; a sample's title names its author, which no language changes.
TEXTS = """() => {
  const texts = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode;
    if (!node.parentElement.closest('script, style, noscript')) texts.push(node.data);
  }
  for (const name of ['aria-label', 'alt', 'aria-valuetext', 'aria-roledescription'])
    for (const node of document.querySelectorAll(`[${name}]`)) texts.push(node.getAttribute(name));
  for (const node of document.querySelectorAll('[title]:not(.um-sample)')) texts.push(node.title);
  return texts;
}"""


def foreign(explore: ExplorePage) -> set[str]:
    """English words on the page that are not of those allowed."""
    words = re.findall(r"[A-Za-z][A-Za-z0-9]*", " ".join(explore.evaluate(TEXTS)))
    return {word for word in words if word not in ALLOWED and not re.fullmatch(r"[rc]\d+", word)}


def test_a_chinese_browser_gets_the_chinese_page(new_page: OpenPage) -> None:
    explore = new_page(locale="zh-CN").open()
    assert explore.evaluate("document.documentElement.lang") == "zh-CN"
    assert explore.one("h1").inner_text() == "遮住图片的大部分，看模型把它补全。"
    assert explore.one(".um-count").inner_text() == "已遮住 147 / 196 个图像块"
    assert explore.one(".um-sentence").inner_text().startswith("模型看到了 49 / 196 个图像块。")
    assert explore.one("[role=tab]").first.inner_text() == "探索"
    assert foreign(explore) == set()
    explore.screenshot("chinese-1440-light")
    explore.choose("view", "error")
    explore.page.wait_for_function("document.querySelector('.um-worst').textContent !== ''")
    explore.press("show")
    assert foreign(explore) == set()


def test_an_unknown_language_gets_english(new_page: OpenPage) -> None:
    explore = new_page(locale="de-DE").open()
    assert explore.evaluate("document.documentElement.lang") == "en"
    assert explore.one("h1").inner_text().startswith("Hide most")


def test_the_switch_changes_everything_at_once_and_is_remembered(explore: ExplorePage) -> None:
    explore.drag((4, 4), (8, 8))
    explore.settle()
    mask, asked = explore.mask, len(explore.sent())
    explore.one(".um-language").click()
    assert explore.evaluate("document.documentElement.lang") == "zh-CN"
    assert "lang=zh" in explore.page.url
    assert foreign(explore) == set()
    assert (explore.mask, len(explore.sent())) == (mask, asked), "the mask stays, nothing is asked again"
    assert explore.one(".um-language").inner_text() == "English"
    explore.open()
    assert explore.evaluate("document.documentElement.lang") == "zh-CN"
    assert explore.one("[role=tab]").first.inner_text() == "探索"
    explore.one(".um-language").click()
    assert explore.one("[role=tab]").first.inner_text() == "Explore"
    assert explore.one("h1").inner_text().startswith("Hide most")


def test_the_address_decides_before_the_browser(new_page: OpenPage) -> None:
    explore = new_page()
    explore.url += "?lang=zh"
    explore.open()
    assert explore.evaluate("document.documentElement.lang") == "zh-CN"
    explore.page.goto(explore.url.replace("lang=zh", "lang=%3Cimg%3E"), wait_until="commit")
    explore.settle()
    assert explore.evaluate("document.documentElement.lang") == "en"


def test_a_refusal_is_said_in_the_pages_own_words(new_page: OpenPage) -> None:
    explore = new_page(locale="zh-CN").open()
    explore.expected = ("Failed to load resource",)
    explore.upload("broken.png", b"this is no picture")
    explore.one(".um-status.um-error").wait_for()
    assert explore.status == "无法读取此文件，请使用 JPEG、PNG 或 WebP 图片。"
    explore.one(".um-language").click()
    assert explore.status == "This file is not a picture we can read. Use JPEG, PNG or WebP."
