"""Everything reading a document can refuse, as one small tree.

IngestError              cause and next_step are plain sentences for the user
|- DocumentMissing       no file at this path
|- NotADocument          a folder, a program, an archive, random bytes
|- UnsupportedDocument   a document, of a kind that cannot be read here
|- EmptyDocument         0 bytes, or pages with nothing on them
|- ScannedDocument       pictures of pages, no text: needs text recognition first
|- BrokenDocument        the right kind, too damaged to read
|- PasswordRequired      encrypted, no password given
|- WrongPassword         encrypted, this password does not open it
|- PagesNotFound         the page range lies outside the document
|- DocumentTooLarge      bytes, pages, characters, expansion or memory over the limit
|- ParseTimeout          took longer than the limit and was stopped
`- ParserCrashed         the reading process died; the application did not
"""

from __future__ import annotations

from typing import Final


class IngestError(Exception):
    """A document that cannot be read, with the cause and the next step as plain sentences."""

    def __init__(self, cause: str, next_step: str = "") -> None:
        super().__init__(f"{cause} {next_step}".strip())
        self.cause = cause
        self.next_step = next_step

    def __reduce__(self) -> tuple[type[IngestError], tuple[str, str]]:
        return type(self), (self.cause, self.next_step)


class DocumentMissing(IngestError, FileNotFoundError):
    """There is no file at the given path."""


class NotADocument(IngestError):
    """The bytes are no document of any kind: a folder, a program, an archive, noise."""


class UnsupportedDocument(IngestError):
    """A known kind of document that cannot be read here; the cause names it."""


class EmptyDocument(IngestError):
    """Nothing in it: 0 bytes, or pages without text and without pictures."""


class ScannedDocument(IngestError):
    """Pictures of pages without a text layer."""


class BrokenDocument(IngestError):
    """The right kind of file, damaged beyond reading."""


class PasswordRequired(IngestError):
    """Encrypted, and no password was given."""


class WrongPassword(IngestError):
    """Encrypted, and the given password does not open it."""


class PagesNotFound(IngestError):
    """The asked-for page range is malformed or outside the document."""


class DocumentTooLarge(IngestError):
    """Over a limit: bytes, pages, characters, unpacked size or memory."""


class ParseTimeout(IngestError):
    """Reading took longer than the limit; the reading process was killed."""


class ParserCrashed(IngestError):
    """The reading process died."""


_BY_NAME: Final[dict[str, type[IngestError]]] = {
    cls.__name__: cls
    for cls in (
        IngestError,
        DocumentMissing,
        NotADocument,
        UnsupportedDocument,
        EmptyDocument,
        ScannedDocument,
        BrokenDocument,
        PasswordRequired,
        WrongPassword,
        PagesNotFound,
        DocumentTooLarge,
        ParseTimeout,
        ParserCrashed,
    )
}


def error_to_dict(error: IngestError) -> dict[str, str]:
    """The error as plain strings, for the way from the worker to the parent."""
    return {"type": type(error).__name__, "cause": error.cause, "next_step": error.next_step}


def error_from_dict(data: dict[str, str]) -> IngestError:
    """The reverse of error_to_dict; an unknown type becomes a ParserCrashed."""
    cls = _BY_NAME.get(data.get("type", ""), ParserCrashed)
    return cls(data.get("cause", "The reading process gave no cause."), data.get("next_step", ""))
