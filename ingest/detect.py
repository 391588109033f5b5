"""Which kind of document a file is: by its first bytes, its name only decides between texts."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from ingest.archive import archive_kind
from ingest.charset import Decoded, decode
from ingest.errors import (
    DocumentMissing,
    DocumentTooLarge,
    EmptyDocument,
    IngestError,
    NotADocument,
    UnsupportedDocument,
)
from ingest.limits import MIB, ParseLimits

KINDS = ("pdf", "epub", "mobi", "fb2", "xps", "txt", "markdown", "html", "docx")
MARKDOWN_SUFFIXES = (".md", ".markdown", ".mdown", ".mkd")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
PLAIN_SUFFIXES = (".txt", ".text", "")
TEXT_SUFFIXES = (*MARKDOWN_SUFFIXES, *HTML_SUFFIXES, ".txt", ".text")
_HEAD_BYTES = 4096
_AS_PDF = "Save it as PDF and open that."
_AS_DOCX = "Save it as DOCX or PDF and open that."
_UNPACK = "Unpack it and open the document inside."

_REFUSED: tuple[tuple[bytes, type[IngestError], str, str], ...] = (
    (b"{\\rtf", UnsupportedDocument, "an RTF document", _AS_DOCX),
    (b"AT&TFORM", UnsupportedDocument, "a DjVu document", _AS_PDF),
    (b"%!PS", UnsupportedDocument, "a PostScript file", _AS_PDF),
    (b"TPZ", UnsupportedDocument, "a Kindle Topaz book", "Convert it to EPUB and open that."),
    (b"CONT", UnsupportedDocument, "a Kindle KFX book", "Convert it to EPUB and open that."),
    (b"ITSF", UnsupportedDocument, "a compiled help file (CHM)", _AS_PDF),
    (b"ITOLITLS", UnsupportedDocument, "a Microsoft Reader book", "Convert it to EPUB."),
    (b"\x89PNG", UnsupportedDocument, "a picture (PNG)", "Run text recognition on it first."),
    (b"\xff\xd8\xff", UnsupportedDocument, "a picture (JPEG)", "Run text recognition on it first."),
    (b"GIF8", UnsupportedDocument, "a picture (GIF)", "Run text recognition on it first."),
    (b"II*\0", UnsupportedDocument, "a picture (TIFF)", "Run text recognition on it first."),
    (b"MM\0*", UnsupportedDocument, "a picture (TIFF)", "Run text recognition on it first."),
    (b"MZ", NotADocument, "a Windows program", "Choose a document."),
    (b"\x7fELF", NotADocument, "a Linux program", "Choose a document."),
    (b"\xcf\xfa\xed\xfe", NotADocument, "a macOS program", "Choose a document."),
    (b"SQLite format 3", NotADocument, "a database", "Choose a document."),
    (b"GGUF", NotADocument, "a model file", "Choose a document."),
    (b"\x1f\x8b", NotADocument, "a gzip archive", _UNPACK),
    (b"7z\xbc\xaf", NotADocument, "a 7-Zip archive", _UNPACK),
    (b"Rar!", NotADocument, "a RAR archive", _UNPACK),
    (b"BZh", NotADocument, "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ", NotADocument, "an xz archive", _UNPACK),
)
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED_OFFICE = "EncryptedPackage".encode("utf-16-le")


@dataclass(frozen=True)
class Detected:
    """The kind, and for text kinds the decoded text; `assumed` is a sentence if the kind of text
    was taken for granted (a CSV or JSON file read as plain text)."""

    kind: str
    decoded: Decoded | None = None
    assumed: str | None = None


def check_file(path: Path, limits: ParseLimits) -> int:
    """Size of the file in bytes, if it can be a document at all.

    Raises DocumentMissing, NotADocument (a folder or device), EmptyDocument, DocumentTooLarge.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DocumentMissing(f"There is no file {path}.", "Check the path.") from error
    except (OSError, ValueError) as error:
        raise DocumentMissing(f"The path {path} cannot be used: {error}.", "Check it.") from error
    if path.is_dir():
        raise NotADocument(f"{path} is a folder.", "Choose a file inside it.")
    if not path.is_file():
        raise NotADocument(f"{path} is not an ordinary file.", "Choose a document.")
    if size == 0:
        raise EmptyDocument("The file is empty (0 bytes).", "Get a fresh copy of the file.")
    if size > limits.max_file_bytes:
        raise DocumentTooLarge(
            f"The file has {size / MIB:,.0f} MiB, more than "
            f"{limits.max_file_bytes / MIB:,.0f} MiB.",
            "Split it, or save it without pictures.",
        )
    return size


def detect(path: Path, limits: ParseLimits) -> Detected:
    """Which kind the file is. Binary kinds are known by content and win over a wrong file name;
    anything that decodes as text is a text of some kind, JSON and CSV included.

    Raises what check_file and archive_kind raise, UnsupportedDocument and NotADocument.
    """
    check_file(path, limits)
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return Detected(archive_kind(path, suffix, limits))
    if _is_pdf(head, suffix) or (suffix == ".pdf" and _mentions_pdf(path)):
        return Detected("pdf")
    if head[60:68] in (b"BOOKMOBI", b"TEXtREAd"):
        return Detected("mobi")
    _refuse_known(path, head)
    if suffix in (".epub", ".docx", ".xps", ".oxps"):
        return Detected(archive_kind(path, suffix, limits))
    return _text_kind(path, suffix)


def _is_pdf(head: bytes, suffix: str) -> bool:
    """Whether the header of a PDF begins a file, or stands in its first 1,024 bytes as readers of
    PDF allow. In a file named as text, text before it says that it is only spoken of."""
    before, header, _ = head[:1024].partition(b"%PDF-")
    if not header or suffix not in TEXT_SUFFIXES:
        return bool(header)
    words = before.removeprefix(codecs.BOM_UTF8).strip()
    return not words or any(byte < 0x09 for byte in words)


def _mentions_pdf(path: Path) -> bool:
    """Whether a .pdf without its header still has objects, which the reader may repair."""
    with path.open("rb") as file:
        data = file.read(MIB)
    return b" obj" in data and b"endobj" in data


def _refuse_known(path: Path, head: bytes) -> None:
    for magic, error, what, next_step in _REFUSED:
        if head.startswith(magic) and not (magic in (b"MZ", b"CONT", b"TPZ") and head.isascii()):
            raise error(f"This is {what}, not a document that can be read.", next_step)
    if head.startswith(_OLE):
        with path.open("rb") as file:
            encrypted = _ENCRYPTED_OFFICE in file.read(64 * MIB)
        if encrypted:
            raise UnsupportedDocument(
                "This is an office file protected with a password, which cannot be opened here.",
                "Open it in its own program and save it without the password, or as PDF.",
            )
        raise UnsupportedDocument(
            "This is an old office file (DOC, XLS or PPT), which cannot be read.", _AS_DOCX
        )


def _text_kind(path: Path, suffix: str) -> Detected:
    decoded = decode(path.read_bytes(), declared=suffix not in MARKDOWN_SUFFIXES)
    if decoded is None:
        named = f" although it is named {suffix}" if suffix else ""
        raise NotADocument(
            f"The file holds no text and is no known kind of document{named}.",
            "Choose a PDF, EPUB, MOBI, FB2, XPS, DOCX, HTML, Markdown or text file.",
        )
    if suffix == ".pdf":
        raise NotADocument(
            "The file is named .pdf but holds no PDF.", "Get a fresh copy of the file."
        )
    start = decoded.text[:2000].lstrip("\ufeff \t\r\n").lower()
    if "<fictionbook" in start:
        return Detected("fb2")
    if suffix in MARKDOWN_SUFFIXES:
        return Detected("markdown", decoded)
    if suffix in HTML_SUFFIXES or _looks_like_html(start):
        return Detected("html", decoded)
    assumed = None
    if suffix not in PLAIN_SUFFIXES:
        assumed = f"{suffix} files are read as plain text, markup and all."
    return Detected("txt", decoded, assumed)


def _looks_like_html(start: str) -> bool:
    if start.startswith("<?xml"):
        start = re.sub(r"^<\?xml[^>]*\?>\s*(<!--.*?-->\s*)*", "", start, flags=re.DOTALL)
    return start.startswith(("<!doctype html", "<html"))
