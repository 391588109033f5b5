"""Bytes in, Document out. Knows no tokens, no model, no session and no screen.

Every file is parsed in a subprocess with limits on time, memory and size; see open_document.
"""

from ingest.document import Document, DocumentWarning, Page, Span, TocEntry
from ingest.errors import (
    BrokenDocument,
    DocumentMissing,
    DocumentTooLarge,
    EmptyDocument,
    IngestError,
    NotADocument,
    PagesNotFound,
    ParserCrashed,
    ParseTimeout,
    PasswordRequired,
    ScannedDocument,
    UnsupportedDocument,
    WrongPassword,
)
from ingest.limits import ParseLimits
from ingest.opening import open_document

__all__ = [
    "BrokenDocument",
    "Document",
    "DocumentMissing",
    "DocumentTooLarge",
    "DocumentWarning",
    "EmptyDocument",
    "IngestError",
    "NotADocument",
    "Page",
    "PagesNotFound",
    "ParseLimits",
    "ParseTimeout",
    "ParserCrashed",
    "PasswordRequired",
    "ScannedDocument",
    "Span",
    "TocEntry",
    "UnsupportedDocument",
    "WrongPassword",
    "open_document",
]
