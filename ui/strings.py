"""All words of the page: TOML tables, one per language."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

Words = dict[str, dict[str, str]]

LANGUAGES: Final = ("en", "zh")

FOLDER = Path(__file__).parent / "strings"


def load_words(language: str) -> Words:
    """The words of one language.

    Args:
        language: Stem of a file in ``ui/strings``, for example ``en``.

    Returns:
        Section -> key -> text; ``{name}`` in a text is filled in by the page.
    """
    tables = tomllib.loads((FOLDER / f"{language}.toml").read_text(encoding="utf-8"))
    return {section: texts for section, texts in tables.items() if isinstance(texts, dict)}


def load_languages() -> dict[str, Words]:
    """The words of every language of the page; the browser decides which is shown (``assets/words.js``)."""
    return {language: load_words(language) for language in LANGUAGES}


def choose(languages: dict[str, Words], *sections: str) -> dict[str, Words]:
    """Only these sections of every language: what one widget needs, so that none carries the whole page's words."""
    return {
        language: {name: words[name] for name in sections if name in words}
        for language, words in languages.items()
    }
