"""The library: documents, their pages, the sessions made of them, and what was asked.

It stores and finds; it does not know models or caches. Safe to use from several threads.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.database import ThreadDatabase
from app.errors import NoSuchSession, SessionBusy
from app.migrations import FORGET_JOBS
from app.paths import DataPaths
from app.records import (
    ANSWER_PENDING,
    ANSWER_STOPPED,
    SESSION_DAMAGED,
    SESSION_READING,
    SESSION_READY,
    DocumentRecord,
    MessageRecord,
    SessionRecord,
)

if TYPE_CHECKING:
    from ingest import Document

_log = logging.getLogger("longread")

_SESSION_QUERY = """
    SELECT sessions.*, documents.title, documents.file_name, documents.kind, documents.page_kind,
           documents.n_pages,
           (SELECT count(*) FROM messages
             WHERE messages.session = sessions.id AND role = 'user') AS n_questions
      FROM sessions JOIN documents ON documents.sha256 = sessions.document
"""

_SCRUB = (
    "INSERT INTO pages_fts(pages_fts) VALUES ('optimize')",
    "VACUUM",
    "PRAGMA wal_checkpoint(TRUNCATE)",
)

_DERIVED_FIELDS = {"title", "file_name", "kind", "page_kind", "n_pages", "n_questions"}


def now() -> str:
    """The current time as it is stored: UTC, ISO 8601, sortable as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Library:
    """All that is remembered between two runs of the program."""

    def __init__(self, paths: DataPaths) -> None:
        self.paths = paths.make()
        self.database = ThreadDatabase(paths.database)

    def close(self) -> None:
        """Close the database in every thread."""
        self.database.close()

    # Documents

    def add_document(self, document: Document, file_name: str, *, needs_password: bool) -> None:
        """Record a parsed document and index its pages; a newer parse replaces the older."""
        db = self.database.get()
        row = {
            "sha256": document.sha256,
            "title": document.title,
            "kind": document.kind,
            "page_kind": document.page_kind,
            "file_name": file_name,
            "n_pages": len(document.pages),
            "n_chars": len(document.text),
            "parser_version": document.parser_version,
            "needs_password": int(needs_password),
            "warnings": json.dumps(
                [{"code": w.code, "message": w.message, "page": w.page} for w in document.warnings]
            ),
            "created_at": now(),
        }
        pages = [
            {
                "document": document.sha256,
                "number": page.number,
                "label": page.label,
                "text": document.text[page.start : page.end],
            }
            for page in document.pages
        ]
        with db.atomic():
            db.table("documents").upsert(row, pk="sha256")
            db.execute("DELETE FROM pages WHERE document = ?", [document.sha256])
            db.table("pages").insert_all(pages)

    def document(self, sha256: str) -> DocumentRecord | None:
        """One document, or None."""
        for row in self.database.get().query("SELECT * FROM documents WHERE sha256 = ?", [sha256]):
            return DocumentRecord.from_row(row)
        return None

    def unread_documents(self) -> list[DocumentRecord]:
        """Documents that no session needs."""
        rows = self.database.get().query(
            "SELECT * FROM documents WHERE sha256 NOT IN (SELECT document FROM sessions)"
        )
        return [DocumentRecord.from_row(row) for row in rows]

    def forget_document(self, sha256: str) -> bool:
        """Remove a document that no session needs, with its text; whether it was removed."""
        db = self.database.get()
        with db.atomic():
            cursor = db.execute(
                """DELETE FROM documents WHERE sha256 = :sha256
                    AND NOT EXISTS (SELECT 1 FROM sessions WHERE document = :sha256)""",
                {"sha256": sha256},
            )
            if not cursor.rowcount:
                return False
            db.execute(FORGET_JOBS)
        remove_folder(self.paths.document(sha256))
        self._scrub()
        return True

    def search_pages(self, sha256: str, query: str, limit: int = 12) -> list[int]:
        """Page numbers that match an FTS5 query, the best first."""
        rows = self.database.get().query(
            """SELECT pages.number FROM pages_fts JOIN pages ON pages.id = pages_fts.rowid
                WHERE pages_fts MATCH ? AND pages.document = ?
                ORDER BY bm25(pages_fts), pages.number LIMIT ?""",
            [query, sha256, limit],
        )
        return [row["number"] for row in rows]

    # Sessions

    def start_session(
        self,
        session_id: str,
        *,
        document: str,
        pages: tuple[int, int],
        model: str,
        settings: dict[str, Any],
        n_tokens: int,
    ) -> None:
        """Record that a reading begins (or begins again); its conversation stays."""
        db = self.database.get()
        values = {
            "document": document,
            "first_page": pages[0],
            "last_page": pages[1],
            "model": model,
            "settings": json.dumps(settings, sort_keys=True),
            "state": SESSION_READING,
            "problem": "",
            "n_tokens": n_tokens,
            "used_at": now(),
        }
        with db.atomic():
            if self._has_session(session_id):
                db.table("sessions").update(session_id, values)
            else:
                db.table("sessions").insert({"id": session_id, "created_at": now(), **values})

    def finish_session(self, session_id: str, **measured: Any) -> None:
        """Mark a session ready and store what was measured (columns of `sessions`).

        Raises NoSuchSession if it was deleted meanwhile.
        """
        values = {"state": SESSION_READY, "problem": "", "used_at": now(), **measured}
        db = self.database.get()
        with db.atomic():
            if not self._has_session(session_id):
                raise NoSuchSession(
                    f"Session {session_id} was deleted while its document was being read.",
                    "Open the document again if it is still wanted.",
                )
            db.table("sessions").update(session_id, values)

    def mark_damaged(self, session_id: str, problem: str) -> None:
        """Mark a session whose snapshot was refused; `problem` names the file."""
        if self._has_session(session_id):
            self.database.get().table("sessions").update(
                session_id, {"state": SESSION_DAMAGED, "problem": problem}
            )

    def touch_session(self, session_id: str) -> None:
        """Record that a session was used now; one that was deleted meanwhile stays so."""
        self.database.get().execute(
            "UPDATE sessions SET used_at = ? WHERE id = ?", [now(), session_id]
        )

    def find_session(self, session_id: str) -> SessionRecord | None:
        """The session of exactly this id, or None."""
        for row in self.database.get().query(
            f"{_SESSION_QUERY} WHERE sessions.id = ?", [session_id]
        ):
            return SessionRecord.from_row(row)
        return None

    def lookup(self, name: str) -> SessionRecord | None:
        """The session of this id, or the only one whose id begins so (at least 4 characters)."""
        found = self.find_session(name) if name.isascii() else None
        if found is not None or not re.fullmatch(r"[0-9a-f]{4,}", name):
            return found
        matches = [record for record in self.sessions() if record.id.startswith(name)]
        return matches[0] if len(matches) == 1 else None

    def session(self, name: str) -> SessionRecord:
        """As `lookup`. Raises NoSuchSession, which says if several begin so."""
        found = self.lookup(name)
        if found is None:
            raise self._no_session(name)
        return found

    def _no_session(self, name: str) -> NoSuchSession:
        begun = [r for r in self.sessions() if r.id.startswith(name)] if name else []
        if not begun:
            return NoSuchSession(
                f"There is no session {name!r} in the library.",
                "List them with the command `sessions`.",
            )
        if len(begun) == 1:
            return NoSuchSession(
                f"{name!r} is too short a beginning of a session's id.",
                "Type four of its characters or more.",
            )
        return NoSuchSession(
            f"The ids of {len(begun)} sessions begin with {name!r}.",
            "Type more of the id; the command `sessions` lists them.",
        )

    def sessions(self) -> list[SessionRecord]:
        """All sessions, the last used first."""
        rows = self.database.get().query(f"{_SESSION_QUERY} ORDER BY sessions.used_at DESC")
        return [SessionRecord.from_row(row) for row in rows]

    def import_session(self, record: SessionRecord, messages: Sequence[MessageRecord]) -> None:
        """Insert a session that came from a portable file, as not yet verified.

        Nobody here goes on with its pending answers: they count as stopped.
        """
        db = self.database.get()
        row = {k: v for k, v in asdict(record).items() if k not in _DERIVED_FIELDS}
        row["settings"] = json.dumps(record.settings, sort_keys=True)
        with db.atomic():
            db.execute("DELETE FROM sessions WHERE id = ?", [record.id])
            db.table("sessions").insert({**row, "unverified": 1})
            numbers: dict[int | None, int] = {}
            for message in messages:
                numbers[message.id] = self._insert_message(
                    {
                        "session": record.id,
                        "role": message.role,
                        "text": message.text,
                        "state": _state_here(message),
                        "reply_to": numbers.get(message.reply_to),
                        "details": json.dumps(message.details),
                        "created_at": message.created_at,
                    }
                )

    def mark_verified(self, session_id: str) -> None:
        """Record that an imported session's cache was found to belong to its text."""
        self.database.get().table("sessions").update(session_id, {"unverified": 0})

    def delete_session(self, session_id: str) -> None:
        """Remove a session, its snapshot and, if no other session needs it, its document.

        The snapshot goes first: it gives a full disk the room that the rest needs.
        With it go its questions, answers and ended jobs; their room in the file is overwritten.
        Raises NoSuchSession, or SessionBusy while another program reads it.
        """
        record = self.session(session_id)
        with self.holding(record.id):
            remove_folder(self.paths.snapshot(record.id))
            remove_folder(self.paths.partial(record.id))
            self.database.get().execute("DELETE FROM sessions WHERE id = ?", [record.id])
            if not self.forget_document(record.document):
                self.database.get().execute(FORGET_JOBS)
                self._scrub()  # of the questions and answers

    def holding(self, session_id: str) -> AbstractContextManager[None]:
        """Keep other programs from reading, deleting or importing a session meanwhile.

        Raises SessionBusy, after a moment, if one of them has come first.
        """
        from engine.files import locked

        def refuse() -> None:
            raise SessionBusy(
                f"Session {session_id} is being read by another program.",
                "Wait until it has ended, or stop it, and try again.",
            )

        return locked(self.paths.snapshots, session_id, on_wait=refuse)

    def _scrub(self) -> None:
        """Make deleted text unreadable: in the search index, in free pages, in the log.

        Without the room for it, or beside another program, what fails is done at the next deletion.
        """
        for statement in _SCRUB:
            try:
                rows = self.database.get().execute(statement).fetchall()
            except sqlite3.OperationalError as error:
                _log.warning("deleted, but not tidied up (%s): %s", statement, error)
                continue
            if rows and rows[0][0]:  # SQLite tells of a log that is in use, and raises nothing
                _log.warning("deleted, but not tidied up (%s): another reads it", statement)

    def _has_session(self, session_id: str) -> bool:
        rows = self.database.get().query("SELECT 1 FROM sessions WHERE id = ?", [session_id])
        return next(iter(rows), None) is not None

    # Messages

    def add_question(self, session_id: str, text: str) -> tuple[int, int]:
        """Store a question and its pending answer before anything is computed; returns both ids.

        Raises NoSuchSession if the session was deleted meanwhile.
        """
        db = self.database.get()
        with db.atomic():
            if not self._has_session(session_id):
                raise NoSuchSession(
                    f"Session {session_id} was deleted; the question was not put.",
                    "Open the document again if it is still wanted.",
                )
            question = self._insert_message(
                {"session": session_id, "role": "user", "text": text, "state": "done"}
            )
            answer = self._insert_message(
                {
                    "session": session_id,
                    "role": "assistant",
                    "text": "",
                    "state": ANSWER_PENDING,
                    "reply_to": question,
                }
            )
        return question, answer

    def set_answer(self, answer_id: int, text: str, state: str, details: dict[str, Any]) -> None:
        """Store an answer, whole or as far as it came; not if its session was deleted meanwhile."""
        self.database.get().execute(
            "UPDATE messages SET text = ?, state = ?, details = ? WHERE id = ?",
            [text, state, json.dumps(details), answer_id],
        )

    def stop_answer(self, answer_id: int, text: str) -> None:
        """Store how far an answer came that nobody goes on with, if it is still pending."""
        self.database.get().execute(
            "UPDATE messages SET text = ?, state = ? WHERE id = ? AND state = ?",
            [text, ANSWER_STOPPED, answer_id, ANSWER_PENDING],
        )

    def messages(self, session_id: str) -> list[MessageRecord]:
        """The conversation of a session, oldest first."""
        rows = self.database.get().query(
            "SELECT * FROM messages WHERE session = ? ORDER BY id", [session_id]
        )
        return [MessageRecord.from_row(row) for row in rows]

    def _insert_message(self, values: dict[str, Any]) -> int:
        row = {"reply_to": None, "details": "{}", "created_at": now(), **values}
        cursor = self.database.get().execute(
            """INSERT INTO messages (session, role, text, state, reply_to, details, created_at)
               VALUES (:session, :role, :text, :state, :reply_to, :details, :created_at)""",
            row,
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid


def _state_here(message: MessageRecord) -> str:
    return ANSWER_STOPPED if message.state == ANSWER_PENDING else message.state


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there, with all that it holds."""
    if path.exists():
        shutil.rmtree(path)
