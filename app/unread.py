"""Documents that were kept and never read: a refused one goes at once, a forgotten one later."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from app.library import Library

if TYPE_CHECKING:
    from app.store import StoredDocument

# So long may a plan be looked at before its reading begins.
PATIENCE_S = 24 * 3600.0
_log = logging.getLogger("longread")


@contextmanager
def kept_if_read(library: Library, stored: StoredDocument) -> Iterator[None]:
    """If the work fails, a document that was added for it and has no session goes again."""
    try:
        yield
    except BaseException:
        try:
            if stored.parsed_now and stored.kept_ns == _kept_ns(library, stored.document.sha256):
                library.forget_document(stored.document.sha256)
        except (sqlite3.Error, OSError) as error:
            _log.warning("document %s stays for now: %s", stored.document.sha256[:12], error)
        raise


def sweep_unread(library: Library) -> list[str]:
    """Remove documents without a session that were last opened a day ago; returns their digests.

    Folders that the library does not know stay: its file may have been moved away for a repair.
    """
    latest_ns = time.time_ns() - int(PATIENCE_S * 1e9)
    removed = []
    for record in library.unread_documents():
        added_ns = int(datetime.fromisoformat(record.created_at).timestamp() * 1e9)
        kept_ns = _kept_ns(library, record.sha256) or added_ns
        if kept_ns < latest_ns and library.forget_document(record.sha256):
            removed.append(record.sha256)
    return removed


def _kept_ns(library: Library, sha256: str) -> int | None:
    """When a document was last opened, as its folder says; None without a folder."""
    folder = library.paths.document(sha256)
    return folder.stat().st_mtime_ns if folder.exists() else None
