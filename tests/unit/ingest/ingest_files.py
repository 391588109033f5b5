"""Small documents of every kind, written by the tests themselves."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingest.document import Document
from ingest.limits import ParseLimits
from ingest.ranges import PageRange
from ingest.readers.mupdf import load_pymupdf
from ingest.request import Request
from ingest.worker import parse

PAGE = (595, 842)


def read_here(
    path: Path,
    password: str | None = None,
    pages: PageRange | None = None,
    limits: ParseLimits | None = None,
) -> Document:
    """Parse in the test's own process: quick, and with readable tracebacks."""
    return parse(Request(path, password, pages, limits or ParseLimits()), lambda page, count: None)


def codes(document: Document) -> set[str]:
    """The codes of a document's warnings."""
    return {warning.code for warning in document.warnings}


def new_pdf() -> Any:
    """An empty PDF to draw on."""
    return load_pymupdf().open()


def add_page(doc: Any, lines: Sequence[str], *, x: float = 72, y: float = 100) -> Any:
    """A page with lines of text, 14 points apart."""
    page = doc.new_page(width=PAGE[0], height=PAGE[1])
    for index, line in enumerate(lines):
        page.insert_text((x, y + 14 * index), line, fontsize=11)
    return page


def save(doc: Any, path: Path, **options: Any) -> Path:
    """Write and close a PDF."""
    doc.save(path, **options)
    doc.close()
    return path


def make_pdf(path: Path, pages: Sequence[Sequence[str]], **options: Any) -> Path:
    """A PDF with the given lines on its pages."""
    doc = new_pdf()
    for lines in pages:
        add_page(doc, lines)
    return save(doc, path, **options)


def make_epub(path: Path, chapters: Sequence[tuple[str, str]]) -> Path:
    """An EPUB with (title, XHTML body) chapters and a table of contents."""
    items = range(len(chapters))
    manifest = "".join(
        f'<item id="c{i}" href="c{i}.xhtml" media-type="application/xhtml+xml"/>' for i in items
    )
    spine = "".join(f'<itemref idref="c{i}"/>' for i in items)
    points = "".join(
        f'<navPoint id="n{i}" playOrder="{i + 1}"><navLabel><text>{title}</text></navLabel>'
        f'<content src="c{i}.xhtml"/></navPoint>'
        for i, (title, _) in enumerate(chapters)
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        book.writestr(
            "META-INF/container.xml",
            '<?xml version="1.0"?><container version="1.0" '
            'xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile '
            'full-path="book.opf" media-type="application/oebps-package+xml"/></rootfiles>'
            "</container>",
        )
        book.writestr(
            "book.opf",
            '<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="2.0" '
            'unique-identifier="i"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
            "<dc:title>A Made Book</dc:title><dc:language>en</dc:language>"
            '<dc:identifier id="i">made</dc:identifier></metadata><manifest>'
            '<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>'
            f'{manifest}</manifest><spine toc="ncx">{spine}</spine></package>',
        )
        book.writestr(
            "toc.ncx",
            '<?xml version="1.0"?><ncx xmlns="http://www.daisy.org/z3986/2005/ncx/" '
            f'version="2005-1"><head/><docTitle><text>t</text></docTitle><navMap>{points}'
            "</navMap></ncx>",
        )
        for i, (title, body) in enumerate(chapters):
            book.writestr(
                f"c{i}.xhtml",
                '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml">'
                f"<head><title>{title}</title></head><body>{body}</body></html>",
            )
    return path


def make_fb2(path: Path) -> Path:
    """A FictionBook with two titled sections."""
    section = "<section><title><p>{0}</p></title><p>{1}</p></section>"
    path.write_text(
        '<?xml version="1.0" encoding="utf-8"?>'
        '<FictionBook xmlns="http://www.gribuser.ru/xml/fictionbook/2.0"><description><title-info>'
        "<book-title>Small Fiction</book-title></title-info></description><body>"
        + section.format("One", "The first part speaks of otters.")
        + section.format("Two", "The second part speaks of herons.")
        + "</body></FictionBook>",
        encoding="utf-8",
    )
    return path


def make_mobi(path: Path, html: str) -> Path:
    """An uncompressed Mobipocket book: Palm database, header record, one text record."""
    text = html.encode("utf-8")
    palmdoc = struct.pack(">HHIHHI", 1, 0, len(text), 1, 4096, 0)
    mobi = b"MOBI" + struct.pack(">III", 232, 2, 65001) + b"\0" * 216
    records = [palmdoc + mobi, text]
    header = b"Made\0".ljust(32, b"\0") + b"\0" * 28 + b"BOOKMOBI" + b"\0" * 8
    header += struct.pack(">H", len(records))
    offset = len(header) + 8 * len(records) + 2
    table = b""
    for index, record in enumerate(records):
        table += struct.pack(">II", offset, index)
        offset += len(record)
    path.write_bytes(header + table + b"\0\0" + b"".join(records))
    return path


def make_xps(path: Path, lines: Sequence[str]) -> Path:
    """An XPS file of one page, set in the font that pymupdf carries."""
    font = load_pymupdf().Font("helv").buffer
    glyphs = "".join(
        f'<Glyphs Fill="#ff000000" FontUri="/f.ttf" FontRenderingEmSize="14" OriginX="96" '
        f'OriginY="{120 + 20 * i}" UnicodeString="{line}"/>'
        for i, line in enumerate(lines)
    )
    xps = "http://schemas.microsoft.com/xps/2005/06"
    rels = "http://schemas.openxmlformats.org/package/2006"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{rels}/content-types">'
            '<Default Extension="fdseq" ContentType="a/b"/></Types>',
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{rels}/relationships"><Relationship Type="{xps}'
            '/fixedrepresentation" Target="/s.fdseq" Id="r"/></Relationships>',
        )
        archive.writestr(
            "s.fdseq",
            f'<FixedDocumentSequence xmlns="{xps}"><DocumentReference Source="/d.fdoc"/>'
            "</FixedDocumentSequence>",
        )
        archive.writestr(
            "d.fdoc",
            f'<FixedDocument xmlns="{xps}"><PageContent Source="/p.fpage"/></FixedDocument>',
        )
        archive.writestr(
            "p.fpage", f'<FixedPage xmlns="{xps}" Width="816" Height="1056">{glyphs}</FixedPage>'
        )
        archive.writestr("f.ttf", font)
    return path
