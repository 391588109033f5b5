"""Texts without pages of their own become sections: by headings, else by length."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ingest.document import TocEntry
from ingest.parts import Block, RawPage

SECTION_CHARS = 3000  # about a printed page and a half: what a citation should narrow down to
LONG_SECTION_CHARS = 4 * SECTION_CHARS
LONG_BLOCK_CHARS = 2 * SECTION_CHARS  # a longer paragraph is cut, so that pages keep their size
SPLIT_LEVEL = 2  # deeper headings stay inside their section and appear in the contents only
LABEL_CHARS = 120
START_LABEL = "Beginning"
_CUTS = tuple(  # where a paragraph without an end may be cut, the best places first
    re.compile(pattern)
    for pattern in (r"\n{2,}", r"\n", r"(?<=[.!?…][\"'”’»)])\s|(?<=[.!?…])\s|(?<=[。！？])", r"\s")
)


def sections_from_blocks(
    blocks: Sequence[Block], *, start_label: str = START_LABEL
) -> tuple[list[RawPage], list[TocEntry]]:
    """Cut a run of blocks at headings of level 1 and 2; without any, every ~3000 characters.

    Headings with nothing under them stay with what follows (a title above its first chapter, a
    list of chapter names). Sections over 12,000 characters are cut at paragraph ends, and their
    labels carry the range of paragraphs: "Economy ¶ 12-20". A paragraph of more than 6,000
    characters is cut first, at its line ends, else after sentences, else between words. Every block
    lands in exactly one section; levels are those of Block.level.
    """
    blocks = [part for block in blocks for part in _of_usual_length(block)]
    if not any(0 < block.level <= SPLIT_LEVEL for block in blocks):
        pages = _by_length(list(blocks), "", SECTION_CHARS)
        for number, page in enumerate(pages, start=1):
            page.number = number
        return pages, _contents(pages)
    titled = _by_heading(blocks, start_label)
    return number_sections(titled)


def number_sections(
    titled: Sequence[tuple[str, list[Block]]],
) -> tuple[list[RawPage], list[TocEntry]]:
    """Number titled runs of blocks from 1, cutting the long ones; see sections_from_blocks."""
    pages: list[RawPage] = []
    for title, whole in titled:
        blocks = [part for block in whole for part in _of_usual_length(block)]
        for block in blocks:
            block.chapter = title
        if sum(len(block.text) for block in blocks) > LONG_SECTION_CHARS:
            pages.extend(_by_length(blocks, title, SECTION_CHARS))
        else:
            pages.append(RawPage(0, title, blocks))
    for number, page in enumerate(pages, start=1):
        page.number = number
    return pages, _contents(pages)


def _by_heading(blocks: Sequence[Block], start_label: str) -> list[tuple[str, list[Block]]]:
    titled: list[tuple[str, list[Block]]] = []
    title, has_body = start_label, False
    current: list[Block] = []
    for block in blocks:
        if 0 < block.level <= SPLIT_LEVEL:
            if has_body:
                titled.append((title, current))
                current, has_body = [], False
            title = label_of(block.text)
        elif any(char.isalnum() for char in block.text):
            has_body = True
        current.append(block)
    if current:
        titled.append((title, current))
    return titled


def _of_usual_length(block: Block) -> Iterator[Block]:
    """The block, cut down to its first 3,000 characters if it is far too long, and its other parts.
    What stood between two parts is Block.before of the second: no character is lost or added."""
    text, start, part = block.text, 0, block
    while len(text) - start > LONG_BLOCK_CHARS:
        end, following = _cut_place(text, start)
        part.text = text[start:end]
        yield part
        part = replace(block, text=text[following:], before=text[end:following], level=0)
        start = following
    yield part


def _cut_place(text: str, start: int) -> tuple[int, int]:
    """Where a part that begins at `start` ends and where the next one begins."""
    usual, half = start + SECTION_CHARS, SECTION_CHARS // 2
    for pattern in _CUTS:
        if after := pattern.search(text, usual, usual + half):
            return after.span()
        before = list(pattern.finditer(text, usual - half, usual))
        if before:
            return before[-1].span()
    return start + SECTION_CHARS, start + SECTION_CHARS


def _by_length(blocks: list[Block], title: str, target: int) -> list[RawPage]:
    """Cut at paragraph ends near `target` characters; a short rest stays with what it
    follows."""
    pages: list[RawPage] = []
    current: list[Block] = []
    length, first = 0, 1
    rest = sum(len(block.text) for block in blocks)
    for index, block in enumerate(blocks, start=1):
        current.append(block)
        length += len(block.text)
        rest -= len(block.text)
        if (length >= target and rest >= target / 3) or index == len(blocks):
            paragraphs = f"¶ {first}-{index}" if index > first else f"¶ {first}"
            pages.append(RawPage(0, f"{title} {paragraphs}".strip(), current))
            current, length, first = [], 0, index + 1
    return pages


def _contents(pages: Sequence[RawPage]) -> list[TocEntry]:
    return [
        TocEntry(block.level, label_of(block.text), page.number)
        for page in pages
        for block in page.blocks
        if block.level > 0
    ]


def label_of(text: str) -> str:
    """A heading as a label: one line, without Markdown's marks, at most 120 characters."""
    label = " ".join(text.split()).strip("#=*_ ").rstrip("=- ")
    return label if len(label) <= LABEL_CHARS else label[: LABEL_CHARS - 1].rstrip() + "…"
