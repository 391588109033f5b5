"""What the readers built on MuPDF share: loading it quickly, opening, its errors, its notes."""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ingest.document import DocumentWarning
from ingest.errors import BrokenDocument, DocumentTooLarge, IngestError

_MEMORY_WORDS = ("malloc", "calloc", "realloc", "out of memory", "cannot allocate")
_HARMLESS = (  # nothing of the text depends on these
    "unknown epub version",
    "EPUB may be locked by DRM",  # said of obfuscated fonts; real locks are refused in archive.py
    "html: cannot load image",
    "css syntax error",
    "syntax error: css",
    "... repeated",
    "closepath with no current point",
)


@lru_cache(maxsize=1)
def load_pymupdf() -> ModuleType:
    """Import pymupdf without its layout model, silence its output, keep its notes.

    The layout part loads onnxruntime, which costs more than reading most books does; None in
    sys.modules makes its import fail, which pymupdf itself allows for. Called in the worker only.
    """
    sys.modules.setdefault("pymupdf.layout", None)  # type: ignore[arg-type]
    import pymupdf

    pymupdf.TOOLS.mupdf_display_errors(False)
    pymupdf.TOOLS.mupdf_display_warnings(False)
    pymupdf.TOOLS.reset_mupdf_warnings()
    return pymupdf


def mupdf_errors() -> tuple[type[Exception], ...]:
    """What MuPDF raises over bad files; RuntimeError is the base of its own file errors."""
    pymupdf = load_pymupdf()
    return (pymupdf.mupdf.FzErrorBase, RuntimeError, ValueError, IndexError)


def open_mupdf(path: Path, kind: str, what: str) -> Any:
    """Open `path` as `kind` (a MuPDF file type). Raises BrokenDocument or DocumentTooLarge."""
    pymupdf = load_pymupdf()
    try:
        return pymupdf.open(str(path), filetype=kind)
    except mupdf_errors() as error:
        raise translate(error, what) from error


def translate(error: Exception, what: str) -> IngestError:
    """An error of MuPDF as one of ours; `what` names the kind of document."""
    text = re.sub(r"'/[^']*/([^'/]+)'", r"'\1'", " ".join(str(error).split()))[:200]
    if any(word in text.lower() for word in _MEMORY_WORDS):
        return DocumentTooLarge(
            f"Reading this {what} needs more memory than the limit allows.",
            "Open a page range of it, or raise the limit.",
        )
    return BrokenDocument(
        f"The {what} file is damaged and cannot be read ({text}).",
        "Get a fresh copy, or print it to a new PDF with another program.",
    )


def parser_name() -> str:
    """Name and version for Document.parser_version: other versions may place text differently."""
    return f"pymupdf-{load_pymupdf().VersionBind}"


def mupdf_notes() -> list[DocumentWarning]:
    """What MuPDF complained about since loading, as one warning; nothing if it was content."""
    raw = load_pymupdf().TOOLS.mupdf_warnings(reset=True)
    lines = (line.strip() for line in raw.splitlines())
    notes = list(dict.fromkeys(line for line in lines if line and not _is_harmless(line)))
    if not notes:
        return []
    shown = "; ".join(note[:120] for note in notes[:3])
    more = f"; and {len(notes) - 3} more" if len(notes) > 3 else ""
    return [DocumentWarning("parser_notes", f"The file has faults: {shown}{more}.")]


def _is_harmless(note: str) -> bool:
    return any(words in note for words in _HARMLESS)
