"""Every refusal has words and an exit code."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator

import pytest

from app import errors as app_errors
from app import messages
from app.messages import Message, explain
from engine import errors as engine_errors
from heads.questions import errors as questions_errors
from ingest import errors as ingest_errors


def tree(root: type[Exception]) -> Iterator[type[Exception]]:
    """A class and everything derived from it."""
    yield root
    for kind in root.__subclasses__():
        yield from tree(kind)


ALL = [
    *tree(engine_errors.EngineError),
    *tree(ingest_errors.IngestError),
    *tree(questions_errors.QuestionsError),
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_class_of_the_trees_has_its_own_row(kind: type[Exception]) -> None:
    assert kind in messages._TABLE


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_a_message_is_a_cause_a_next_step_and_a_code(kind: type[Exception]) -> None:
    error = kind.__new__(kind)
    error.cause, error.next_step = "", ""  # type: ignore[attr-defined]
    message = explain(error)
    assert message is not None
    assert message.cause.endswith(".") and message.next_step.endswith(".")
    assert message.exit_code in (1, 2, 3, 4, 5, 130)


def test_the_trees_are_not_empty() -> None:
    assert len(ALL) > 20


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ingest_errors.BrokenDocument("The file is cut off.", ""), 3),
        (ingest_errors.DocumentMissing("There is no x.pdf.", ""), 3),
        (engine_errors.UnknownModel("No model is called x.", ""), 4),
        (engine_errors.NotEnoughMemory("It needs 9 GiB.", ""), 5),
        (engine_errors.NotEnoughDisk("It needs 9 GiB.", ""), 5),
        (engine_errors.InvalidSetting("budget_tokens 1 is too small.", ""), 2),
        (engine_errors.SnapshotCorrupt("layers-000.safetensors", "fails its checksum"), 1),
        (engine_errors.PrefillStopped(None, 5, 9), 130),
        (app_errors.DocumentTooLong("200000 tokens.", "Pages 1-9 fit.", (1, 9)), 3),
        (app_errors.NoSuchSession("There is no session 'x'.", ""), 2),
        (app_errors.SessionNotReady("Session x has no sound snapshot.", ""), 2),
        (OSError(errno.ENOSPC, "No space left on device"), 5),
        (MemoryError(), 5),
        (PermissionError(errno.EACCES, "Permission denied", "/etc/shadow"), 2),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"/tmp"), 2),
        (OSError(errno.EIO, "Input/output error", "/mnt/old/x.pdf"), 1),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "x"), 5),
        (sqlite3.OperationalError("database or disk is full"), 5),
        (sqlite3.OperationalError("disk I/O error"), 5),
        (sqlite3.DatabaseError("file is not a database"), 1),
        (sqlite3.OperationalError("unable to open database file"), 1),
        (sqlite3.OperationalError("database is locked"), 1),
        (app_errors.DeskRunning(None), 2),
        (app_errors.OpeningStopped(), 130),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 5),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_exit_codes(error: BaseException, code: int) -> None:
    message = explain(error)
    assert message is not None and message.exit_code == code


def test_the_errors_own_words_come_first() -> None:
    message = explain(ingest_errors.BrokenDocument("It ends at page 3.", "Fetch it again."))
    assert message == Message("It ends at page 3.", "Fetch it again.", 3)


def test_a_damaged_session_names_the_file_and_our_own_flag() -> None:
    message = explain(engine_errors.SnapshotCorrupt("layers-001.safetensors", "is missing"))
    assert message is not None
    assert "layers-001.safetensors" in message.cause and "--reread" in message.next_step


def test_a_locked_document_names_the_flag() -> None:
    message = explain(ingest_errors.PasswordRequired("It is encrypted.", "Enter its password."))
    assert message is not None and str(message) == (
        "It is encrypted. Give the password with --password."
    )


def test_the_file_that_the_system_refused_is_named() -> None:
    message = explain(OSError(errno.ENAMETOOLONG, "File name too long", "/home/x" * 9))
    assert message is not None and "/home/x/home" in str(message) and "too long" in str(message)


def test_a_damaged_library_is_explained_as_doctor_explains_it() -> None:
    message = explain(sqlite3.DatabaseError("file is not a database"))
    assert message is not None and message.next_step == messages.LIBRARY_REPAIR
    assert "library.db" in message.cause


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        OSError(errno.EIO, "x"),
        RuntimeError("x"),
        sqlite3.OperationalError("no such column: x"),
    ],
)
def test_our_own_faults_are_not_explained_away(error: Exception) -> None:
    assert explain(error) is None
    assert messages.FAULT.exit_code == 1
