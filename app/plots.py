"""A line chart as SVG, readable in light and dark pages: enough for a curve beside a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 200, 56, 52
# Okabe and Ito's palette: told apart with every kind of colour vision.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b")
_DASHES = ("", ' stroke-dasharray="6 4"', ' stroke-dasharray="2 3"')  # once the colours are used up

Place = Callable[[float], float]


@dataclass(frozen=True)
class Line:
    """A named series of (x, y) points."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(
    title: str, x_name: str, y_name: str, lines: Sequence[Line], *, log_x: bool = False
) -> str:
    """The chart as SVG text; log_x spaces x by its logarithm and marks the points' own values."""
    xs = sorted({x for line in lines for x, _ in line.points})
    ys = [y for line in lines for _, y in line.points if math.isfinite(y)] or [0.0]
    to_x = _scale([math.log(x) for x in xs] if log_x else xs, _LEFT, _WIDTH - _RIGHT)
    y_marks = _round_marks(min(ys), max(ys))
    to_y = _scale(y_marks, _HEIGHT - _BOTTOM, _TOP)
    place: Place = (lambda x: to_x(math.log(x))) if log_x else to_x
    parts = [_text(_LEFT, 22, title, 15, "start")]
    for y in y_marks:
        parts.append(_rule(_LEFT, to_y(y), _WIDTH - _RIGHT, to_y(y)))
        parts.append(_text(_LEFT - 8, to_y(y) + 4, f"{y:g}", 12, "end"))
    for x in xs if log_x else _round_marks(xs[0], xs[-1]):
        parts.append(_text(place(x), _HEIGHT - _BOTTOM + 18, f"{x:g}", 12, "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, x_name, 13, "middle"))
    parts.append(_text(_LEFT, _TOP - 12, y_name, 12, "start"))
    for number, line in enumerate(lines):
        parts += _series(line, number, place, to_y)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _series(line: Line, number: int, to_x: Place, to_y: Place) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    points = [(to_x(x), to_y(y)) for x, y in line.points if math.isfinite(y)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points)
    y = _TOP + 18 * number + 4
    x = _WIDTH - _RIGHT + 16
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>{dots}',
        f'<line x1="{x}" y1="{y}" x2="{x + 18}" y2="{y}" stroke="{colour}" stroke-width="3"{dash}/>'
        + _text(x + 24, y + 4, line.name, 12, "start"),
    ]


def _scale(values: Sequence[float], low: float, high: float) -> Place:
    first, last = min(values), max(values)
    span = (last - first) or 1.0
    return lambda value: low + (value - first) / span * (high - low)


def _round_marks(low: float, high: float) -> list[float]:
    """About five round values that cover low to high."""
    raw = (high - low or abs(high) or 1.0) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 10) for i in range(first, max(last, first + 1) + 1)]


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _text(x: float, y: float, text: str, size: int, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="#333333">{escape(text)}</text>'
    )
