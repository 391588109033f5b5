"""PDF and XPS: fixed pages, read through MuPDF in the order the file stores its text."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from ingest.clean import HYPHENS, Vocabulary, join_lines
from ingest.document import TocEntry
from ingest.errors import PasswordRequired, WrongPassword
from ingest.furniture import EdgePage, find_furniture
from ingest.hidden import HiddenText
from ingest.lines import Line, compose, read_lines
from ingest.parts import Block, Parsed, RawPage
from ingest.ranges import chosen_pages
from ingest.readers.findings import Findings
from ingest.readers.mupdf import (
    load_pymupdf,
    mupdf_errors,
    mupdf_notes,
    open_mupdf,
    parser_name,
    translate,
)
from ingest.request import Request

_ARABIC = re.compile(r"[\u0600-\u06ff\u0750-\u077f]")
_TERMINAL = ".!?:;\"'”’»)]。！？"
_RUN_ON_CHARS = 40  # shorter blocks are cells, labels, headings: never run into each other


def read_pdf(request: Request, on_page: Callable[[int, int], None]) -> Parsed:
    """Read a PDF or XPS. Raises PasswordRequired, WrongPassword, BrokenDocument, ScannedDocument,
    EmptyDocument, DocumentTooLarge, PagesNotFound; damaged single pages become warnings."""
    what = request.kind.upper()
    with open_mupdf(request.path, request.kind, what) as doc:
        _unlock(doc, request.password)
        try:
            count = doc.page_count
        except mupdf_errors() as error:
            raise translate(error, what) from error
        numbers = chosen_pages(count, request.pages, request.limits.max_pages, what)
        findings = Findings(what)
        hidden = HiddenText()
        pages = [_read_page(doc, number, findings, hidden, on_page, count) for number in numbers]
        findings.refuse_textless()
        furniture = find_furniture([EdgePage(p.number, p.height, p.lines) for p in pages])
        findings.removed(furniture, {p.number: p.label for p in pages})
        return Parsed(
            kind=request.kind,
            page_kind="page",
            title=_title(doc, request.path),
            pages=_compose_pages(pages, furniture),
            toc=_contents(doc, numbers),
            warnings=findings.warnings(doc) + hidden.warnings(furniture) + mupdf_notes(),
            parser=parser_name(),
        )


class _ReadPage:
    """One page before its furniture is known."""

    def __init__(self, number: int, label: str, height: float, lines: list[Line]) -> None:
        self.number = number
        self.label = label
        self.height = height
        self.lines = lines
        self.fields: list[str] = []


def _unlock(doc: Any, password: str | None) -> None:
    if not doc.needs_pass:
        return  # not encrypted, or with an empty user password that MuPDF tried already
    if not password:
        raise PasswordRequired("The document is encrypted.", "Enter its password.")
    if not doc.authenticate(password):
        raise WrongPassword(
            "The password does not open the document.",
            "Check capital letters and the keyboard layout, then try again.",
        )


def _read_page(
    doc: Any,
    number: int,
    findings: Findings,
    hidden: HiddenText,
    on_page: Callable[[int, int], None],
    count: int,
) -> _ReadPage:
    on_page(number, count)
    read = _ReadPage(number, str(number), 0.0, [])
    try:
        page = doc.load_page(number - 1)
        read.height = page.rect.height
        read.label = (page.get_label() if doc.is_pdf else "") or str(number)
        read.lines = _lines(page)
        if doc.is_pdf and doc.is_form_pdf:
            read.lines = _without_ticks(page, read.lines)
            read.fields = _form_fields(page, read.lines)
        findings.look(page, number, read.lines, bool(read.fields))
        hidden.look(page, number, read.lines)
    except mupdf_errors() as error:
        findings.unreadable(number, translate(error, findings.what))
    return read


def _lines(page: Any) -> list[Line]:
    """A page's lines. MuPDF spells ligatures out from left to right, which turns Arabic ones
    round; kept as they are they cost blanks after Latin ones. So pages with Arabic are read so.
    """
    pymupdf = load_pymupdf()
    flags = pymupdf.TEXT_PRESERVE_WHITESPACE | pymupdf.TEXT_MEDIABOX_CLIP
    lines = read_lines(page.get_text("dict", flags=flags, sort=False)["blocks"])
    if not any(_ARABIC.search(line.text) for line in lines):
        return lines
    flags |= pymupdf.TEXT_PRESERVE_LIGATURES
    return read_lines(page.get_text("dict", flags=flags, sort=False)["blocks"])


def _without_ticks(page: Any, lines: list[Line]) -> list[Line]:
    """Lines but the marks inside boxes that can be ticked, which are letters of a font of signs."""
    boxes = [widget.rect for widget in page.widgets() if _is_box(widget)]
    signs = [line for line in lines if "dingbats" in line.font.lower()]
    ticks = {id(line) for line in signs if any(_middle(line) in box for box in boxes)}
    return [line for line in lines if id(line) not in ticks]


def _middle(line: Line) -> Any:
    x0, y0, x1, y1 = line.rect
    return load_pymupdf().Point((x0 + x1) / 2, (y0 + y1) / 2)


def _is_box(widget: Any) -> bool:
    pymupdf = load_pymupdf()
    kinds = (pymupdf.PDF_WIDGET_TYPE_CHECKBOX, pymupdf.PDF_WIDGET_TYPE_RADIOBUTTON)
    return widget.field_type in kinds


def _form_fields(page: Any, lines: list[Line]) -> list[str]:
    """Ticked boxes, and filled-in fields whose value the page does not show as text, as
    "name: value"."""
    shown = "".join("".join(line.text.split()) for line in lines)
    found = []
    for widget in page.widgets():
        value = widget.field_value
        if not isinstance(value, str) or value in ("", "Off"):
            continue
        if _is_box(widget) or "".join(value.split()) not in shown:
            name = widget.field_label or widget.field_name or "field"
            found.append(f"{name}: {' '.join(value.split())}")
    return found


def _compose_pages(pages: list[_ReadPage], furniture: dict[int, list[Line]]) -> list[RawPage]:
    vocabulary = Vocabulary(line.text for page in pages for line in page.lines)
    composed = []
    for page in pages:
        dropped = {id(line) for line in furniture.get(page.number, ())}
        kept = [line for line in page.lines if id(line) not in dropped]
        blocks = compose(kept, vocabulary)
        blocks.extend(Block(text, before="\n") for text in page.fields)
        composed.append(RawPage(page.number, page.label, blocks))
    _run_on(composed, vocabulary)
    return composed


def _run_on(pages: list[RawPage], vocabulary: Vocabulary) -> None:
    """Mend paragraphs and words that a column or page break cut; the break keeps its place."""
    blocks = [block for page in pages for block in page.blocks]
    for left, right in pairwise(blocks):
        if not _continues(left, right):
            continue
        left.text, right.before = join_lines(left.text, right.text, vocabulary)


def _continues(left: Block, right: Block) -> bool:
    if abs(left.size - right.size) > 0.6 or not right.text[:1].islower():
        return False
    if min(len(left.text), len(right.text)) < _RUN_ON_CHARS or "\t" in left.text + right.text:
        return False
    last_line = left.text.rpartition("\n")[2]
    return left.text[-1] in HYPHENS or (left.text[-1] not in _TERMINAL and len(last_line) > 20)


def _title(doc: Any, path: Path) -> str:
    title = " ".join(((doc.metadata or {}).get("title") or "").split())
    dull = title.lower().startswith(("untitled", "microsoft word", "microsoft powerpoint"))
    is_file_name = title.lower().endswith((".doc", ".docx", ".pdf", ".tex", ".dvi", ".indd", ".ps"))
    if len(title) < 3 or dull or is_file_name or "\ufffd" in title:
        return path.stem
    return title[:300]


def _contents(doc: Any, numbers: range) -> list[TocEntry]:
    """The outline's entries that point into the chosen pages; a broken outline gives none."""
    try:
        entries = doc.get_toc(simple=True)
    except mupdf_errors():
        return []
    return [
        TocEntry(level, " ".join(title.split()), page)
        for level, title, page in entries
        if page in numbers and title.strip()
    ]
