"""The few kinds of plot a report needs, as SVG text: no plotting library, nothing fetched, readable anywhere.

A matrix of many classes alone is a PNG.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from model.images import encode

#: Colours that stay apart for colour-blind eyes (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#000000")
_WIDTH, _HEIGHT = 560, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 150, 36, 48

#: Classes whose cells are shapes, at most, for a name takes 12 pixels; and pixels of a matrix of many.
_NAMED, _MATRIX = 53, 640
#: Characters of a class's name beside the matrix, at most.
_LONGEST = 32

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def lines(title: str, x_label: str, y_label: str, series: Series, *, log_x: bool = False) -> str:
    """Curves over a common axis, with points where there are few.

    Args:
        title: Above.
        x_label: With its unit.
        y_label: With its unit.
        series: Name to xs and ys, equally long; empty ones are left out.
        log_x: Logarithmic horizontal axis.
    """
    series = {name: points for name, points in series.items() if len(points[0])}
    xs = [_scaled(x, log_x) for points in series.values() for x in points[0]]
    ys = [y for points in series.values() for y in points[1]]
    x_low, x_high = _span(xs)
    y_low, y_high = _span(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (_scaled(x, log_x) - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        inner_w, inner_h = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return _LEFT + across * inner_w, _HEIGHT - _BOTTOM - up * inner_h

    parts = _frame(title, x_label, y_label)
    for y in _ticks(y_low, y_high):
        _, at = place(10**x_low if log_x else x_low, y)
        parts.append(f'<path d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 6, at + 4, f"{y:.6g}", "end"))
    marks = sorted({x for points in series.values() for x in points[0]})
    if len(marks) > 8 or not log_x:
        marks = [10**x if log_x else x for x in _ticks(x_low, x_high)]
    for x in marks:
        at, _ = place(x, y_low)
        parts.append(_text(at, _HEIGHT - _BOTTOM + 16, f"{x:.6g}", "middle"))
    for number, (name, (across, up)) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [place(x, y) for x, y in zip(across, up, strict=True)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dash = f' stroke-dasharray="{6 // turn} 3"' if (turn := number // len(COLOURS)) else ""
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        if len(points) <= 16:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        at = _TOP + 14 + 18 * number
        parts.append(
            f'<path d="M{_WIDTH - _RIGHT + 10} {at - 4}h16" stroke="{colour}" stroke-width="3"{dash}/>'
        )
        parts.append(_text(_WIDTH - _RIGHT + 32, at, name, "start"))
    return _svg(parts, _WIDTH, max(_HEIGHT, _TOP + 18 * len(series) + 14))  # beside them stand their names


def confusion(title: str, counts: NDArray[np.int64], classes: Sequence[str]) -> str | bytes:
    """What was taken for what: rows the truth, columns the answer, shade the share of the row.

    Of more than 53 classes a PNG, without title and names: a thousand would be a million shapes, 70 MB of SVG.
    """
    if len(classes) > _NAMED:
        return _many(counts)
    cell = 34 if len(classes) <= 20 else _MATRIX // len(classes)
    names = [name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…" for name in classes]
    longest = max(map(_width, names))
    slanted = round(longest * math.sqrt(0.5))
    left, top, right = max(130, 10 + longest), max(120, 36 + slanted), max(60, slanted)
    size = cell * len(classes)
    parts = [_text(6, 20, title, "start", bold=True)]  # two classes leave less room than it takes
    for row, name in enumerate(names):
        middle = cell * (row + 0.5) + 4
        parts.append(_text(left - 6, top + middle, name, "end"))
        at = left + middle
        parts.append(
            f'<text x="{at:.1f}" y="{top - 8}" transform="rotate(-45 {at:.1f} {top - 8})">{escape(name)}</text>'
        )
        total = max(int(counts[row].sum()), 1)
        for column in range(len(classes)):
            share = counts[row, column] / total
            x, y = left + cell * column, top + cell * row
            shade = f"rgb({_mix(255, 0, share)},{_mix(255, 114, share)},{_mix(255, 178, share)})"
            parts.append(f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="{shade}"/>')
            if counts[row, column] and cell >= 24:
                ink = "#fff" if share > 0.5 else "#333"
                number = str(int(counts[row, column]))
                parts.append(_text(x + cell / 2, y + cell / 2 + 4, number, "middle", ink=ink))
    return _svg(parts, left + size + right, top + size + 16)


def _many(counts: NDArray[np.int64]) -> bytes:
    """``[C, C]`` as a PNG of about 640 pixels or, for more classes, one each."""
    shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[..., None]
    shades = (255 + shares * (np.array([0, 114, 178]) - 255)).round().astype(np.uint8)
    side = max(_MATRIX // len(counts), 1)
    return encode(shades.repeat(side, axis=0).repeat(side, axis=1), "PNG")


def _frame(title: str, x_label: str, y_label: str) -> list[str]:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    height = (_TOP + _HEIGHT - _BOTTOM) / 2
    return [
        _text(_LEFT, 20, title, "start", bold=True),
        _text(middle, _HEIGHT - 10, x_label, "middle"),
        f'<text x="14" y="{height}" text-anchor="middle" transform="rotate(-90 14 {height})">'
        f"{escape(y_label)}</text>",
        f'<path d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}" fill="none" stroke="#333"/>',
    ]


def _svg(parts: list[str], width: int, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#333">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>' + "".join(parts) + "</svg>\n"
    )


def _text(x: float, y: float, text: str, anchor: str, *, bold: bool = False, ink: str = "#333") -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{ink}"{weight}>{escape(text)}</text>'


def _width(text: str) -> int:
    """Of a text in pixels, about; ideographs are as wide as they are high."""
    return sum(12 if unicodedata.east_asian_width(of) in "WF" else 7 for of in text)


def _mix(low: int, high: int, share: float) -> int:
    return round(low + (high - low) * share)


def _scaled(x: float, log: bool) -> float:
    return math.log10(x) if log else x


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest with a little air; never of no width."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    air = 0.05 * (high - low) or max(abs(high) * 0.1, 0.5)
    return low - air, high + air


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers between two."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (5, 2, 1) if (high - low) / (step * factor) >= 4)
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]
