"""The Use it tab: the request on screen as curl, Python and JavaScript, as a link, and what the model is.

The programs are written in the browser (``assets/use-code.js``) from the store's fields, so that they are always
the request that made the picture on screen; ``tests/e2e/test_use.py`` runs them.
"""

from __future__ import annotations

import gradio as gr

from ui.grid import build_widget
from ui.strings import Words, choose


def build(description: dict[str, object], words: dict[str, Words]) -> gr.HTML:
    """The tab's one widget.

    Args:
        description: The loaded model; the browser's store has it already.
        words: All words, by language.
    """
    return build_widget(
        "use",
        ("words", "store", "patience", "use-code", "use", "use-open"),
        words=choose(words, "use", "sample", "status"),
    )
