"""Plain text, taken as it is: only line ends are made one kind."""

from __future__ import annotations

import re
from collections.abc import Callable

from ingest.charset import Decoded
from ingest.document import DocumentWarning
from ingest.errors import EmptyDocument, NotADocument
from ingest.parts import Block, Parsed
from ingest.ranges import check_range, choose
from ingest.request import Request
from ingest.sections import sections_from_blocks

_HEADING = re.compile(
    r"(?:chapter|book|part|letter|act|scene|canto|volume|appendix|kapitel|teil|buch|chapitre)"
    r"\s+(?:[ivxlcdm]+|\d+|[a-z]|one|two|three|four|five|six|seven|eight|nine|ten|the \w+)"
    r"\b.{0,60}",
    re.IGNORECASE,
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[mK]")
_MIN_HEADINGS = 2


def read_text(request: Request, on_page: Callable[[int, int], None]) -> Parsed:
    """Read a text file; its Pages are chapters where lines such as "CHAPTER IV" stand alone, else
    sections of about 3000 characters. Raises EmptyDocument, PagesNotFound, DocumentTooLarge."""
    check_range(request.pages)
    text = normal_text(request.decoded, request.path.name)
    blocks = paragraphs(text)
    headings = [block for block in blocks if _is_heading(block.text)]
    if len(headings) >= _MIN_HEADINGS:
        for block in headings:
            block.level = 1
    pages, toc = sections_from_blocks(blocks)
    chosen = choose(pages, request.pages, request.limits.max_pages, "text")
    on_page(len(pages), len(pages))
    numbers = {page.number for page in chosen}
    return Parsed(
        kind="txt",
        page_kind="section",
        title=request.path.stem,
        pages=chosen,
        toc=[entry for entry in toc if entry.page in numbers],
        warnings=text_warnings(request),
    )


def normal_text(decoded: Decoded | None, name: str) -> str:
    """The decoded text with "\\n" line ends and without byte order mark or NUL."""
    if decoded is None:
        raise NotADocument(f"{name} holds no text.", "Choose a document.")
    text = decoded.text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    text = _COLOUR.sub("", text.replace("\f", "\n").replace("\0", ""))
    if not text.strip():
        raise EmptyDocument("The file holds nothing but blank space.", "Choose another file.")
    return text


def paragraphs(text: str) -> list[Block]:
    """Runs of lines between blank lines, each as a Block; the lines stay as they are."""
    found = re.split(r"\n(?:[^\S\n]*\n)+", text)
    return [Block(part.strip("\n").rstrip()) for part in found if part.strip()]


def _is_heading(text: str) -> bool:
    return (
        len(text) <= 100
        and text.count("\n") <= 1
        and bool(_HEADING.fullmatch(" ".join(text.split())))
    )


def text_warnings(request: Request) -> list[DocumentWarning]:
    """A guessed encoding, undecoded bytes, and a kind of text that was taken for granted."""
    found = []
    if request.decoded is not None and request.decoded.guessed:
        message = (
            f"The file is not UTF-8 and names no other encoding: read as "
            f"{request.decoded.encoding}. Odd letters mean that this guess was wrong."
        )
        found.append(DocumentWarning("encoding_guessed", message))
    if request.decoded is not None and request.decoded.undecoded:
        found.append(_undecoded(request.decoded))
    if request.assumed:
        found.append(DocumentWarning("read_as_text", request.assumed))
    return found


def _undecoded(decoded: Decoded) -> DocumentWarning:
    n = decoded.undecoded
    message = (
        f"{n:,} byte{' could' if n == 1 else 's could'} not be decoded as {decoded.encoding}: "
        "a \ufffd stands in the place."
    )
    return DocumentWarning("bytes_undecoded", message)
