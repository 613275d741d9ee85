"""The Compare tab: one thing varied on the picture that Explore shows, in rows to look along.

Every figure is a list of options of the API; the browser asks for them one by one (``assets/compare.js``).
"""

from __future__ import annotations

import gradio as gr

from model import provenance
from model.masking import MAX_SEED
from model.result import TRIPTYCH
from ui.grid import build_widget
from ui.strings import Words, choose

SECTIONS = ("compare", "control", "strategy", "sample", "status", "explore", "figure", "alt")

#: One function body in this order.
SCRIPTS = (
    "words",
    "store",
    "patience",
    "client",
    "label",
    "compare",
    "compare-rows",
    "compare-gallery",
    "compare-walk",
)


def build(_: dict[str, object], words: dict[str, Words]) -> gr.HTML:
    """The tab's one widget.

    Args:
        _: The loaded model; this tab learns of it from the store.
        words: All words, by language.
    """
    # Sheets and walks are put together in the browser.
    label = provenance.packet(TRIPTYCH)
    own = choose(words, *SECTIONS)
    return build_widget("compare", SCRIPTS, words=own, label=label, limits={"seed": MAX_SEED})
