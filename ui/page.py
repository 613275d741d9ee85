"""The frame of the page: title line, tabs in order. Mounted, with all its settings, by ``server/main.py``."""

from __future__ import annotations

import gradio as gr

from ui.grid import build_widget
from ui.strings import load_languages
from ui.tabs import explore


def build_page(description: dict[str, object]) -> gr.Blocks:
    """The whole page for one loaded model.

    Args:
        description: What the model says of itself (``Reconstructor.describe()``).

    Returns:
        Blocks to mount at ``/`` together with ``ui.theme.build_theme()`` and ``ui.theme.head()``.
    """
    words = load_languages()
    # delete_cache is a fence only: the page never uploads through Gradio.
    page = gr.Blocks(title="Unmask", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600))
    with page:
        build_widget("header", ("words", "header"), words=words, model=str(description["name"]))
        with gr.Tabs(), gr.Tab(words["en"]["tabs"]["explore"], id="explore"):
            explore.build(description, words)
    return page
