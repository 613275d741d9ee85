"""Opening the other tabs, and what is asked of every one of them."""

from __future__ import annotations

import re

from axe_playwright_python.base import AXE_SCRIPT

from tests.e2e.explore_page import ExplorePage

# Something that is there only when the tab shows the request of Explore.
READY = {"learn": ".um-loss-raw-fact b", "use": ".um-use-code:not(:empty)"}

# Every text under an element that is shown or spoken, without what says of itself that it is English.
TEXTS = """(root) => {
  const texts = [], walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walk.nextNode())
    if (!walk.currentNode.parentElement.closest('[lang=en], pre')) texts.push(walk.currentNode.data);
  for (const name of ['aria-label', 'aria-valuetext', 'title'])
    for (const node of root.querySelectorAll(`[${name}]`)) texts.push(node.getAttribute(name));
  return texts;
}"""
# Names and units that are the same in every language.
ALLOWED = {"mini", "Unmask", "curl", "Python", "JavaScript", "MB"}


def open_tab(page: ExplorePage, name: str, language: str = "en") -> ExplorePage:
    """Open the page at a tab and wait until it shows the request."""
    page.url += ("&" if "?" in page.url else "?") + f"tab={name}&lang={language}"
    page.page.goto(page.url, wait_until="commit")
    page.one(READY[name]).first.wait_for(timeout=60_000)
    return page


def axe_findings(page: ExplorePage) -> set[tuple[str, str]]:
    """Rule and place of each serious or critical finding; a page is given the program once."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    found = page.evaluate("async () => (await axe.run({ resultTypes: ['violations'] })).violations")
    return {(v["id"], v["nodes"][0]["html"][:160]) for v in found if v["impact"] in ("serious", "critical")}


def foreign(page: ExplorePage, selector: str) -> set[str]:
    """English words in a tab of the Chinese page."""
    texts = page.one(selector).evaluate(TEXTS)
    return set(re.findall(r"[A-Za-z]+", " ".join(texts))) - ALLOWED
