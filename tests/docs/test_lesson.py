"""The links of the lesson say what the page understands."""

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from model import samples
from ui.page import TABS

ROOT = Path(__file__).resolve().parents[2]
# As ui/assets/explore-start.js reads them.
KNOWN = {
    "tab": "|".join(TABS),
    "pic": "|".join(sample.name for sample in samples.load()),
    "strategy": "random|block|grid",
    "ratio": r"[01]?\.\d{1,4}",
    "seed": r"\d{1,10}",
    "present": "1",
    "lang": "en|zh",
}


@pytest.mark.parametrize("name", ["lesson.md", "lesson.zh-CN.md"])
def test_every_step_is_a_link_the_page_understands(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\((http://127\.0\.0\.1:7860/[^)]*)\)", text)
    assert len(links) >= 14
    for link in links:
        for key, (value,) in parse_qs(urlsplit(link).query).items():
            assert re.fullmatch(KNOWN[key], value), f"{key}={value} in {link}"


@pytest.mark.parametrize("name", ["lesson.md", "lesson.zh-CN.md"])
def test_the_minutes_add_up_to_twenty(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    minutes = re.findall(r"^## \d\. .* · (\d+) (?:minutes?|分钟)$", text, re.MULTILINE)
    assert sum(map(int, minutes)) == 20
