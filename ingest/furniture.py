"""Running headers, footers and page numbers: found by position AND repetition across pages.

A row goes only if it stands at the outer edge of its page and either the same words stand at the
same height on enough pages, or a number in it counts along with the pages. A sentence that occurs
twice, a table's total or a heading that stands on one page does none of this and stays.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ingest.lines import Line

EDGE_SHARE = 0.15  # of the page height, at the top and at the bottom
EDGE_ROWS = 3  # rows from the edge that may be furniture
MIN_PAGES = 3
MIN_DENSITY = 0.3  # of the pages between first and last; mirrored headings reach a half
BAND_SHARE = 0.6  # of all pages, for rows at one height that count along with the pages
_HEIGHT_TOLERANCE = 4.0  # points
_MAX_CHARS = 160
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100, "d": 500, "m": 1000}
_NUMBER = re.compile(r"\d{1,4}|\b[ivxlc]{1,7}\b", re.IGNORECASE)


@dataclass(frozen=True)
class EdgePage:
    """What furniture is judged by: the page's index in the file, its height, its lines."""

    index: int
    height: float
    lines: Sequence[Line]


@dataclass
class _Row:
    page: int
    zone: str
    middle: float
    lines: list[Line]
    text: str
    outermost: bool
    numbers: tuple[int, ...]

    @property
    def offsets(self) -> set[int]:
        """Number minus page index: constant where a number counts along with the pages."""
        return {number - self.page for number in self.numbers}


def find_furniture(pages: Sequence[EdgePage]) -> dict[int, list[Line]]:
    """Lines to leave out, by page index. Needs three pages; fewer never lose anything but a
    page number that counts along on both of two pages."""
    rows = [row for page in pages for row in _edge_rows(page)]
    by_text: dict[tuple[str, str], list[_Row]] = defaultdict(list)
    by_band: dict[tuple[str, int], list[_Row]] = defaultdict(list)
    for row in rows:
        by_text[row.zone, row.text.casefold()].append(row)
        for band in _bands(row.middle):
            by_band[row.zone, band].append(row)
    chosen: dict[int, _Row] = {}
    for group in by_text.values():
        _choose(chosen, _repeated(group))
    for group in by_band.values():
        _choose(chosen, _counting(group, len(pages)))
    found: dict[int, list[Line]] = defaultdict(list)
    for row in chosen.values():
        found[row.page].extend(row.lines)
    return dict(found)


def _choose(chosen: dict[int, _Row], rows: Iterable[_Row]) -> None:
    for row in rows:
        chosen[id(row)] = row


def _edge_rows(page: EdgePage) -> list[_Row]:
    shown = [line for line in page.lines if line.horizontal and line.text]
    shown.sort(key=lambda line: (line.rect[1] + line.rect[3]) / 2)
    rows: list[list[Line]] = []
    for line in shown:
        if rows and _on_row(rows[-1][0], line):
            rows[-1].append(line)
        else:
            rows.append([line])
    found = []
    edge = EDGE_SHARE * page.height
    for rank, row in enumerate(rows):
        from_end = len(rows) - 1 - rank
        top, bottom = min(line.rect[1] for line in row), max(line.rect[3] for line in row)
        if rank < EDGE_ROWS and bottom <= edge:
            zone, outermost = "top", rank == 0
        elif from_end < EDGE_ROWS and top >= page.height - edge:
            zone, outermost = "bottom", from_end == 0
        else:
            continue
        row.sort(key=lambda line: line.rect[0])
        middle = (top + bottom) / 2 if zone == "top" else page.height - (top + bottom) / 2
        # a row may pair a chapter that stays with a section that changes: judge its parts too
        parts = [[line] for line in row] if len(row) > 1 else []
        for lines in (row, *parts):
            text = " ".join(line.text for line in lines)
            if len(text) <= _MAX_CHARS:
                numbers = _numbers(text)
                found.append(_Row(page.index, zone, middle, lines, text, outermost, numbers))
    return found


def _on_row(first: Line, line: Line) -> bool:
    overlap = min(first.rect[3], line.rect[3]) - max(first.rect[1], line.rect[1])
    return overlap > 0.5 * min(first.rect[3] - first.rect[1], line.rect[3] - line.rect[1])


def _bands(middle: float) -> tuple[int, int]:
    """Two overlapping bands, so that no height falls between them."""
    step = 2 * _HEIGHT_TOLERANCE
    return 2 * int(middle // step), 2 * int((middle + _HEIGHT_TOLERANCE) // step) + 1


def _numbers(text: str) -> tuple[int, ...]:
    """The whole numbers of a row, roman ones included."""
    return tuple(_value(token) for token in _NUMBER.findall(text))


def _value(token: str) -> int:
    if token.isdigit():
        return int(token)
    values = [_ROMAN[char] for char in token.lower()]
    following = [*values[1:], 0]
    return sum(-a if a < b else a for a, b in zip(values, following, strict=True))


def _repeated(group: list[_Row]) -> list[_Row]:
    """Rows with the same words at the same height on enough pages; bare numbers are not words.
    On a turned page among them the same words may stand at another height, outermost still."""
    if not any(char.isalpha() for char in group[0].text):
        return []
    heights = sorted(row.middle for row in group)
    usual = heights[len(heights) // 2]
    level = [row for row in group if abs(row.middle - usual) <= _HEIGHT_TOLERANCE]
    pages = {row.page for row in level}
    if len(pages) < MIN_PAGES or len(pages) < MIN_DENSITY * (max(pages) - min(pages) + 1):
        return []
    return [row for row in group if row.outermost or abs(row.middle - usual) <= _HEIGHT_TOLERANCE]


def _counting(group: list[_Row], n_pages: int) -> list[_Row]:
    """Rows at one height whose number runs along with the pages.

    A row that is only a page number needs few witnesses; a row with words around the number must
    be one of a band that most pages have, because its words may be read nowhere else.
    """
    if n_pages < 2:
        return []
    votes = Counter(offset for row in group for offset in row.offsets)
    kept: list[_Row] = []
    for offset, count in votes.most_common(3):
        rows = [row for row in group if offset in row.offsets]
        pages = {row.page for row in rows}
        if count >= min(MIN_PAGES, n_pages):
            kept.extend(row for row in rows if row.outermost and _is_bare_number(row.text))
        span = max(pages) - min(pages) + 1
        if len(pages) >= 5 and len(pages) >= BAND_SHARE * span:
            kept.extend(row for row in rows if row.outermost)
        elif len(pages) >= MIN_PAGES and _one_pattern(rows):
            kept.extend(rows)
    return kept


def _is_bare_number(text: str) -> bool:
    rest = _NUMBER.sub("", text).casefold()
    for word in ("page", "seite", "of", "von", "sur", "de"):
        rest = rest.replace(word, "")
    return not any(char.isalnum() for char in rest)


def _one_pattern(rows: list[_Row]) -> bool:
    """Whether the rows differ in their numbers only: "Chapter 2, page 14 of 90"."""
    return len({_NUMBER.sub("#", row.text).casefold() for row in rows}) == 1
