"""The one door of this room: open_document."""

from __future__ import annotations

from pathlib import Path

from ingest.detect import check_file
from ingest.document import Document
from ingest.errors import ParserCrashed
from ingest.guard import run_guarded
from ingest.limits import ParseLimits
from ingest.ranges import PageRange, check_range
from ingest.request import Request


def open_document(
    path: Path | str,
    password: str | None = None,
    *,
    limits: ParseLimits | None = None,
    pages: PageRange | None = None,
) -> Document:
    """Read a document in a guarded process of its own.

    password  for encrypted PDF files; an encrypted file with an empty password opens without
    pages     (first, last), counted from 1, both included: pages, chapters or sections of the file;
              page numbers in the result stay those of the whole file
    Raises    IngestError, in one of its kinds, and nothing else, for whatever the file may hold
    Changes   nothing; the file is only read
    """
    limits = limits or ParseLimits()
    path = _with_home(Path(path))
    check_range(pages)
    check_file(path, limits)
    request = Request(path.resolve(), password, pages, limits)
    answer = run_guarded(request.to_dict(), limits)
    try:
        return Document.from_json(answer)
    except ValueError as error:
        raise ParserCrashed(
            f"The reading process gave an answer that does not hold together ({error}).",
            "Please report this, with the file if you can share it.",
        ) from error


def _with_home(path: Path) -> Path:
    """`path` with "~" as the home folder; a name that only begins so ("~$draft.txt") stays."""
    try:
        return path.expanduser()
    except RuntimeError:  # no user of that name
        return path
