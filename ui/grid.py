"""Builds the page's own widgets: constant markup, script read from ``assets``, data only as props.

Gradio compiles a widget's template as JavaScript, so nothing but constants may stand in it. Data reaches the
script through ``props`` and the document through text nodes and canvases (see ``assets/words.js``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import gradio as gr

from ui.theme import ASSETS

# Whole lines of comment, which a visitor need not load.
COMMENTS = re.compile(r"^ *(?://.*|/\*\*(?:(?!\*/).)*\*/ *)\n|^ */\*\*[^/]*?\*/ *\n", re.MULTILINE)


def build_widget(name: str, scripts: Sequence[str], **props: Any) -> gr.HTML:
    """One ``gr.HTML`` from ``assets/NAME.html`` and several scripts.

    Args:
        name: Stem of the markup file; the widget's element id is ``unmask-NAME``.
        scripts: Stems of the script files, in the order in which they need each other.
        **props: JSON-ready values the script finds in ``props``.
    """
    script = "\n".join((ASSETS / f"{stem}.js").read_text(encoding="utf-8") for stem in scripts)
    script = COMMENTS.sub("", script)
    return gr.HTML(
        value="",
        html_template=(ASSETS / f"{name}.html").read_text(encoding="utf-8"),
        js_on_load=script,
        apply_default_css=False,
        elem_id=f"unmask-{name}",
        **props,
    )
