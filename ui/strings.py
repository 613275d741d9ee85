"""All words of the page: TOML tables, one a language."""

from __future__ import annotations

import tomllib
from pathlib import Path

Words = dict[str, dict[str, str]]

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
