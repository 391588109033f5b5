"""The process that touches the file: `python -m ingest.worker RESULT PROGRESS`, request on stdin.

It limits its own memory first, writes one JSON object to RESULT ({"document": ...} or
{"error": ...}) and the page it is at to PROGRESS, and never prints a document's content.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ingest.assemble import assemble
from ingest.detect import detect
from ingest.document import Document, DocumentWarning
from ingest.errors import (
    BrokenDocument,
    DocumentMissing,
    DocumentTooLarge,
    IngestError,
    ParserCrashed,
    error_to_dict,
)
from ingest.limits import MIB, ParseLimits
from ingest.parts import Parsed
from ingest.request import Request

_PROGRESS_EVERY_S = 0.2
LEAST_RECOVERED = 3  # letters and digits
_OTHER_REASONS = {"pages_without_text", "pages_unreadable", "garbage_text"}
_MAX_FILE_BYTES = 1024 * MIB  # what the worker itself may write
OnPage = Callable[[int, int], None]


def main(argv: list[str]) -> int:
    """Read the request, parse, write the result. Returns 0 whenever a result was written."""
    result, progress = Path(argv[0]), Path(argv[1])
    request = Request.from_dict(json.loads(sys.stdin.buffer.read()))
    unlimited = limit_resources(request.limits)
    answer = run(request, _reporter(progress), unlimited)
    result.write_text(json.dumps(answer, ensure_ascii=False), encoding="utf-8")
    return 0


def run(request: Request, on_page: OnPage, unlimited: str | None = None) -> dict[str, Any]:
    """Parse, and turn every outcome into a plain dictionary."""
    try:
        document = parse(request, on_page)
        if unlimited:
            warning = DocumentWarning("memory_not_limited", unlimited)
            document = replace(document, warnings=(*document.warnings, warning))
        return {"document": document.to_json()}
    except IngestError as error:
        return {"error": error_to_dict(error)}
    except PermissionError as error:
        refused = DocumentMissing(
            f"The file cannot be opened ({error.strerror}).", "Check who may."
        )
        return {"error": error_to_dict(refused)}
    except MemoryError:
        return {"error": error_to_dict(out_of_memory(request.limits))}
    except Exception as error:  # noqa: BLE001 - the process's top: whatever it is, the parent gets to know
        traceback.print_exc()
        if _is_memory(error):
            return {"error": error_to_dict(out_of_memory(request.limits))}
        crash = ParserCrashed(
            f"The reading process failed ({type(error).__name__}: {str(error)[:200]}).",
            "Please report this, with the file if you can share it.",
        )
        return {"error": error_to_dict(crash)}


def parse(request: Request, on_page: OnPage) -> Document:
    """Detect the kind, read, assemble. Raises IngestError."""
    detected = detect(request.path, request.limits)
    request = replace(
        request, kind=detected.kind, decoded=detected.decoded, assumed=detected.assumed
    )
    parsed = _reader(detected.kind)(request, on_page)
    if request.pages is not None:
        parsed.warnings.append(_part_warning(parsed))
    document = assemble(parsed, file_digest(request.path), request.limits.max_chars)
    if request.pages is None:
        _check_recovered(document)
    return document


def _check_recovered(document: Document) -> None:
    """Raises BrokenDocument for a repaired file of which hardly a word is left.

    Not where a warning knows another reason, and what to do about it.
    """
    codes = {warning.code for warning in document.warnings}
    n = sum(char.isalnum() for char in document.text)
    if "repaired" in codes and not codes & _OTHER_REASONS and n < LEAST_RECOVERED:
        raise BrokenDocument(
            f"The file is damaged: {n or 'no'} readable character{'' if n == 1 else 's'} "
            f"could be recovered from it.",
            "Get the file again from where it came from; the copy may have been cut off.",
        )


def _part_warning(parsed: Parsed) -> DocumentWarning:
    first, last = parsed.pages[0].number, parsed.pages[-1].number
    which = f"{parsed.page_kind} {first} was"
    if first != last:
        which = f"{parsed.page_kind}s {first} to {last} were"
    message = f"Only {which} read, as asked."
    return DocumentWarning("page_range", message, first)


def _reader(kind: str) -> Callable[[Request, OnPage], Parsed]:
    """The reader of one kind, imported only now: text files load no parser library."""
    if kind in ("pdf", "xps"):
        from ingest.readers.pdf import read_pdf

        return read_pdf
    if kind in ("epub", "mobi", "fb2"):
        from ingest.readers.ebook import read_ebook

        return read_ebook
    if kind == "docx":
        from ingest.readers.docx import read_docx

        return read_docx
    if kind == "html":
        from ingest.readers.html import read_html

        return read_html
    if kind == "markdown":
        from ingest.readers.markdown import read_markdown

        return read_markdown
    from ingest.readers.text import read_text

    return read_text


def limit_resources(limits: ParseLimits) -> str | None:
    """Cap this process's time, address space and file writes; a sentence if the system cannot."""
    try:
        import resource
    except ImportError:
        return "This system has no way to limit the reading process's memory; only time is limited."
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))
        cpu_s = math.ceil(limits.timeout_s)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    except (ValueError, OSError) as error:
        return f"The reading process's memory could not be limited ({error})."
    return None


def out_of_memory(limits: ParseLimits) -> DocumentTooLarge:
    """The refusal for a document that needs more memory than allowed."""
    return DocumentTooLarge(
        f"Reading the document needs more than {limits.memory_bytes // MIB:,} MiB of memory.",
        "Open a page range of it, or split it.",
    )


def _is_memory(error: Exception) -> bool:
    text = str(error).lower()
    return any(word in text for word in ("malloc", "cannot allocate", "failed to map", "memory"))


def file_digest(path: Path) -> str:
    """SHA-256 of the file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reporter(path: Path) -> OnPage:
    last = 0.0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)

    def report(page: int, count: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_EVERY_S:
            last = now
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, f"{page:>9} {count:>9}".encode())

    return report


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
