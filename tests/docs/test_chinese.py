"""The Chinese documents keep step with the English ones: same headings, same commands, same links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAIRS = {"README.md": "README.zh-CN.md", "docs/lesson.md": "docs/lesson.zh-CN.md"}
both = pytest.mark.parametrize(("english", "chinese"), PAIRS.items(), ids=list(PAIRS))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def headings(text: str) -> list[str]:
    """The level of each heading, in order; a comment in a block of commands is none."""
    return re.findall(
        r"^(#+) ", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )


def commands(text: str) -> list[str]:
    """The fenced blocks; what a comment says in shell may be translated."""
    blocks = re.findall(r"^```\w+\n.*?^```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+# .*$", "", block, flags=re.MULTILINE) for block in blocks]


def links(text: str) -> list[str]:
    """Where the links lead, in the order of the text, whatever language they ask for.

    Without those to documents there are two of: each language may link to its own.
    """
    targets = [target.replace("&lang=zh", "") for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    own = {Path(name).name for pair in PAIRS.items() for name in pair}
    return [target for target in targets if target.split("/")[-1] not in own or "weights" in target]


@both
def test_the_headings_are_the_same_in_number_and_level(english: str, chinese: str) -> None:
    assert headings(read(chinese)) == headings(read(english))


@both
def test_the_commands_are_the_same(english: str, chinese: str) -> None:
    assert commands(read(chinese)) == commands(read(english))


@both
def test_the_links_lead_to_the_same_places(english: str, chinese: str) -> None:
    assert links(read(chinese)) == links(read(english))


@both
def test_each_names_the_other(english: str, chinese: str) -> None:
    assert f"({Path(chinese).name})" in read(english)
    assert f"({Path(english).name})" in read(chinese)


@both
def test_the_chinese_text_is_chinese(english: str, chinese: str) -> None:
    """At least half of the letters in its prose; a copy that waits for its translation would show."""
    prose = re.sub(r"^```.*?^```$|\]\([^)]*\)|`[^`]*`", "", read(chinese), flags=re.MULTILINE | re.DOTALL)
    signs = len(re.findall(r"[\u4e00-\u9fff]", prose))
    latin = len(re.findall(r"[A-Za-z]", prose))
    assert signs > latin
