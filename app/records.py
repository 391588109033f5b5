"""Rows of the library as frozen records; JSON columns are decoded here and nowhere else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

SESSION_READING = "reading"
SESSION_READY = "ready"
SESSION_DAMAGED = "damaged"

# Codes of warnings that whoever relies on an answer must know of, not only whoever begins to read.
DOUBTFUL = {
    "bytes_undecoded",
    "encoding_guessed",
    "garbage_text",
    "hidden_text",
    "hidden_text_unchecked",
    "pages_unreadable",
    "pages_without_text",
    "read_as_text",
    "recognised_text",
    "repaired",
    "strange_letters",
}

# States of a question's answer.
ANSWER_PENDING = "pending"
ANSWER_DONE = "done"
ANSWER_STOPPED = "stopped"
ANSWER_FAILED = "failed"

JOB_ACTIVE = ("queued", "running")


@dataclass(frozen=True)
class DocumentRecord:
    """A document of the library; the file and its parsed text lie under documents/SHA256/."""

    sha256: str
    title: str
    kind: str
    page_kind: str
    file_name: str
    n_pages: int
    n_chars: int
    parser_version: str
    needs_password: bool
    warnings: list[dict[str, Any]]
    created_at: str

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> DocumentRecord:
        """Decode one row of `documents`."""
        return cls(
            **{
                **row,
                "needs_password": bool(row["needs_password"]),
                "warnings": json.loads(row["warnings"]),
            }
        )

    @property
    def doubts(self) -> list[str]:
        """Why what was read may not be what the pages show; one warning each, pages named."""
        return [found["message"] for found in self.warnings if found["code"] in DOUBTFUL]


@dataclass(frozen=True)
class SessionRecord:
    """A document read by one model with one set of settings.

    state: "reading" (not finished, resumable), "ready", or "damaged" (problem says why).
    n_tokens counts the document; kept_tokens is the mean per layer and head; nbytes is memory.
    unverified: imported, and not yet found to hold the document it says.
    """

    id: str
    document: str
    first_page: int
    last_page: int
    model: str
    settings: dict[str, Any]
    state: str
    problem: str
    n_tokens: int
    kept_tokens: float
    kept_fraction: float
    nbytes: int
    snapshot_bytes: int
    positions: str
    prefill_s: float
    prefill_tok_s: float
    created_at: str
    used_at: str
    unverified: bool = False
    title: str = ""
    file_name: str = ""
    kind: str = ""
    page_kind: str = "page"
    n_pages: int = 0
    n_questions: int = 0

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> SessionRecord:
        """Decode one row of `sessions` joined with its document."""
        decoded = {
            "settings": json.loads(row["settings"]),
            "unverified": bool(row["unverified"]),
        }
        return cls(**{**row, **decoded})


@dataclass(frozen=True)
class MessageRecord:
    """One question ("user") or answer ("assistant") of a session.

    state is "done" for a question; an answer is "pending", "done", "stopped" or "failed".
    details of an answer: citations, looked_back_pages, ttft_s, decode_tok_s, new_tokens,
    problem and error (the class of it).
    """

    id: int
    session: str
    role: str
    text: str
    state: str
    reply_to: int | None
    details: dict[str, Any]
    created_at: str

    @property
    def citations(self) -> list[dict[str, Any]]:
        """Citations of an answer: page, label, quote, verified."""
        found: list[dict[str, Any]] = self.details.get("citations", [])
        return found

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> MessageRecord:
        """Decode one row of `messages`."""
        return cls(**{**row, "details": json.loads(row["details"])})


@dataclass(frozen=True)
class JobView:
    """What the desk sees of one job.

    kind: "ingest", "plan" or "question". state: "queued", "running", "done", "failed",
    "cancelled", or "interrupted" (the program ended).
    done, total: tokens (bytes while a model is fetched). text: the answer so far, not stored.
    message: for the user; while the job runs what it is at, and what the reader announced.
    result: kind "plan": Plan.to_dict(); "ingest": {session_id, reused, resumed_from, told (what
    was announced)}; "question": {question_id, answer_id}, of messages.
    """

    id: str
    kind: str
    state: str
    done: int
    total: int
    tok_s: float
    eta_s: float | None
    text: str
    message: str
    result: dict[str, Any]
    session_id: str | None
    payload: dict[str, Any] = field(default_factory=dict)
    created_at: str = ""

    @property
    def active(self) -> bool:
        """True while the job waits or runs."""
        return self.state in JOB_ACTIVE

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> JobView:
        """Decode one row of `jobs`."""
        return cls(
            id=row["id"],
            kind=row["kind"],
            state=row["state"],
            done=row["done"],
            total=row["total"],
            tok_s=row["tok_s"],
            eta_s=row["eta_s"],
            text=row["text"],
            message=row["message"],
            result=json.loads(row["result"]),
            session_id=row["session"],
            payload=json.loads(row["payload"]),
            created_at=row["created_at"],
        )
