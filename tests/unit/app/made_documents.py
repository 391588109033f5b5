"""Documents for tests, made from lists of page texts."""

from __future__ import annotations

import hashlib

from ingest.document import Document, Page, Span


def document_of(*page_texts: str, labels: list[str] | None = None, title: str = "Book") -> Document:
    """A text document with one page per argument."""
    pages, spans, at = [], [], 0
    for number, text in enumerate(page_texts, start=1):
        label = labels[number - 1] if labels else str(number)
        pages.append(Page(number, label, at, at + len(text)))
        if text:
            spans.append(Span(at, at + len(text), number))
        at += len(text)
    text = "".join(page_texts)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return Document(
        title, "txt", sha256, text, tuple(pages), tuple(spans), (), (), "page", "test-1"
    )
