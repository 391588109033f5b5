"""Word documents: body, tables, text boxes and notes in order, sections by heading styles.

python-docx opens the package and knows the styles; the text is walked in the XML, because its
paragraph API leaves out inserted revisions, content controls and text boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ingest.archive import ZIP_ERRORS
from ingest.clean import clean_line
from ingest.document import DocumentWarning
from ingest.errors import BrokenDocument, EmptyDocument, ScannedDocument
from ingest.parts import Block, Parsed
from ingest.ranges import check_range, choose
from ingest.request import Request
from ingest.sections import label_of, sections_from_blocks
from ingest.superscript import BEGIN, END, settle

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_DROPPED = {
    _W + "del",
    _W + "moveFrom",
    _W + "instrText",
    _FALLBACK,
    _W + "pPr",
    _W + "rPr",
    _W + "rt",
}
_BREAKS = {_W + "br": "\n", _W + "cr": "\n", _W + "tab": "\t", _W + "noBreakHyphen": "-"}
# parts of equations: exponents and limits, indices, fractions, rows of matrices
_IN_LINE = {
    _M + name: sign
    for name, sign in {"sup": "^", "sub": "_", "num": "", "den": "/", "mr": " "}.items()
}
_BODY_TEXT = 9  # of outline levels, which count from 0
_NOTES = {"footnotes": "Footnotes", "endnotes": "Endnotes"}


def read_docx(request: Request, on_page: Callable[[int, int], None]) -> Parsed:
    """Read a DOCX file; its Pages are sections under headings of level 1 and 2, because a Word
    file has no pages until a printer driver makes them.
    Raises BrokenDocument, EmptyDocument, ScannedDocument, PagesNotFound, DocumentTooLarge."""
    check_range(request.pages)
    document = _open(request.path)
    levels = _heading_levels(document)
    blocks = list(_body_blocks(document.element.body, levels))
    blocks.extend(_notes(document))
    if not blocks:
        raise _textless(document)
    pages, toc = sections_from_blocks(blocks)
    chosen = choose(pages, request.pages, request.limits.max_pages, "Word")
    on_page(len(pages), len(pages))
    numbers = {page.number for page in chosen}
    first = next((block.text for block in blocks if block.level == 1), "")
    title = (document.core_properties.title or "").strip()
    return Parsed(
        kind="docx",
        page_kind="section",
        title=title[:300] or label_of(first) or request.path.stem,
        pages=chosen,
        toc=[entry for entry in toc if entry.page in numbers],
        warnings=_warnings(document),
        parser="python-docx",
    )


def _open(path: Path) -> Any:
    import docx
    from docx.opc.exceptions import OpcError
    from lxml.etree import LxmlError

    try:
        document = docx.Document(str(path))
        if document.element.body is None:
            raise KeyError("no body")
        return document
    except (OpcError, LxmlError, KeyError, AttributeError, *ZIP_ERRORS) as error:
        raise BrokenDocument(
            f"The Word file is damaged and cannot be read ({' '.join(str(error).split())[:160]}).",
            "Open it in Word or LibreOffice and save it again.",
        ) from error


def _heading_levels(document: Any) -> dict[str, int]:
    """Style id to heading level; a style without a level of its own has that of its base."""
    return {style.style_id: _style_level(style) for style in document.styles}


def _style_level(style: Any) -> int:
    seen: set[str] = set()
    while style is not None and style.style_id not in seen:
        seen.add(style.style_id)
        name = (style.name or "").lower()
        if name == "title":
            return 1
        if name.startswith("heading ") and name[8:].isdigit():
            return int(name[8:])
        level = _outline_level(style.element)
        if level is not None:
            return level
        style = getattr(style, "base_style", None)  # a list's style has none
    return 0


def _outline_level(element: Any) -> int | None:
    """The heading level that a style or paragraph sets itself, 0 for body text, or None."""
    outline = element.find(f"{_W}pPr/{_W}outlineLvl")
    value = "" if outline is None else outline.get(_W + "val", "")
    if not (value.isascii() and value.isdigit()):
        return None
    return int(value) + 1 if int(value) < _BODY_TEXT else 0


def _body_blocks(parent: Any, levels: dict[str, int]) -> Iterator[Block]:
    for element in parent:
        if element.tag == _W + "p":
            yield from _paragraph_blocks(element, levels)
        elif element.tag == _W + "tbl":
            yield from _table_blocks(element)
        elif element.tag not in _DROPPED and len(element):
            yield from _body_blocks(element, levels)  # content controls, inserted paragraphs


def _paragraph_blocks(paragraph: Any, levels: dict[str, int]) -> Iterator[Block]:
    text = _text(paragraph)
    if text:
        level = _paragraph_level(paragraph, levels)
        is_item = not level and paragraph.find(f"{_W}pPr/{_W}numPr") is not None
        if is_item:
            yield Block(f"- {text}", before="\n")
        else:
            yield Block(text, level=level)
    for box in paragraph.iter(_W + "txbxContent"):
        if not any(parent.tag in _DROPPED for parent in box.iterancestors()):
            yield from _body_blocks(box, levels)


def _paragraph_level(paragraph: Any, levels: dict[str, int]) -> int:
    own = _outline_level(paragraph)
    if own is not None:
        return own
    style = paragraph.find(f"{_W}pPr/{_W}pStyle")
    return levels.get(style.get(_W + "val", ""), 0) if style is not None else 0


def _table_blocks(table: Any) -> Iterator[Block]:
    """A block a row, cells parted by tabs; tables inside cells are written into the cell."""
    before = "\n\n"
    for row in table.iter(_W + "tr"):
        if next(row.iterancestors(_W + "tbl")) is not table:
            continue
        cells = [
            " ".join(filter(None, (_text(paragraph) for paragraph in cell.iter(_W + "p"))))
            for cell in row.iterchildren(_W + "tc", _W + "sdt")
        ]
        text = "\t".join(" ".join(cell.split()) for cell in cells)
        if text.strip():
            yield Block(text.rstrip(), before=before)
            before = "\n"


def _text(paragraph: Any) -> str:
    pieces: list[str] = []
    _collect(paragraph, pieces)
    lines = settle("".join(pieces)).split("\n")
    return "\n".join(clean_line(line) for line in lines).strip("\n")


def _collect(element: Any, pieces: list[str]) -> None:
    for child in element:
        if child.tag in _DROPPED or child.tag == _W + "txbxContent":
            continue
        if child.tag in (_W + "t", _M + "t"):
            pieces.append(child.text or "")
        elif child.tag in _BREAKS:
            pieces.append(_BREAKS[child.tag])
        elif child.tag in _IN_LINE:
            pieces.append(_in_line(child))
        elif child.tag == _W + "r" and _is_raised(child):
            pieces.append(BEGIN)
            _collect(child, pieces)
            pieces.append(END)
        elif len(child):
            _collect(child, pieces)


def _in_line(part: Any) -> str:
    """A part of an equation with the sign that says where it stood: "x^2", "(a+b)/2"."""
    if part.tag == _M + "mr":
        return "".join(f" {_pieces_of(cell)}" for cell in part)
    text = _pieces_of(part)
    if not text:
        return ""
    return _IN_LINE[part.tag] + (text if text.isalnum() else f"({text})")


def _pieces_of(element: Any) -> str:
    pieces: list[str] = []
    _collect(element, pieces)
    return "".join(pieces).strip()


def _is_raised(run: Any) -> bool:
    place = run.find(f"{_W}rPr/{_W}vertAlign")
    return place is not None and place.get(_W + "val") == "superscript"


def _notes(document: Any) -> Iterator[Block]:
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    for relation in document.part.rels.values():
        kind = relation.reltype.rpartition("/")[2]
        if kind not in _NOTES or relation.is_external:
            continue
        root = etree.fromstring(relation.target_part.blob, parser)
        texts = [
            " ".join(filter(None, (_text(paragraph) for paragraph in note.iter(_W + "p"))))
            for note in root
            if note.get(_W + "type") is None  # separators have a type
        ]
        texts = [text for text in texts if text]
        if texts:
            yield Block(_NOTES[kind], level=1)
            yield from (Block(f"[{number}] {text}") for number, text in enumerate(texts, start=1))


def _textless(document: Any) -> EmptyDocument | ScannedDocument:
    if any("image" in relation.reltype for relation in document.part.rels.values()):
        return ScannedDocument(
            "The Word file holds pictures only and no text.",
            "Save it as PDF and run text recognition (OCR) on it.",
        )
    return EmptyDocument("There is no text in the Word file.", "Choose another file.")


def _warnings(document: Any) -> list[DocumentWarning]:
    found = []
    body = document.element.body
    if next(body.iter(_W + "del"), None) is not None:
        message = "The file has tracked changes: deleted text is left out, inserted text is read."
        found.append(DocumentWarning("tracked_changes", message))
    if any(r.reltype.endswith("/comments") for r in document.part.rels.values()):
        found.append(DocumentWarning("comments_skipped", "Comments are not read."))
    if next(body.iter(_M + "oMath"), None) is not None:
        message = "The file has equations: they are read as lines of text, without their layout."
        found.append(DocumentWarning("equations_in_line", message))
    hidden = [run for run in body.iter(_W + "vanish") if run.get(_W + "val") not in ("0", "false")]
    if hidden:
        message = "The file has text formatted as hidden; it is read all the same."
        found.append(DocumentWarning("hidden_text", message))
    return found
