"""Blocks on pages become one text, and offsets are written down while it grows."""

from __future__ import annotations

from ingest.clean import safe_text
from ingest.document import Document, DocumentWarning, Page, Span
from ingest.errors import DocumentTooLarge
from ingest.parts import Block, Parsed

PARSER_VERSION = "3"


def assemble(parsed: Parsed, sha256: str, max_chars: int) -> Document:
    """Join the blocks of all pages and map each character to its block and page.

    A separator belongs to the block before it, so that spans and pages tile the text without
    gaps. Blocks without text vanish; pages without text stay, as empty ranges.
    Raises DocumentTooLarge as soon as the text passes max_chars.
    """
    pieces: list[str] = []
    spans: list[Span] = []
    pages: list[Page] = []
    position = 0
    pending: tuple[int, int, Block] | None = None  # start, page, block not yet closed
    page_starts: list[int] = []
    for raw in parsed.pages:
        page_start: int | None = None
        for block in raw.blocks:
            text = safe_text(block.text)
            if not text.strip():
                continue
            if pending is not None:
                pieces.append(block.before)
                position += len(block.before)
                spans.append(_span(pending, position))
            if page_start is None:
                page_start = position
            pending = (position, raw.number, block)
            pieces.append(text)
            position += len(text)
            if position > max_chars:
                raise _too_long(position, max_chars, raw.number)
        page_starts.append(-1 if page_start is None else page_start)
    if pending is not None:
        spans.append(_span(pending, position))
    for raw, (start, end) in zip(parsed.pages, _page_ranges(page_starts, position), strict=True):
        pages.append(Page(raw.number, safe_text(raw.label), start, end))
    document = Document(
        title=safe_text(parsed.title),
        kind=parsed.kind,
        sha256=sha256,
        text="".join(pieces),
        pages=tuple(pages),
        spans=tuple(spans),
        toc=tuple(parsed.toc),
        warnings=tuple(
            DocumentWarning(w.code, safe_text(w.message), w.page) for w in parsed.warnings
        ),
        page_kind=parsed.page_kind,
        parser_version=f"{PARSER_VERSION}+{parsed.parser}",
    )
    document.check()
    return document


def _span(pending: tuple[int, int, Block], end: int) -> Span:
    start, page, block = pending
    chapter = None if block.chapter is None else safe_text(block.chapter)
    return Span(start, end, page, block.rect, chapter)


def _page_ranges(starts: list[int], length: int) -> list[tuple[int, int]]:
    """Ranges that tile [0, length); a start of -1 marks a page without text."""
    ranges: list[tuple[int, int]] = []
    end = length
    for start in reversed(starts):
        if start < 0:
            ranges.append((end, end))
        else:
            ranges.append((start, end))
            end = start
    return ranges[::-1]


def _too_long(chars: int, max_chars: int, number: int) -> DocumentTooLarge:
    return DocumentTooLarge(
        f"The text is longer than {max_chars:,} characters ({chars:,} by part {number}).",
        "Open a page range of it instead.",
    )
