"""The Explore tab: hide patches of a picture, see the model fill them in.

Everything live happens in the browser (``assets/explore.js``), which asks the same API as everybody else;
Gradio's event queue is not used: it costs three requests an edit.
"""

from __future__ import annotations

import base64
from typing import Any

import gradio as gr

from model import samples
from model.images import MAX_PIXELS, MAX_SIDE
from model.masking import MAX_SEED
from ui.grid import build_widget
from ui.strings import Words, choose

Sample = dict[str, Any]

#: One function body in this order; see the first of the explore files.
SCRIPTS = (
    "words", "store", "grid", "patience", "client",
    "explore", "explore-result", "explore-controls", "explore-keys", "explore-pictures", "explore-start",
)  # fmt: skip

SECTIONS = (
    "explore", "view", "figure", "strategy", "control", "pictures", "sample", "grid", "alt", "status", "keys", "try",
)  # fmt: skip


def load_samples() -> list[Sample]:
    """The pictures that are offered, each with its small preview as a ``data:`` address."""
    return [
        {key: getattr(sample, key) for key in ("name", "title", "licence", "author", "main")}
        | {"thumb": "data:image/webp;base64," + base64.b64encode(sample.thumb).decode("ascii")}
        for sample in samples.load()
    ]


def build(description: dict[str, object], words: dict[str, Words]) -> gr.HTML:
    """The tab's one widget.

    Args:
        description: The loaded model, as ``GET /v1/model`` gives it; name, grid and image_size are used.
        words: All words, by language.
    """
    model = {key: description[key] for key in ("name", "grid", "image_size", "views") if key in description}
    own = choose(words, *SECTIONS)
    limits = {"pixels": MAX_PIXELS, "side": MAX_SIDE, "seed": MAX_SEED}
    return build_widget("explore", SCRIPTS, words=own, model=model, samples=load_samples(), limits=limits)
