"""What a reader hands over: blocks of text on pages, before they become one Document."""

from __future__ import annotations

from dataclasses import dataclass, field

from ingest.document import DocumentWarning, Rect, TocEntry

PARAGRAPH = "\n\n"


@dataclass
class Block:
    """A paragraph, heading, table row or the like.

    before  what parts it from the block before: "\\n\\n" for a new paragraph, "\\n" for a new row,
            " " or "" where a column or page break cut through a paragraph or a word
    size    font size in points, 0 where the kind has none
    level   heading level (1 is the highest), 0 for body text
    """

    text: str
    rect: Rect | None = None
    chapter: str | None = None
    before: str = PARAGRAPH
    size: float = 0.0
    level: int = 0


@dataclass
class RawPage:
    """A page, chapter or section of blocks; number counts from 1 in the whole file."""

    number: int
    label: str
    blocks: list[Block] = field(default_factory=list)


@dataclass
class Parsed:
    """Everything a reader found in one file."""

    kind: str
    page_kind: str
    title: str
    pages: list[RawPage]
    toc: list[TocEntry] = field(default_factory=list)
    warnings: list[DocumentWarning] = field(default_factory=list)
    parser: str = "plain"
