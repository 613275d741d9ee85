"""The Compare tab: one thing varied on the picture that Explore shows, in rows to look along.

Every figure is a list of options of the API; the browser asks for them one by one (``assets/compare.js``).
"""

from __future__ import annotations

import gradio as gr

from ui.grid import build_widget
from ui.strings import Words, choose

SECTIONS = ("compare", "strategy", "sample", "status", "explore", "alt")


def build(description: dict[str, object], words: dict[str, Words]) -> gr.HTML:
    """The tab's one widget.

    Args:
        description: The loaded model, as ``GET /v1/model`` gives it.
        words: All words, by language.
    """
    scripts = ("words", "store", "client", "compare")
    return build_widget("compare", scripts, words=choose(words, *SECTIONS), model=description["name"])
