"""The library's schema, as small numbered steps that are recorded once applied."""

from __future__ import annotations

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

migrations = Migrations("longread")

# Ended jobs on sessions and documents that are no more, and others on the files those came from.
FORGET_JOBS = """
    WITH gone AS (
        SELECT id, json_extract(payload, '$.path') AS path FROM jobs
         WHERE (session IS NOT NULL AND session NOT IN (SELECT id FROM sessions))
            OR (json_extract(result, '$.sha256') IS NOT NULL
                AND json_extract(result, '$.sha256') NOT IN (SELECT sha256 FROM documents))
    )
    DELETE FROM jobs
     WHERE state NOT IN ('queued', 'running')
       AND (id IN (SELECT id FROM gone)
            OR json_extract(payload, '$.path') IN (SELECT path FROM gone))
"""


@migrations(name="001_documents_sessions_messages")
def documents_sessions_messages(db: Database) -> None:
    """Documents with their pages, sessions made of them, and the conversation of each session."""
    db.executescript(
        """
        CREATE TABLE documents (
            sha256 TEXT PRIMARY KEY,
            title TEXT NOT NULL,
            kind TEXT NOT NULL,
            page_kind TEXT NOT NULL,
            file_name TEXT NOT NULL,
            n_pages INTEGER NOT NULL,
            n_chars INTEGER NOT NULL,
            parser_version TEXT NOT NULL,
            needs_password INTEGER NOT NULL DEFAULT 0,
            warnings TEXT NOT NULL DEFAULT '[]',
            created_at TEXT NOT NULL
        );
        CREATE TABLE pages (
            id INTEGER PRIMARY KEY,
            document TEXT NOT NULL REFERENCES documents(sha256) ON DELETE CASCADE,
            number INTEGER NOT NULL,
            label TEXT NOT NULL,
            text TEXT NOT NULL,
            UNIQUE (document, number)
        );
        CREATE TABLE sessions (
            id TEXT PRIMARY KEY,
            document TEXT NOT NULL REFERENCES documents(sha256),
            first_page INTEGER NOT NULL,
            last_page INTEGER NOT NULL,
            model TEXT NOT NULL,
            settings TEXT NOT NULL,
            state TEXT NOT NULL,
            problem TEXT NOT NULL DEFAULT '',
            n_tokens INTEGER NOT NULL,
            kept_tokens REAL NOT NULL DEFAULT 0,
            kept_fraction REAL NOT NULL DEFAULT 0,
            nbytes INTEGER NOT NULL DEFAULT 0,
            snapshot_bytes INTEGER NOT NULL DEFAULT 0,
            positions TEXT NOT NULL DEFAULT '',
            prefill_s REAL NOT NULL DEFAULT 0,
            prefill_tok_s REAL NOT NULL DEFAULT 0,
            created_at TEXT NOT NULL,
            used_at TEXT NOT NULL
        );
        CREATE INDEX sessions_document ON sessions(document);
        CREATE TABLE messages (
            id INTEGER PRIMARY KEY,
            session TEXT NOT NULL REFERENCES sessions(id) ON DELETE CASCADE,
            role TEXT NOT NULL,
            text TEXT NOT NULL,
            state TEXT NOT NULL,
            reply_to INTEGER REFERENCES messages(id) ON DELETE CASCADE,
            details TEXT NOT NULL DEFAULT '{}',
            created_at TEXT NOT NULL
        );
        CREATE INDEX messages_session ON messages(session);
        """
    )


@migrations(name="002_page_search")
def page_search(db: Database) -> None:
    """Full-text search over the pages, kept in step by triggers."""
    db.table("pages").enable_fts(["text"], create_triggers=True, tokenize="unicode61")


@migrations(name="003_jobs")
def jobs(db: Database) -> None:
    """Work handed to the worker, so that a page reload or a restart finds it again."""
    db.executescript(
        """
        CREATE TABLE jobs (
            id TEXT PRIMARY KEY,
            kind TEXT NOT NULL,
            state TEXT NOT NULL,
            session TEXT,
            payload TEXT NOT NULL DEFAULT '{}',
            done INTEGER NOT NULL DEFAULT 0,
            total INTEGER NOT NULL DEFAULT 0,
            tok_s REAL NOT NULL DEFAULT 0,
            eta_s REAL,
            text TEXT NOT NULL DEFAULT '',
            message TEXT NOT NULL DEFAULT '',
            result TEXT NOT NULL DEFAULT '{}',
            owner TEXT NOT NULL,
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        );
        CREATE INDEX jobs_state ON jobs(state);
        """
    )


@migrations(name="004_imported_sessions")
def imported_sessions(db: Database) -> None:
    """Sessions from a portable file are checked against their text when first opened."""
    db.execute("ALTER TABLE sessions ADD COLUMN unverified INTEGER NOT NULL DEFAULT 0")


@migrations(name="005_no_text_in_jobs")
def no_text_in_jobs(db: Database) -> None:
    """Questions and answers stand among the messages alone; what a deletion left of jobs goes."""
    db.execute(
        """UPDATE jobs SET text = '', payload = json_remove(payload, '$.question'),
                  result = json_object('question_id', json_extract(payload, '$.question_id'),
                                       'answer_id', json_extract(payload, '$.answer_id'))
            WHERE kind = 'question'"""
    )
    db.execute(FORGET_JOBS)


@migrations(name="006_no_answers_left_waiting")
def no_answers_left_waiting(db: Database) -> None:
    """Answers whose program was closed while they waited count as stopped."""
    db.execute(
        """UPDATE messages SET state = 'stopped' WHERE state = 'pending' AND id IN
           (SELECT json_extract(payload, '$.answer_id') FROM jobs
             WHERE kind = 'question' AND state NOT IN ('queued', 'running'))"""
    )
