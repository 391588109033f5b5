"""The line chart: valid XML, a line for a line, and nothing drawn that is no number."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from app.plots import Line, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(lines: list[Line], **how: bool) -> tuple[list[list[tuple[float, float]]], list[str]]:
    """The points of each polyline, and every text."""
    root = ElementTree.fromstring(line_chart("Title", "x", "y", lines, **how))
    assert root.tag == f"{SVG}svg"
    polylines = [
        [tuple(map(float, point.split(","))) for point in p.attrib["points"].split()]
        for p in root.iter(f"{SVG}polyline")
    ]
    return polylines, [t.text or "" for t in root.iter(f"{SVG}text")]  # type: ignore[return-value]


def test_each_line_is_drawn_in_its_place() -> None:
    lines = [Line("up", [(0, 0.0), (5, 1.0), (10, 2.0)]), Line("down", [(0, 2.0), (10, 0.0)])]
    (up, down), texts = drawn(lines)
    assert [x for x, _ in up] == sorted(x for x, _ in up) and len(up) == 3 and len(down) == 2
    assert up[1][0] == pytest.approx((up[0][0] + up[2][0]) / 2, abs=0.1)
    assert up[0][1] > up[1][1] > up[2][1], "larger values stand higher"
    assert down == [(up[0][0], up[2][1]), (up[2][0], up[0][1])]
    assert {"Title", "x", "y", "up", "down", "0", "2", "10"} <= set(texts)


def test_no_two_lines_look_alike() -> None:
    lines = [Line(f"line {n}", [(1, n), (2, n)]) for n in range(20)]
    drawn = re.findall(r'stroke="(#\w+)" stroke-width="2"(.*?)/>', line_chart("t", "x", "y", lines))
    assert len(drawn) == 20 == len(set(drawn))


def test_names_are_escaped() -> None:
    name = "a < b & \"c\" > 'd'"
    _, texts = drawn([Line(name, [(0, 1.0), (1, 2.0)])])
    assert name in texts


def test_what_is_no_number_is_left_out() -> None:
    points = [(0, 1.0), (1, math.nan), (2, math.inf), (3, -math.inf), (4, 2.0)]
    (line,), texts = drawn([Line("odd", points)])
    assert len(line) == 2
    assert not any(word in text for text in texts for word in ("nan", "inf"))


@pytest.mark.parametrize(
    "points", [[(3, 5.0)], [(0, 0.0), (1, 0.0)], [(0, math.nan)], [(1, -2e-9), (2, -1e-9)]]
)
def test_charts_of_next_to_nothing_are_charts(points: list[tuple[float, float]]) -> None:
    (line,), _ = drawn([Line("flat", points)])
    assert all(math.isfinite(v) for point in line for v in point)


def test_a_logarithmic_axis_spaces_doublings_alike() -> None:
    (line,), texts = drawn([Line("l", [(1, 0.0), (2, 1.0), (4, 2.0)])], log_x=True)
    assert line[1][0] - line[0][0] == pytest.approx(line[2][0] - line[1][0], abs=0.2)
    assert {"1", "2", "4"} <= set(texts)
