"""EPUB, MOBI and FB2: reflowable books through MuPDF, cut into chapters by their contents.

The book is laid out once with fixed parameters, on pages so wide and high that a paragraph takes
one line and a chapter file one page: no break then cuts a paragraph, a row of a table or a word,
a line ends where the author ends it, and nothing depends on the reader's window. What is cited is
the chapter and the paragraph, never a laid-out page.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ingest.clean import Vocabulary
from ingest.document import DocumentWarning, TocEntry
from ingest.errors import DocumentTooLarge, EmptyDocument, IngestError, ScannedDocument
from ingest.lines import Line, compose, read_lines
from ingest.parts import Block, Parsed, RawPage
from ingest.ranges import check_range, choose
from ingest.readers.mupdf import (
    load_pymupdf,
    mupdf_errors,
    mupdf_notes,
    open_mupdf,
    parser_name,
    translate,
)
from ingest.request import Request
from ingest.sections import SPLIT_LEVEL, START_LABEL, label_of, number_sections

LAYOUT_WIDTH = 20_000  # some 3,900 letters; MuPDF's floats still hold a sixteenth of a point
LAYOUT_HEIGHT = 1_000_000
LAYOUT_FONT_SIZE = 11
_HEADING_SIZE = 1.15 * LAYOUT_FONT_SIZE
_ANCHOR_SLACK = 6.0  # points that a heading's box may begin above its anchor
_HEADING_REACH = 100.0  # points below an anchor where the heading that it names may stand
_NO_PICTURE_TEXTS = ("[Image unavailable.]", "[image]")  # MuPDF's for a picture it cannot find


@dataclass(frozen=True)
class _Anchor:
    """A line of the contents and where it points: laid-out page index and height on it."""

    level: int
    title: str
    page: int
    y: float


@dataclass
class _Placed:
    block: Block
    page: int
    y: float


def read_ebook(request: Request, on_page: Callable[[int, int], None]) -> Parsed:
    """Read a reflowable book; its Pages are chapters. Raises BrokenDocument, EmptyDocument,
    ScannedDocument (pictures only), DocumentTooLarge, PagesNotFound."""
    check_range(request.pages)
    what = request.kind.upper()
    warnings: list[DocumentWarning] = []
    with open_mupdf(request.path, request.kind, what) as doc:
        try:
            doc.layout(width=LAYOUT_WIDTH, height=LAYOUT_HEIGHT, fontsize=LAYOUT_FONT_SIZE)
            count = doc.page_count
        except mupdf_errors() as error:
            raise translate(error, what) from error
        if count > request.limits.max_pages:
            raise DocumentTooLarge(
                f"The book has {count:,} parts, more than {request.limits.max_pages:,}.",
                "Split it into volumes.",
            )
        placed, pictures = _read_blocks(doc, count, what, warnings, on_page)
        if not placed:
            raise _textless(what, pictures)
        anchors = _anchors(doc)
        title = _title(doc, request.path)
        warnings.extend(mupdf_notes())
    pages, starts = _chapters(placed, _at_headings(anchors, placed))
    chosen = choose(pages, request.pages, request.limits.max_pages, what)
    numbers = {page.number for page in chosen}
    return Parsed(
        kind=request.kind,
        page_kind="chapter",
        title=title,
        pages=chosen,
        toc=[entry for entry in starts if entry.page in numbers],
        warnings=warnings,
        parser=parser_name(),
    )


def _read_blocks(
    doc: Any,
    count: int,
    what: str,
    warnings: list[DocumentWarning],
    on_page: Callable[[int, int], None],
) -> tuple[list[_Placed], bool]:
    """The paragraphs of all laid-out pages, and whether there are pictures."""
    vocabulary = Vocabulary()  # a hyphen at a line end is the author's; MuPDF's own are soft ones
    placed: list[_Placed] = []
    pictures = False
    for index in range(count):
        on_page(index + 1, count)
        try:
            page = doc.load_page(index)
            lines = _all_lines(page)
            pictures = pictures or (not lines and len(page.get_bboxlog()) > 1)
        except mupdf_errors() as error:
            cause = translate(error, what).cause
            warnings.append(DocumentWarning("pages_unreadable", f"Part {index + 1}: {cause}"))
            continue
        for line in lines:
            if line.text.endswith("-"):
                line.text += "\u2060"  # keeps join_lines from taking it for a line-break hyphen
        for block in compose(lines, vocabulary, layout_width=LAYOUT_WIDTH):
            block.text = block.text.replace("-\u2060 ", "-").replace("\u2060", "")
            y = block.rect[1] if block.rect else 0.0
            block.rect = None
            if block.text not in _NO_PICTURE_TEXTS:
                placed.append(_Placed(block, index, y))
    return placed, pictures


def _all_lines(page: Any) -> list[Line]:
    """The lines of a laid-out page, those that run over its edge too (code, wide tables)."""
    pymupdf = load_pymupdf()
    flags = pymupdf.TEXT_PRESERVE_WHITESPACE
    everywhere = pymupdf.INFINITE_RECT()
    stored = page.get_text("dict", flags=flags, sort=False, clip=everywhere)
    return read_lines(stored["blocks"], mark_raised=True)


def _textless(what: str, pictures: bool) -> IngestError:
    if pictures:
        return ScannedDocument(
            f"The {what} holds pictures only and no text.", "Use an edition with text."
        )
    return EmptyDocument(f"There is no text in the {what}.", "Get a fresh copy of the file.")


def _anchors(doc: Any) -> list[_Anchor]:
    """The contents with places, in reading order; entries that point nowhere are left out."""
    try:
        entries = doc.get_toc(simple=False)
    except mupdf_errors():
        return []
    anchors = []
    for level, title, page, target in entries:
        title = " ".join(title.split())
        if not title or page < 1:
            continue
        index, y = page - 1, 0.0
        uri = next((key for key in target if key not in ("kind", "xref", "page", "to")), None)
        if uri is not None:
            index, y = _resolve(doc, uri, index)
        anchors.append(_Anchor(level, title, index, y))
    return sorted(anchors, key=lambda anchor: (anchor.page, anchor.y))


def _resolve(doc: Any, uri: str, index: int) -> tuple[int, float]:
    """Laid-out page and height of a target; without one, the top of page `index`. Of a FictionBook
    the contents name a place in the file itself without the "#" that makes it one."""
    for target in (uri, f"#{uri}"):
        try:
            place = doc.resolve_link(target)
        except mupdf_errors():
            continue  # a name that no link has: the chapter keeps the page that the contents say
        if len(place) == 3 and isinstance(place[0], int) and place[0] >= 0:
            return place[0], max(float(place[2]), 0.0)
    return index, 0.0


def _at_headings(anchors: list[_Anchor], placed: list[_Placed]) -> list[_Anchor]:
    """Anchors at the headings that they name, where one stands near: MuPDF counts the height of a
    target without the page's upper margin, whose size is the book's choice."""
    places = [(item.page, item.y) for item in placed]
    settled = []
    for anchor in anchors:
        first = bisect_left(places, (anchor.page, anchor.y - _ANCHOR_SLACK))
        last = bisect_left(places, (anchor.page, anchor.y + _HEADING_REACH))
        near = (item for item in placed[first:last] if _is_named(item.block, anchor.title))
        heading = next(near, None)
        settled.append(anchor if heading is None else replace(anchor, y=heading.y))
    return sorted(settled, key=lambda anchor: (anchor.page, anchor.y))


def _is_named(block: Block, title: str) -> bool:
    """Whether a block is the heading of this title, with or without a number before it."""
    text, name = _letters(block.text[: 2 * len(title) + 20]), _letters(title)
    return bool(text and name) and (text.endswith(name) or name.endswith(text))


def _letters(text: str) -> str:
    return "".join(char for char in text.casefold() if char.isalnum())


def _chapters(
    placed: list[_Placed], anchors: list[_Anchor]
) -> tuple[list[RawPage], list[TocEntry]]:
    """Cut the paragraphs where the contents point (levels 1 and 2), at chapter files that begin
    with a heading of their own and, in a book without contents, at headings that follow other
    text. Deeper entries only appear in the table of contents."""
    titled: list[tuple[str, list[Block]]] = []
    contents: list[tuple[_Anchor, Block]] = []
    waiting = list(anchors)
    previous: _Placed | None = None
    for item in placed:
        due = []
        while waiting and _reached(waiting[0], item):
            due.append(waiting.pop(0))
        contents.extend((anchor, item.block) for anchor in due)
        cuts = [anchor for anchor in due if anchor.level <= SPLIT_LEVEL]
        if cuts:
            titled.append((label_of(_nearest(cuts, item).title), []))
        elif _begins_chapter(item, previous, bool(anchors)):
            titled.append((label_of(item.block.text), []))
        elif not titled:
            titled.append((START_LABEL if anchors else "Chapter 1", []))
        elif not anchors and previous is not None and item.page != previous.page:
            titled.append((f"Chapter {len(titled) + 1}", []))
        previous = item
        titled[-1][1].append(item.block)
    pages, _ = number_sections(titled)
    page_of = {id(block): page.number for page in pages for block in page.blocks}
    toc = [TocEntry(anchor.level, anchor.title, page_of[id(block)]) for anchor, block in contents]
    return pages, toc


def _begins_chapter(item: _Placed, previous: _Placed | None, has_contents: bool) -> bool:
    if not _is_heading(item.block):
        return False
    if previous is None or item.page != previous.page:
        return True
    return not has_contents and not _is_heading(previous.block)


def _nearest(due: list[_Anchor], item: _Placed) -> _Anchor:
    """Of entries that no text stood between: the first that leads to this page, or else the last.
    Those before it lead to pages of pictures."""
    return next((anchor for anchor in due if anchor.page == item.page), due[-1])


def _reached(anchor: _Anchor, item: _Placed) -> bool:
    return (anchor.page, anchor.y - _ANCHOR_SLACK) <= (item.page, item.y)


def _is_heading(block: Block) -> bool:
    return block.size > _HEADING_SIZE and len(block.text) <= 100


def _title(doc: Any, path: Path) -> str:
    title = " ".join(((doc.metadata or {}).get("title") or "").split())
    return title[:300] or path.stem
