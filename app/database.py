"""One SQLite file, one connection per thread."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlite_utils import Database

from app.migrations import migrations

BUSY_TIMEOUT_S = 30.0


class _WriteFirstDatabase(Database):
    """Transactions take the write lock as they begin.

    sqlite-utils begins them deferred: one that reads first and then writes is refused at once, not
    after BUSY_TIMEOUT_S, if another thread committed in between.
    """

    @contextmanager
    def atomic(self) -> Iterator[Database]:
        """See Database.atomic; nested blocks are savepoints as before."""
        if self.conn.in_transaction:
            with super().atomic():
                yield self
            return
        self.conn.execute("BEGIN IMMEDIATE")
        with self.conn:  # commits, or rolls back on an error
            yield self


class ThreadDatabase:
    """Opens the library's file once per thread, and closes all connections together.

    WAL lets readers go on while one thread writes; foreign keys are enforced; deleted rows are
    overwritten; a writer waits up to BUSY_TIMEOUT_S for another process. Only the owner may read
    the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_private(path)
        db = self.get()
        if db.journal_mode != "wal" or migrations.pending(db):
            self._prepare(db)

    def _prepare(self, db: Database) -> None:
        """Bring the schema up to date, in one program at a time."""
        from engine.files import locked

        with locked(self.path.parent, self.path.name):
            db.enable_wal()
            migrations.apply(db)

    def get(self) -> Database:
        """The calling thread's connection."""
        db: Database | None = getattr(self._local, "db", None)
        if db is None:
            # Only `close` touches a connection from another thread, hence check_same_thread=False.
            connection = sqlite3.connect(
                str(self.path), timeout=BUSY_TIMEOUT_S, check_same_thread=False
            )
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA secure_delete = ON")
            db = _WriteFirstDatabase(connection, execute_plugins=False)
            with self._lock:
                self._connections.append(connection)
            self._local.db = db
        return db

    def close(self) -> None:
        """Close every thread's connection."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
        self._local = threading.local()


def _make_private(path: Path) -> None:
    """Keep the file from other users; SQLite gives its permissions to those it lays beside it."""
    if not path.exists():
        path.touch(mode=0o600)
    else:
        with suppress(PermissionError):  # it is somebody else's, who lets us use it
            path.chmod(0o600)
