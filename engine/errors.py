"""Everything the engine can refuse, as one small tree.

EngineError                 cause and next_step are for the user
|- InvalidSetting           a number or name that cannot work, with its bound
|  `- NoRoom                what is to be read or asked goes beyond the model's window
|- ModelUnavailable         the model cannot be had
|  |- UnknownModel          no such name, folder or file
|  |- ModelDownloadFailed   the network or the source failed
|  `- ModelCorrupt          the files are here, but not what they should be
|- UnsupportedArchitecture  the model's attention cannot be served
|- NotLean                  the model is more than its weights; its own modules serve it
|- CaptureFailed            a token's step cannot be recorded, or the recording is wrong
|- NotEnoughMemory
|- NotEnoughDisk
|- PrefillStopped           the user stopped the reading; carries the state so far
|- ScorerUnavailable        no such scorer, or it does not fit the model
|- QuestionSetBad           a file of questions and answers that cannot be used; names the line
`- SnapshotError
   |- SnapshotCorrupt       a file of the snapshot is damaged; carries its name
   `- SnapshotMismatch      made by another model or setting; carries the field
"""

from __future__ import annotations

from typing import Any


class EngineError(Exception):
    """A refusal with its cause and the next step, both plain sentences."""

    def __init__(self, cause: str, next_step: str = "") -> None:
        super().__init__(f"{cause} {next_step}".strip())
        self.cause = cause
        self.next_step = next_step


class InvalidSetting(EngineError):
    """A setting outside its bounds."""


class NoRoom(InvalidSetting):
    """Text, question or answer go beyond the model's trained window; others may fit."""


class ModelUnavailable(EngineError):
    """The model cannot be had."""


class UnknownModel(ModelUnavailable):
    """Neither a known name nor a folder, file or hub id."""


class ModelDownloadFailed(ModelUnavailable):
    """Fetching the model failed."""


class ModelCorrupt(ModelUnavailable):
    """The model's files are damaged or incomplete."""


class UnsupportedArchitecture(EngineError):
    """The model's kind of attention cannot be served; the message names it."""


class NotEnoughMemory(EngineError):
    """The plan does not fit into memory."""


class NotEnoughDisk(EngineError):
    """The plan does not fit onto the disk."""


class PrefillStopped(EngineError):
    """The reading was stopped between two chunks; `cache` holds the state so far."""

    def __init__(self, cache: Any, n_seen: int, n_total: int) -> None:
        super().__init__(
            f"Reading stopped after {n_seen} of {n_total} tokens.",
            "Start it again to go on from the last checkpoint.",
        )
        self.cache = cache
        self.n_seen = n_seen


class ScorerUnavailable(EngineError):
    """No such scorer, or one that does not fit this model."""


class NotLean(EngineError):
    """The model does something that only its own modules know; `cause` says what."""


class CaptureFailed(EngineError):
    """A token's step cannot be recorded, or the recording says something else; the cause tells."""


class QuestionSetBad(EngineError):
    """A file of questions and answers cannot be used; the cause names the line."""


class SnapshotError(EngineError):
    """A snapshot cannot be used."""


class SnapshotCorrupt(SnapshotError):
    """A file of the snapshot is missing, truncated or altered."""

    def __init__(self, file: str, detail: str) -> None:
        super().__init__(
            f"The saved session is damaged: {file} {detail}.",
            "Read the document again; its text is still here.",
        )
        self.file = file


class SnapshotMismatch(SnapshotError):
    """The snapshot was made under another model or setting."""

    def __init__(self, field: str, stored: object, wanted: object) -> None:
        super().__init__(
            f"The saved session does not fit: {field} is {stored!r} there and {wanted!r} here.",
            "Choose the model it was made with, or read the document again.",
        )
        self.field = field
