"""Rows at the upper and lower edge of a page: where running headers and page numbers stand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ingest.lines import Line

EDGE_SHARE = 0.15  # of the page height, at the top and at the bottom
EDGE_ROWS = 3  # rows from the edge that may be furniture
TITLE_POINTS = 14.0  # running lines are set smaller than titles
TITLE_RATIO = 1.3  # of a title's size to that of a page's other text
YEARS = range(1500, 2100)
YEAR_DISTANCE = 1000  # further than most journals count their pages on
_MAX_CHARS = 160
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100, "d": 500, "m": 1000}
_NUMBER = re.compile(r"\d+|\b[ivxlc]{1,7}\b", re.IGNORECASE)
_DOTTED = re.compile(r"\d+(?:\.\d+)+")  # a section or a version: never a page
_SEPARATOR = re.compile(r"\s+[|·•/–—-]\s+")


@dataclass(frozen=True)
class EdgePage:
    """What furniture is judged by: the page's index in the file, its height, its lines."""

    index: int
    height: float
    lines: Sequence[Line]


@dataclass
class EdgeRow:
    """A row at an edge, or one line of it. middle is its distance from that edge in points;
    outermost says that no row stands nearer to it; title, that its type is as large as a title's.
    """

    page: int
    zone: str
    middle: float
    lines: list[Line]
    text: str
    outermost: bool
    title: bool
    numbers: tuple[int, ...]

    @property
    def offsets(self) -> set[int]:
        """Number minus page index: constant where a number counts along with the pages."""
        return {number - self.page for number in self.numbers}

    @property
    def distance(self) -> int:
        """How far its nearest number is from the page's index; of a row with numbers."""
        return min(map(abs, self.offsets))

    @property
    def is_year(self) -> bool:
        """Whether its number is a year as like as not, and far from the page's index."""
        return self.distance >= YEAR_DISTANCE and all(n in YEARS for n in self.numbers)

    @property
    def words(self) -> str:
        """The text with its numbers blotted out."""
        return _NUMBER.sub("#", self.text).casefold()

    def has_apart(self, number: int) -> bool:
        """Whether `number` stands alone in a line or beside a separator: "12 | Otters"."""
        parts = [part for line in self.lines for part in _SEPARATOR.split(line.text)]
        return len(parts) > 1 and any(_is_page_number(part, number) for part in parts)

    def has_at_end(self, number: int) -> bool:
        """Whether `number` is the first or the last word: "12 Otters"."""
        words = self.text.split()
        return _is_page_number(words[0], number) or _is_page_number(words[-1], number)


def edge_rows(page: EdgePage) -> list[EdgeRow]:
    """The rows at both edges of a page, and each line of a row of several for itself."""
    rows = _rows(page)
    found: list[EdgeRow] = []
    edge = EDGE_SHARE * page.height
    sizes = _sizes(page.lines)
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
        size = max(line.size for line in row)
        title = size >= max(TITLE_POINTS, TITLE_RATIO * _usual_size(sizes - _sizes(row)))
        # a row may pair a chapter that stays with a section that changes: judge its parts too
        parts = [[line] for line in row] if len(row) > 1 else []
        for lines in (row, *parts):
            text = " ".join(line.text for line in lines)
            if len(text) <= _MAX_CHARS:
                numbers = numbers_of(text)
                found.append(
                    EdgeRow(page.index, zone, middle, lines, text, outermost, title, numbers)
                )
    return found


def _rows(page: EdgePage) -> list[list[Line]]:
    shown = [line for line in page.lines if line.horizontal and line.text]
    shown.sort(key=lambda line: (line.rect[1] + line.rect[3]) / 2)
    rows: list[list[Line]] = []
    for line in shown:
        if rows and _on_row(rows[-1][0], line):
            rows[-1].append(line)
        else:
            rows.append([line])
    return rows


def _on_row(first: Line, line: Line) -> bool:
    overlap = min(first.rect[3], line.rect[3]) - max(first.rect[1], line.rect[1])
    return overlap > 0.5 * min(first.rect[3] - first.rect[1], line.rect[3] - line.rect[1])


def _sizes(lines: Sequence[Line]) -> Counter[float]:
    """Characters set in each size."""
    sizes: Counter[float] = Counter()
    for line in lines:
        sizes[line.size] += len(line.text)
    return sizes


def _usual_size(sizes: Counter[float]) -> float:
    """The size of most characters; infinite where there are none to compare with."""
    return max(sizes, key=lambda size: sizes[size]) if sizes else float("inf")


def numbers_of(text: str) -> tuple[int, ...]:
    """The whole numbers of a row, roman ones included."""
    return tuple(_value(token) for token in _NUMBER.findall(_DOTTED.sub("", text)))


def _value(token: str) -> int:
    if token.isdigit():
        return int(token)
    values = [_ROMAN[char] for char in token.lower()]
    following = [*values[1:], 0]
    return sum(-a if a < b else a for a, b in zip(values, following, strict=True))


def _is_page_number(text: str, number: int) -> bool:
    """Whether a text is this page number, and no mark of what follows it: "12. Otters"."""
    return is_bare_number(text) and number in numbers_of(text) and not is_list_number(text)


def is_list_number(text: str) -> bool:
    """Whether a bare number is a mark of what follows it: "3.", "3)", "iv:"; "(3)" is none."""
    return text[-1] in ".:" or (text[-1] == ")" and text[0] != "(")


def is_bare_number(text: str) -> bool:
    """Whether a text is a page number and nothing else: "7", "- vii -", "Page 3 of 12"."""
    if len(_NUMBER.findall(text)) > 2:
        return False
    rest = _NUMBER.sub("", text).casefold()
    for word in ("page", "seite", "of", "von", "sur", "de"):
        rest = rest.replace(word, "")
    return not any(char.isalnum() for char in rest)
