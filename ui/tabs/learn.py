"""The How it works tab: the request that Explore shows, opened up, and how the model learned it.

Everything is drawn in the browser from the visitor's picture, the public API's answers and the model's shape;
the share of work of each stage is computed in ``assets/learn-cost.js``.
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
    scripts = (
        "words",
        "store",
        "patience",
        "client",
        "learn-cost",
        "learn-drawings",
        "learn-training",
        "learn",
    )
    return build_widget("learn", scripts, words=choose(words, "learn", "figure", "sample", "status"))
