"""The frame of the page: title line, tabs in order, footer. Mounted, with all its settings, by ``server/main.py``."""

from __future__ import annotations

from html import escape
from types import ModuleType
from typing import Final

import gradio as gr

from model import __version__
from ui.grid import build_widget
from ui.strings import choose, load_languages, load_words
from ui.tabs import compare, explore, learn, use

#: In the order of the page; the name is the tab's id, its key in the words and its value of ``?tab=``.
TABS: Final[dict[str, ModuleType]] = {"explore": explore, "compare": compare, "learn": learn, "use": use}

#: The name is seen where the page's library takes longer than a second to arrive, instead of nothing.
WAITING: Final = (
    'gradio-app:not(:has(*))::before { content: "Unmask"; margin: 40vh auto 0; color: #737d8c; '
    "font: 600 20px system-ui, sans-serif; visibility: hidden; animation: um-wait 0s 1s forwards; } "
    "@keyframes um-wait { to { visibility: visible; } }"
)


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
        own = choose(words, "head", "tabs")
        build_widget(
            "header", ("words", "store", "patience", "header"), words=own, model=description, tabs=list(TABS)
        )
        # "wrap": the other behaviour hides tabs in a menu on a phone, though all four have room.
        with gr.Tabs(overflow_behavior="wrap"):
            for name, tab in TABS.items():
                # Explore fills the store that the others read, so it runs even where another tab is opened first.
                with gr.Tab(words["en"]["tabs"][name], id=name, render_children=name == "explore"):
                    tab.build(description, words)
        own = choose(words, "head", "tabs", "foot", "lesson", "sample", "strategy")
        build_widget("footer", ("words", "footer"), words=own, version=__version__)
    return page


def preview() -> str:
    """Tags that stand in the document from the start: what is shown elsewhere of a link to it, and ``WAITING``."""
    words = load_words("en")
    said = {
        'name="description"': words["explore"]["headline"],
        'property="og:title"': words["head"]["brand"],
        'property="og:type"': "website",
        'property="og:description"': words["explore"]["headline"],
        'name="twitter:card"': "summary",
    }
    tags = "".join(f'<meta {name} content="{escape(text)}">' for name, text in said.items())
    return f"{tags}<style>{WAITING}</style>"
