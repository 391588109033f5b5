"""Every refusal in plain words: what happened, what to do next, and the exit code of the command.

Errors carry their own cause and next step; the table adds the exit code, and words for those that
were raised without any. A test proves that every class of the error trees has its own row.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from dataclasses import dataclass

from app.errors import AppError
from app.paths import NO_ROOM
from engine import errors as engine
from heads.questions import errors as questions
from ingest import errors as ingest

EXIT_FAULT = 1
EXIT_ARGUMENTS = 2
EXIT_DOCUMENT = 3
EXIT_MODEL = 4
EXIT_ROOM = 5
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Message:
    """One sentence on the cause, one on the next step, and the exit code."""

    cause: str
    next_step: str
    exit_code: int

    def __str__(self) -> str:
        return f"{self.cause} {self.next_step}".strip()


# Words for an error that was raised without any; the exit code always comes from here.
_TABLE: dict[type[Exception], Message] = {
    engine.EngineError: Message(
        "The model could not do this.", "See the log for details.", EXIT_FAULT
    ),
    engine.InvalidSetting: Message(
        "A setting is out of its bounds.", "Choose another value.", EXIT_ARGUMENTS
    ),
    engine.NoRoom: Message(
        "This goes beyond the model's window.",
        "Ask for less, or choose another model.",
        EXIT_ARGUMENTS,
    ),
    engine.ModelUnavailable: Message(
        "The model cannot be had.", "See what can run here with `models`.", EXIT_MODEL
    ),
    engine.UnknownModel: Message(
        "No model of that name is known.", "See what can run here with `models`.", EXIT_MODEL
    ),
    engine.ModelDownloadFailed: Message(
        "The model could not be fetched.",
        "Check the connection and try again; what was fetched is kept.",
        EXIT_MODEL,
    ),
    engine.ModelCorrupt: Message(
        "The model's files are damaged.", "Fetch them again with `models get NAME`.", EXIT_MODEL
    ),
    engine.UnsupportedArchitecture: Message(
        "This kind of model cannot be served.", "Choose another with --model.", EXIT_MODEL
    ),
    engine.NotEnoughMemory: Message(
        "There is not enough memory.",
        "Choose a smaller --budget or model, or close other programs.",
        EXIT_ROOM,
    ),
    engine.NotEnoughDisk: Message(
        "There is not enough room on the disk.",
        "Free some space, or delete sessions with `delete`.",
        EXIT_ROOM,
    ),
    engine.PrefillStopped: Message(
        "The reading was stopped.",
        "The same command goes on from the last checkpoint.",
        EXIT_INTERRUPTED,
    ),
    engine.NotLean: Message(
        "This model runs through its own modules only.",
        "Leave the choice of answer weights to the program.",
        EXIT_ARGUMENTS,
    ),
    engine.CaptureFailed: Message(
        "Answers cannot be played from a recorded step here.",
        "Ask again with --answer-weights same.",
        EXIT_MODEL,
    ),
    engine.ScorerUnavailable: Message(
        "The scorer cannot be had for this model.", "Choose another with --scorer.", EXIT_MODEL
    ),
    engine.QuestionSetBad: Message(
        "The question set cannot be used.",
        'Each line is {"context": str, "questions": [{"question": str, "answers": [str]}]}.',
        EXIT_DOCUMENT,
    ),
    engine.SnapshotError: Message(
        "The saved session cannot be used.",
        "Read the document again: add --reread.",
        EXIT_FAULT,
    ),
    engine.SnapshotCorrupt: Message(
        "The saved session is damaged.", "Read the document again: add --reread.", EXIT_FAULT
    ),
    engine.SnapshotMismatch: Message(
        "The saved session was made by another model or setting.",
        "Read the document again: add --reread.",
        EXIT_FAULT,
    ),
    questions.QuestionsError: Message(
        "The question set cannot be built.", "See what is asked for with --help.", EXIT_ARGUMENTS
    ),
    questions.UnknownSet: Message(
        "There is no such question set.", "See what is asked for with --help.", EXIT_ARGUMENTS
    ),
    questions.UnknownPart: Message(
        "The set has no such part.", "Choose another with --part.", EXIT_ARGUMENTS
    ),
    questions.SourceMissing: Message(
        "The set's files are not there.", "Name them with --source.", EXIT_ARGUMENTS
    ),
    questions.SourceMalformed: Message(
        "The set's files are not in its layout.", "Fetch them again.", EXIT_DOCUMENT
    ),
    questions.BadRequest: Message(
        "A number is out of its bounds.", "Choose another value.", EXIT_ARGUMENTS
    ),
    questions.NothingLeft: Message(
        "No document meets what was asked for.", "Ask for less.", EXIT_ARGUMENTS
    ),
    questions.OutputUnwritable: Message(
        "The set cannot be written.", "Name another file with --out.", EXIT_ARGUMENTS
    ),
    ingest.IngestError: Message(
        "The document cannot be read.", "Try another copy of the file.", EXIT_DOCUMENT
    ),
    ingest.DocumentMissing: Message(
        "There is no such file.", "Check its name and folder.", EXIT_DOCUMENT
    ),
    ingest.PasswordRequired: Message(
        "The document is protected by a password.",
        "Give the password with --password.",
        EXIT_DOCUMENT,
    ),
    ingest.WrongPassword: Message(
        "The password does not open this document.", "Check it and try again.", EXIT_DOCUMENT
    ),
    ingest.EmptyDocument: Message(
        "The document holds no text.", "Choose another file.", EXIT_DOCUMENT
    ),
    ingest.ScannedDocument: Message(
        "The document is a scan without text.",
        "Run it through text recognition (OCR) first.",
        EXIT_DOCUMENT,
    ),
    ingest.BrokenDocument: Message(
        "The file is damaged.", "Try another copy of it.", EXIT_DOCUMENT
    ),
    ingest.NotADocument: Message(
        "The file is not what its name says.", "Check that it is the right file.", EXIT_DOCUMENT
    ),
    ingest.UnsupportedDocument: Message(
        "This kind of file cannot be read.",
        "Convert it to PDF, EPUB, text or Markdown.",
        EXIT_DOCUMENT,
    ),
    ingest.PagesNotFound: Message(
        "The pages do not lie inside the document.", "Choose other pages.", EXIT_ARGUMENTS
    ),
    ingest.DocumentTooLarge: Message(
        "The document is too large.", "Split it, or choose fewer pages with --pages.", EXIT_DOCUMENT
    ),
    ingest.ParseTimeout: Message(
        "Opening the document took too long.", "Try another copy of the file.", EXIT_DOCUMENT
    ),
    ingest.ParserCrashed: Message(
        "The parser crashed on this document.", "Try another copy of the file.", EXIT_DOCUMENT
    ),
}

LIBRARY_REPAIR = "Move the file away; documents can be read again."
# Where the library cannot be opened, `sessions` cannot list them.
_NO_ROOM = Message(
    "The disk is full.",
    "Free some space, or delete sessions with `delete ID`: the folders in `snapshots` of the data "
    "directory have their ids for names.",
    EXIT_ROOM,
)
# What SQLite says, beside the names of its own that it has for it.
_DISK_ENDED, _DISK_FAILED = "database or disk is full", "disk I/O error"
_LIBRARY_DAMAGED = (
    "file is not a database",
    "database disk image is malformed",
    "unable to open database file",
    "attempt to write a readonly database",
    "malformed database schema",
)
# Errors of the system that another name, folder or permission would not have met.
_NAMED_WRONGLY = {
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
    errno.ENXIO,
}

# The lower rooms do not know our commands; here the next step is always ours.
_OUR_NEXT_STEP = (engine.SnapshotError, ingest.PasswordRequired)


def explain(error: BaseException) -> Message | None:
    """The message of a known error; None for one that is our own fault and belongs in the log."""
    if isinstance(error, AppError):
        return Message(error.cause, error.next_step, error.exit_code)
    if isinstance(error, MemoryError) or _is_torch_out_of_memory(error):
        return _TABLE[engine.NotEnoughMemory]
    if isinstance(error, KeyboardInterrupt):
        return Message("Interrupted.", "", EXIT_INTERRUPTED)
    if isinstance(error, engine.EngineError | ingest.IngestError | questions.QuestionsError):
        for kind in type(error).__mro__:
            row = _TABLE.get(kind)
            if row is not None:
                ours = isinstance(error, _OUR_NEXT_STEP)
                next_step = row.next_step if ours else error.next_step or row.next_step
                return Message(error.cause or row.cause, next_step, row.exit_code)
    if isinstance(error, OSError):
        return _explain_system(error)
    if isinstance(error, sqlite3.DatabaseError):
        return _explain_library(error)
    return None


def _explain_system(error: OSError) -> Message | None:
    """What the system refused: no room, or a file or folder that is named in the sentence."""
    if error.errno in NO_ROOM:
        return _NO_ROOM
    if not isinstance(error.filename, str | bytes):
        return None
    named_wrongly = error.errno in _NAMED_WRONGLY
    return Message(
        f"{os.fsdecode(error.filename)} cannot be used: {str(error.strerror).lower()}.",
        "Check its name, its folder and who may use it.",
        EXIT_ARGUMENTS if named_wrongly else EXIT_FAULT,
    )


def _explain_library(error: sqlite3.DatabaseError) -> Message | None:
    """What SQLite refused of the library; None for a statement of ours that is wrong."""
    said = str(error)
    if _DISK_ENDED in said:
        return _NO_ROOM
    if _DISK_FAILED in said:  # which is said of a full disk, too
        cause = f"The disk is full, or it fails ({said})."
        return Message(cause, _NO_ROOM.next_step, EXIT_ROOM)
    if any(words in said for words in _LIBRARY_DAMAGED):
        return Message(
            f"The library, library.db in the data directory, cannot be read ({said}).",
            LIBRARY_REPAIR,
            EXIT_FAULT,
        )
    if "locked" in said:
        return Message("Another program holds the library.", "Try again in a moment.", EXIT_FAULT)
    return None


def _is_torch_out_of_memory(error: BaseException) -> bool:
    """torch has a class for the GPU's memory only; on the CPU it is a RuntimeError that says so."""
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


FAULT = Message(
    "Something went wrong that should not have.",
    "The details are in logs/longread.log of the data directory.",
    EXIT_FAULT,
)
