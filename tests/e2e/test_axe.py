"""axe on every tab in both languages, both themes and four widths, switched in place on one page a tab.

Each pair of the three, not each triple: what axe finds depends on one (colours) or two of them (texts in a width).
"""

from __future__ import annotations

import itertools

import pytest

from tests.e2e.conftest import OpenPage
from tests.e2e.tabs import axe_findings
from ui.page import TABS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

LONG = 240_000  # the first report on a weight file pulls torch
WIDTHS = (1440, 768, 390, 320)
# Something that is there only when the tab shows all it has to show.
COMPLETE = {
    "explore": ".um-sentence:not(:empty)",
    "compare": ".um-row-ratios .um-pair-tile:nth-child(6) img",
    "learn": ".um-positions-hidden-fact:not(:empty)",
    "use": ".um-use-report dd",
}
# Colours are read as they end up, not on their way.
STILL = "*, *::before, *::after { transition: none !important; animation: none !important; }"


@pytest.mark.parametrize("tab", list(TABS))
def test_axe_finds_nothing_serious_in_any_language_theme_and_width(new_page: OpenPage, tab: str) -> None:
    page = new_page()
    page.url += f"?tab={tab}"
    page.open()
    page.page.add_style_tag(content=STILL)
    page.page.locator(COMPLETE[tab]).first.wait_for(state="attached", timeout=LONG)
    if tab == "explore":
        page.one(".um-ranges summary").click()
    found = {}
    for number, (width, language) in enumerate(itertools.product(WIDTHS, ("en", "zh"))):
        theme = ("light", "dark", "dark", "light")[number % 4]
        page.page.set_viewport_size({"width": width, "height": 900})
        if page.evaluate("document.documentElement.lang.slice(0, 2)") != language:
            page.one(".um-language").click()
        if page.evaluate("document.body.classList.contains('dark')") != (theme == "dark"):
            page.one(".um-theme").click()
        page.steady()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (width, language)
        if findings := axe_findings(page):
            found[width, language, theme] = findings
        if (width, language, theme) in ((1440, "en", "light"), (390, "zh", "dark")):
            page.screenshot(f"{tab}-{width}-{theme}-{language}", full=True)
    assert found == {}
