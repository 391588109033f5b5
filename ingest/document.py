"""The Document: one text, and for every character the page and the block it came from."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Any

FORMAT_VERSION = 1

Rect = tuple[float, float, float, float]


@dataclass(frozen=True)
class Page:
    """A page, chapter or section: number counts from 1 in the whole file, label is what a reader
    sees (printed page label, chapter or section title), [start, end) is its part of the text."""

    number: int
    label: str
    start: int
    end: int


@dataclass(frozen=True)
class Span:
    """A paragraph or other block: [start, end) in the text, its page's number, its rectangle on
    that page in points from the top left (fixed-layout kinds), its chapter or section title."""

    start: int
    end: int
    page: int
    rect: Rect | None = None
    chapter: str | None = None


@dataclass(frozen=True)
class TocEntry:
    """A line of the table of contents; level counts from 1, page is a Page.number."""

    level: int
    title: str
    page: int


@dataclass(frozen=True)
class DocumentWarning:
    """Something the reader should know: a stable code, a sentence, the page if it is about one."""

    code: str
    message: str
    page: int | None = None


@dataclass(frozen=True)
class Document:
    """A parsed document.

    kind        "pdf", "epub", "mobi", "fb2", "xps", "txt", "markdown", "html" or "docx"
    sha256      of the file's bytes, hexadecimal
    text        everything, in reading order, pages one after the other
    pages       contiguous, ascending, together they cover the text; a page without text is empty
    spans       contiguous, ascending, never empty, together they cover the text
    page_kind   what a Page is: "page" (as printed), "chapter" or "section"
    Invariants are held by check(), which from_json runs.
    """

    title: str
    kind: str
    sha256: str
    text: str
    pages: tuple[Page, ...]
    spans: tuple[Span, ...]
    toc: tuple[TocEntry, ...]
    warnings: tuple[DocumentWarning, ...]
    page_kind: str
    parser_version: str

    @cached_property
    def _page_starts(self) -> list[int]:
        return [page.start for page in self.pages]

    @cached_property
    def _span_starts(self) -> list[int]:
        return [span.start for span in self.spans]

    def page_at(self, char: int) -> Page:
        """The page that character index `char` stands on; IndexError outside the text."""
        self._require_inside(char)
        return self.pages[bisect_right(self._page_starts, char) - 1]

    def span_at(self, char: int) -> Span:
        """The span that character index `char` belongs to; IndexError outside the text."""
        self._require_inside(char)
        return self.spans[bisect_right(self._span_starts, char) - 1]

    def pages_between(self, start: int, end: int) -> tuple[Page, ...]:
        """The non-empty pages that [start, end) touches, in order; clipped to the text."""
        start, end = max(start, 0), min(end, len(self.text))
        if start >= end:
            return ()
        first = bisect_right(self._page_starts, start) - 1
        last = bisect_left(self._page_starts, end)
        return tuple(page for page in self.pages[first:last] if page.end > page.start)

    def page_text(self, page: Page) -> str:
        """The text of one page, without the blank lines that part it from the next."""
        return self.text[page.start : page.end].rstrip("\n")

    def _require_inside(self, char: int) -> None:
        if not 0 <= char < len(self.text):
            raise IndexError(f"character {char} is outside the text of {len(self.text)}")

    def check(self) -> None:
        """Raises ValueError, naming the place, where pages or spans do not tile the text."""
        _check_tiling("page", [(p.start, p.end) for p in self.pages], len(self.text))
        _check_tiling("span", [(s.start, s.end) for s in self.spans], len(self.text))
        by_number = {page.number: page for page in self.pages}
        for span in self.spans:
            page = by_number.get(span.page)
            if page is None or not page.start <= span.start < span.end <= page.end:
                raise ValueError(f"span at {span.start} is not inside page {span.page}")

    def to_json(self) -> str:
        """The document as JSON; from_json(to_json()) is equal to the original."""
        return json.dumps(
            {
                "format": FORMAT_VERSION,
                "title": self.title,
                "kind": self.kind,
                "sha256": self.sha256,
                "text": self.text,
                "pages": [[p.number, p.label, p.start, p.end] for p in self.pages],
                "spans": [[s.start, s.end, s.page, s.rect, s.chapter] for s in self.spans],
                "toc": [[t.level, t.title, t.page] for t in self.toc],
                "warnings": [[w.code, w.message, w.page] for w in self.warnings],
                "page_kind": self.page_kind,
                "parser_version": self.parser_version,
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Document:
        """Reads what to_json wrote; ValueError if it is anything else or does not hold together."""
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT_VERSION:
            raise ValueError(f"not a parsed document of format {FORMAT_VERSION}")
        try:
            document = _from_dict(data)
        except (KeyError, TypeError) as error:
            raise ValueError(f"parsed document is incomplete: {error!r}") from error
        document.check()
        return document


def _from_dict(data: dict[str, Any]) -> Document:
    return Document(
        title=data["title"],
        kind=data["kind"],
        sha256=data["sha256"],
        text=data["text"],
        pages=tuple(Page(*row) for row in data["pages"]),
        spans=tuple(
            Span(start, end, page, _rect(rect), chapter)
            for start, end, page, rect, chapter in data["spans"]
        ),
        toc=tuple(TocEntry(*row) for row in data["toc"]),
        warnings=tuple(DocumentWarning(*row) for row in data["warnings"]),
        page_kind=data["page_kind"],
        parser_version=data["parser_version"],
    )


def _rect(values: list[float] | None) -> Rect | None:
    if values is None:
        return None
    x0, y0, x1, y1 = values
    return (x0, y0, x1, y1)


def _check_tiling(what: str, ranges: list[tuple[int, int]], length: int) -> None:
    position = 0
    for index, (start, end) in enumerate(ranges):
        if start != position or end < start:
            raise ValueError(f"{what} {index} covers [{start}, {end}), expected start {position}")
        position = end
    if position != length:
        raise ValueError(f"{what}s cover {position} of {length} characters")
