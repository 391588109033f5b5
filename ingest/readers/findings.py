"""What a PDF reader notices on the way: pages without text, garbage, things left unread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ingest.clean import page_ranges
from ingest.document import DocumentWarning
from ingest.edgerows import is_bare_number, numbers_of
from ingest.errors import BrokenDocument, EmptyDocument, IngestError, ScannedDocument
from ingest.lines import Line
from ingest.wordlike import is_unlike_language

GARBAGE_SHARE = 0.05
_MIN_GARBAGE = 5
_MAX_LOOKED_AT = 200  # pages without text whose drawings are counted
_OUTLINED_PATHS = 50  # so many drawn paths and no text: letters drawn as shapes
_OCR_STEP = "Run text recognition (OCR) on it first, for example with OCRmyPDF."


class Findings:
    """Counts while pages are read; refuse_textless() and warnings() judge at the end."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._pages = 0
        self._chars = 0
        self._garbage = 0
        self._garbage_pages: list[int] = []
        self._strange_pages: list[int] = []
        self._picture_pages: list[int] = []
        self._blank_pages = 0
        self._text_pages = 0
        self._unreadable: dict[int, IngestError] = {}
        self._comments: list[int] = []
        self._removed: Counter[str] = Counter()
        self._numbers: list[str] = []

    def look(self, page: Any, number: int, lines: Sequence[Line], has_fields: bool) -> None:
        """Note one page's text, garbage, comments and, if it has no text, its pictures."""
        self._pages += 1
        raw, garbage = sum(line.raw_chars for line in lines), sum(line.garbage for line in lines)
        self._chars += raw
        self._garbage += garbage
        if garbage > max(_MIN_GARBAGE, GARBAGE_SHARE * raw):
            self._garbage_pages.append(number)
        elif is_unlike_language("\n".join(line.text for line in lines)):
            self._strange_pages.append(number)
        if has_fields or any(line.text for line in lines):
            self._text_pages += 1
        elif self._blank_pages + len(self._picture_pages) < _MAX_LOOKED_AT and not _has_picture(
            page
        ):
            self._blank_pages += 1
        else:
            self._picture_pages.append(number)
        if _has_comments(page):
            self._comments.append(number)

    def unreadable(self, number: int, error: IngestError) -> None:
        """Note a page that could not be read at all."""
        self._pages += 1
        self._unreadable[number] = error

    def removed(self, furniture: dict[int, list[Line]], labels: Mapping[int, str]) -> None:
        """Note the running headers and footers that were left out, and numbers that are neither
        the page's index nor its label.
        """
        for index, lines in sorted(furniture.items()):
            for line in lines:
                if any(map(str.isdigit, line.text)) and is_bare_number(line.text):
                    own = {index, *numbers_of(labels[index])}
                    if own.isdisjoint(numbers_of(line.text)):
                        self._numbers.append(line.text)
                elif any(map(str.isalpha, line.text)):
                    self._removed[line.text] += 1

    def refuse_textless(self) -> None:
        """Raises BrokenDocument, ScannedDocument or EmptyDocument if no page has any text."""
        if self._text_pages:
            return
        if self._unreadable and not self._picture_pages:
            raise next(iter(self._unreadable.values()))
        pages = f"{self._pages} page{'s' if self._pages > 1 else ''}"
        if self._picture_pages:
            raise ScannedDocument(
                f"The document has {pages} of pictures or drawings and no text in it.", _OCR_STEP
            )
        if self._garbage:
            raise BrokenDocument("The text of the document cannot be decoded.", _OCR_STEP)
        them = "them" if self._pages > 1 else "it"
        raise EmptyDocument(f"The document has {pages} with nothing on {them}.", "Choose another.")

    def warnings(self, doc: Any) -> list[DocumentWarning]:
        """Everything worth telling, grouped; page is the first page concerned."""
        found = []
        if self._unreadable:
            cause = next(iter(self._unreadable.values())).cause
            found.append(
                _on(
                    "pages_unreadable", "Damaged and not read: pages {}. " + cause, self._unreadable
                )
            )
        if self._picture_pages:
            text = "Pictures without text, not read: pages {}. " + _OCR_STEP
            found.append(_on("pages_without_text", text, self._picture_pages))
        found.extend(self._garbage_warnings())
        if self._strange_pages:
            text = (
                "The letters stored for pages {} may not be those that are shown: they look "
                "like no words. If so, nothing said about them can be relied on. "
            )
            found.append(_on("strange_letters", text + _OCR_STEP, self._strange_pages))
        if self._comments:
            text = "Not read: comments and notes on pages {}."
            found.append(_on("comments_skipped", text, self._comments))
        found.extend(_document_warnings(doc))
        if self._removed or self._numbers:
            found.append(DocumentWarning("running_lines_removed", self._left_out()))
        return found

    def _left_out(self) -> str:
        shown = "; ".join(f'"{text}"' for text, _ in self._removed.most_common(5))
        more = f" and {len(self._removed) - 5} more" if len(self._removed) > 5 else ""
        lines = f"Running headers and footers were left out: {shown}{more}." if shown else ""
        if not self._numbers:
            return lines
        first, last = self._numbers[0], self._numbers[-1]
        span = f'"{first}"' if first == last else f'from "{first}" to "{last}"'
        return f"{lines} Numbers at the edges of pages were left out: {span}.".lstrip()

    def _garbage_warnings(self) -> list[DocumentWarning]:
        if self._garbage > max(_MIN_GARBAGE, GARBAGE_SHARE * self._chars):
            share = f"{self._garbage / max(self._chars, 1):.0%}"
            message = f"{share} of the characters cannot be decoded: the text layer is damaged. "
            return [DocumentWarning("garbage_text", message + _OCR_STEP)]
        if self._garbage_pages:
            text = "Much of the text cannot be decoded on pages {}."
            return [_on("garbage_text", text, self._garbage_pages)]
        return []


def _on(code: str, text: str, pages: Sequence[int] | dict[int, Any]) -> DocumentWarning:
    numbers = list(pages)
    message = text.replace("{}", page_ranges(numbers), 1)
    if len(numbers) == 1:
        message = message.replace("pages ", "page ", 1)
    return DocumentWarning(code, message, numbers[0])


def _has_picture(page: Any) -> bool:
    paths = 0
    for kind, _ in page.get_bboxlog():
        if "image" in kind or "img" in kind or "shade" in kind:
            return True
        paths += "path" in kind
    return paths >= _OUTLINED_PATHS


def _has_comments(page: Any) -> bool:
    """Whether a reader would open notes here; what is typed onto the page is read as its text."""
    return any(
        annotation.info.get("content", "").strip()
        for annotation in (page.annots() or ())
        if annotation.type[1] not in ("Widget", "FreeText")
    )


def _document_warnings(doc: Any) -> list[DocumentWarning]:
    if not doc.is_pdf:
        return []
    found = []
    if doc.is_repaired:
        found.append(DocumentWarning("repaired", "The file was damaged and has been repaired."))
    attachments = doc.embfile_count()
    if attachments:
        message = f"{attachments} attached file{'s' if attachments > 1 else ''} not read."
        found.append(DocumentWarning("attachments_skipped", message))
    return found
