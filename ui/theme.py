"""Colours, type and spacing: one set of tokens for Gradio's own parts and for ours (``assets/style.css``).

Gradio's default theme misses WCAG AA in several places, so nothing of its colours is kept; fonts are the
system's, which saves a download and gives right glyphs in every language.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import gradio as gr

ASSETS: Final = Path(__file__).parent / "assets"

FONTS: Final = (
    "system-ui", "-apple-system", "Segoe UI", "Roboto", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC",
    "sans-serif",
)  # fmt: skip


def build_theme() -> gr.themes.Base:
    """Gradio's theme variables, set to the tokens of the stylesheet."""
    theme = gr.themes.Base(font=list(FONTS), font_mono=["ui-monospace", "Consolas", "monospace"])
    return theme.set(
        body_background_fill="#ffffff",
        body_background_fill_dark="#0f1216",
        body_text_color="#14181f",
        body_text_color_dark="#eceff4",
        body_text_color_subdued="#515a67",
        body_text_color_subdued_dark="#a9b1bd",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#0f1216",
        background_fill_secondary="#f5f6f8",
        background_fill_secondary_dark="#191d24",
        border_color_primary="#d5d9e0",
        border_color_primary_dark="#2f3640",
        border_color_accent="#1b57c9",
        border_color_accent_dark="#8db6ff",
        color_accent="#1b57c9",
        button_primary_background_fill="#1b57c9",
        button_primary_background_fill_dark="#8db6ff",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#0b1a33",
        link_text_color="#1b57c9",
        link_text_color_dark="#8db6ff",
    )


def head() -> str:
    """What the mount puts into the document's head: the page's own CSS, the shared file first, then each tab's.

    Not through Gradio's ``css`` setting: that doubles every rule, adds a prefix which misses Gradio's own frame
    inside media queries, and arrives only after the first paint.
    """
    shared = ASSETS / "style.css"
    files = [shared, *sorted(path for path in ASSETS.glob("*.css") if path != shared)]
    return f"<style>{''.join(path.read_text(encoding='utf-8') for path in files)}</style>"
