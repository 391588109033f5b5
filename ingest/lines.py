"""Lines as MuPDF lays them out, and how they become rows and paragraphs again."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from ingest.clean import Vocabulary, clean_line, garbage_count, is_cjk, join_lines
from ingest.document import Rect
from ingest.parts import Block
from ingest.superscript import BEGIN, END, settle

_VISIBLE_FLAGS = 16 | 32 | 64  # filled, stroked, or part of a clipping path
_SUPERSCRIPT = 1
_MONOSPACED = 8
_MONO_NAME = re.compile(r"mono|courier|consol|typewriter|CMTT|menlo", re.IGNORECASE)
_LIST_MARK = re.compile(r"[•◦▪‣·–*-]\s|\(?(?:\d{1,3}|[a-z])[.)]\s")
_WHITE = 0xF5
_NARROW_PROSE_ROWS = 4
_PROSE_WIDTH = 500  # points; verse, addresses and entries of lists are narrower
_CELL_GAP = 1.2  # of the font size; a wider gap on one baseline parts cells of a table


@dataclass
class Line:
    """One line of text. rect is on the page as shown; the four local numbers run with the
    writing direction (begin < end) and across it (top < bottom), whatever the rotation."""

    text: str
    rect: Rect
    begin: float
    end: float
    top: float
    bottom: float
    size: float
    block: int
    horizontal: bool
    mono: bool = False
    hidden: str = ""  # "", "invisible", "white" or "tiny"
    font: str = ""
    garbage: int = 0
    raw_chars: int = 0


def read_lines(blocks: list[dict[str, Any]], *, mark_raised: bool = False) -> list[Line]:
    """All lines with text of a page, from get_text("dict")["blocks"], in their stored order.
    mark_raised writes what stands raised as an exponent or a note's mark."""
    lines = []
    for index, block in enumerate(blocks):
        for raw in block.get("lines", ()):
            line = _read_line(raw, index, mark_raised)
            if line is not None:
                lines.append(line)
    return lines


def _read_line(raw: dict[str, Any], block: int, mark_raised: bool) -> Line | None:
    spans = raw["spans"]
    raw_text = spans[0]["text"] if len(spans) == 1 else "".join(span["text"] for span in spans)
    text = clean_line(_settled(spans) if mark_raised else raw_text)
    garbage = garbage_count(raw_text)
    if not text and not garbage:
        return None
    x0, y0, x1, y1 = raw["bbox"]
    rect = (round(x0, 1), round(y0, 1), round(x1, 1), round(y1, 1))
    begin, end, top, bottom = _local(rect, raw["dir"], text)
    longest = spans[0] if len(spans) == 1 else max(spans, key=lambda span: len(span["text"]))
    return Line(
        text=text,
        rect=rect,
        begin=begin,
        end=end,
        top=top,
        bottom=bottom,
        size=longest["size"],
        block=block,
        horizontal=abs(raw["dir"][1]) < 0.1,
        mono=all(_is_mono(span) for span in spans if span["text"].strip()),
        hidden=_hidden(longest, bottom - top),
        font=longest["font"],
        garbage=garbage,
        raw_chars=len(raw_text),
    )


def _settled(spans: list[dict[str, Any]]) -> str:
    return settle(
        "".join(
            f"{BEGIN}{span['text']}{END}" if span["flags"] & _SUPERSCRIPT else span["text"]
            for span in spans
        )
    )


def _local(
    rect: Rect, direction: tuple[float, float], text: str
) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = rect
    dx, dy = direction
    if abs(dx) >= abs(dy):
        if dx < 0:
            return -x1, -x0, -y1, -y0
        return (-x1, -x0, y0, y1) if _is_rtl(text) else (x0, x1, y0, y1)
    return (y0, y1, -x1, -x0) if dy > 0 else (-y1, -y0, x0, x1)


def _is_rtl(text: str) -> bool:
    if text.isascii():
        return False
    right = sum(1 for char in text if unicodedata.bidirectional(char) in ("R", "AL"))
    return right > len(text) / 2


def _is_mono(span: dict[str, Any]) -> bool:
    return bool(span["flags"] & _MONOSPACED) or bool(_MONO_NAME.search(span["font"]))


def _hidden(span: dict[str, Any], height: float) -> str:
    if span.get("alpha", 255) == 0 and not span.get("char_flags", 16) & _VISIBLE_FLAGS:
        return "invisible"
    if 0 < span["size"] < 2 and height < 2.5:
        return "tiny"
    color = span.get("color", 0)
    if min(color >> 16 & 255, color >> 8 & 255, color & 255) >= _WHITE:
        return "white"
    return ""


def same_row(left: Line, right: Line) -> bool:
    """Whether `right` goes on after `left` on the same baseline."""
    overlap = min(left.bottom, right.bottom) - max(left.top, right.top)
    height = min(left.bottom - left.top, right.bottom - right.top)
    return (
        left.horizontal == right.horizontal
        and overlap > 0.5 * height
        and right.begin >= left.end - 0.3 * left.size
    )


def compose(
    lines: list[Line], vocabulary: Vocabulary, *, layout_width: float | None = None
) -> list[Block]:
    """Paragraphs from the lines of one page, in their stored order (columns stay apart).

    Lines on one baseline become a row, parts of it parted by a tab where the gap is wide. Rows of
    a MuPDF block are joined where the line break was only forced by the margin: the next word
    would not have fitted. Other breaks (verse, code, addresses, tables) stay. layout_width, in
    points, is of a layout of our own that is far wider than a paragraph: in it a margin breaks
    only lines that are very long, or that stand in a narrow box.
    """
    blocks: list[Block] = []
    shown = [line for line in lines if line.text]
    groups = [list(group) for _, group in groupby(shown, key=lambda line: line.block)]
    for group in _merge_rows(groups):
        for rows in _paragraphs(group, layout_width):
            block = _compose_block(rows, vocabulary, layout_width)
            if blocks and _follows_as_row(rows):
                block.before = "\n"
            blocks.append(block)
    return blocks


_Row = list[Line]


def _merge_rows(groups: list[list[Line]]) -> list[list[_Row]]:
    """Rows of each block; a block of one line joins the row before it if that is its row too."""
    merged: list[list[_Row]] = []
    for group in groups:
        rows: list[_Row] = []
        for line in group:
            if rows and same_row(rows[-1][-1], line):
                rows[-1].append(line)
            else:
                rows.append([line])
        before = merged[-1] if merged else None
        if before and len(rows) == 1 and len(before) == 1 and same_row(before[0][-1], rows[0][0]):
            before[0].extend(rows[0])
        else:
            merged.append(rows)
    return merged


def _paragraphs(rows: list[_Row], layout_width: float | None) -> list[list[_Row]]:
    """In a layout of our own a line of prose is a paragraph; MuPDF takes lines that no margin
    parts for one block."""
    if layout_width is None:
        return [rows]
    parts = [[rows[0]]]
    for before, row, soft in zip(rows, rows[1:], _soft_breaks(rows, layout_width), strict=False):
        if not soft and (_is_prose(before) or _is_prose(row)):
            parts.append([])
        parts[-1].append(row)
    return parts


def _is_prose(row: _Row) -> bool:
    return len(row) == 1 and not row[0].mono and row[0].end - row[0].begin > _PROSE_WIDTH


def _follows_as_row(rows: list[_Row]) -> bool:
    return len(rows) == 1 and len(rows[0]) > 2


def _compose_block(rows: list[_Row], vocabulary: Vocabulary, layout_width: float | None) -> Block:
    left_edge = min(row[0].begin for row in rows)
    text = _indent(rows[0], left_edge) + _row_text(rows[0])
    for row, soft in zip(rows[1:], _soft_breaks(rows, layout_width), strict=True):
        row_text = _row_text(row)
        if soft:
            text, glue = join_lines(text, row_text, vocabulary)
            text += glue + row_text
        else:
            text += "\n" + _indent(row, left_edge) + row_text
    members = [line for row in rows for line in row]
    rect = (
        min(line.rect[0] for line in members),
        min(line.rect[1] for line in members),
        max(line.rect[2] for line in members),
        max(line.rect[3] for line in members),
    )
    return Block(text, rect, size=max(members, key=lambda line: len(line.text)).size)


def _indent(row: _Row, left_edge: float) -> str:
    """The spaces before a row of code; other text has none."""
    first = row[0]
    if not first.mono or not first.text:
        return ""
    width = (first.end - first.begin) / len(first.text)
    return " " * min(round((first.begin - left_edge) / width), 60) if width > 1 else ""


def _row_text(row: _Row) -> str:
    text = row[0].text
    for left, right in pairwise(row):
        gap = right.begin - left.end
        text += ("\t" if gap > _CELL_GAP * left.size else " ") + right.text
    return text


def _soft_breaks(rows: list[_Row], layout_width: float | None) -> list[bool]:
    """Of each break between rows, whether only a margin forced it; see compose."""
    right_edge = max(row[-1].end for row in rows)
    soft = [_is_soft_break(before, row, right_edge) for before, row in pairwise(rows)]
    if layout_width is None or (all(soft) and _is_narrow_prose(rows)):
        return soft
    longest = layout_width / 2
    return [
        one and before[-1].end - before[0].begin > longest
        for one, before in zip(soft, rows, strict=False)
    ]


def _is_narrow_prose(rows: list[_Row]) -> bool:
    """Whether a block of rows is prose in a narrow box: lines of verse and of addresses are few
    or begin with capitals."""
    small = sum(1 for row in rows[1:] if row[0].text[:1].islower())
    return len(rows) >= _NARROW_PROSE_ROWS and 2 * small > len(rows)


def _is_soft_break(before: _Row, row: _Row, right_edge: float) -> bool:
    """Whether the break came from the margin: the next word did not fit any more."""
    last, first = before[-1], row[0]
    if (last.mono and first.mono) or _LIST_MARK.match(first.text):
        return False
    if len(before) > 1 and any(
        right.begin - left.end > _CELL_GAP * left.size for left, right in pairwise(before)
    ):
        return False  # a row of cells
    word = 2 if is_cjk(first.text[0]) else len(first.text.split(maxsplit=1)[0]) + 1
    width = (first.end - first.begin) * word / max(len(first.text), 1)
    return last.end + width > right_edge - 0.5 * last.size
