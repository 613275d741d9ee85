"""A report: one list of texts, tables and pictures, written as JSON, Markdown and a single HTML file."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from model.checkpoints.files import replacing

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}td,th{padding:.25rem .7rem;
border-bottom:1px solid #ddd;text-align:right}.left{text-align:left}img,svg{max-width:100%;
height:auto}code{background:#f3f4f6;padding:.1rem .3rem}"""


@dataclass(frozen=True)
class Link:
    """In a table: words that lead to another report in the same folder."""

    text: str
    report: str


Cell = str | float | int | None | Link


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers under a heading line; columns of words stand to the left."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @property
    def left(self) -> list[bool]:
        """Which columns hold words, the first one in any case."""
        columns = zip(*self.rows, strict=True)
        words = [any(isinstance(value, str | Link) for value in column) for column in columns]
        return [place == 0 or (bool(words) and words[place]) for place in range(len(self.header))]


@dataclass(frozen=True)
class Figure:
    """A picture that lies beside the report: SVG text or a PNG's bytes."""

    name: str
    content: str | bytes
    caption: str

    @property
    def file(self) -> str:
        """Its file name."""
        return f"{self.name}.{'svg' if isinstance(self.content, str) else 'png'}"


@dataclass(frozen=True)
class Heading:
    """Title of a part."""

    text: str


Block = str | Table | Figure | Heading


def write(out: Path, name: str, title: str, facts: dict[str, Any], blocks: Sequence[Block]) -> Path:
    """Write ``NAME.json``, ``NAME.md``, ``NAME.html`` and the figures into a folder.

    Args:
        out: The folder.
        name: Of the files.
        title: Of the report.
        facts: What ``NAME.json`` holds.
        blocks: What a reader sees, in order.

    Returns:
        The Markdown file.
    """
    for block in blocks:
        if isinstance(block, Figure):
            _put(out / block.file, block.content)
    body = "".join(map(_html, blocks))
    html = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )
    _put(out / f"{name}.html", html)
    markdown = out / f"{name}.md"
    _put(markdown, f"# {title}\n\n" + "\n\n".join(map(_markdown, blocks)) + "\n")
    _put(out / f"{name}.json", _json(facts) + "\n")  # last: where it lies the question is answered
    return markdown


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, Heading):
        return f"## {block.text}"
    if isinstance(block, Figure):
        return f"![{block.caption}]({quote(block.file)})"
    lines = [
        "| " + " | ".join(block.header) + " |",
        "|" + "".join("---|" if left else "---:|" for left in block.left),
    ]
    return "\n".join(lines + ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in block.rows])


def _html(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{escape(block)}</p>"
    if isinstance(block, Heading):
        return f"<h2>{escape(block.text)}</h2>"
    if isinstance(block, Figure):
        picture = block.content
        if isinstance(picture, bytes):
            picture = f'<img alt="" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        return f"<figure>{picture}<figcaption>{escape(block.caption)}</figcaption></figure>"
    side = [' class="left"' if left else "" for left in block.left]
    head = "".join(f"<th{of}>{escape(word)}</th>" for of, word in zip(side, block.header, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{of}>{_html_cell(value)}</td>" for of, value in zip(side, row, strict=True))
        + "</tr>"
        for row in block.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _markdown_cell(value: Cell) -> str:
    return f"[{value.text}]({quote(value.report)}.md)" if isinstance(value, Link) else _cell(value)


def _html_cell(value: Cell) -> str:
    if isinstance(value, Link):
        return f'<a href="{quote(value.report)}.html">{escape(value.text)}</a>'
    return escape(_cell(value))


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _json(value: Any, indent: str = "") -> str:
    """As ``json.dumps`` with an indent of 1, but a list of plain values on one line: a matrix has one line per row."""
    if isinstance(value, dict) and value:
        marks, lines = "{}", [f"{json.dumps(key)}: {_json(of, indent + ' ')}" for key, of in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(of, dict | list | tuple) for of in value):
        marks, lines = "[]", [_json(of, indent + " ") for of in value]
    else:
        return json.dumps(value)
    return f"{marks[0]}\n{indent} " + f",\n{indent} ".join(lines) + f"\n{indent}{marks[1]}"


def _put(file: Path, content: str | bytes) -> None:
    # A model's name may be a file's that is no UTF-8.
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with replacing(file) as part:
        part.write_bytes(data)
