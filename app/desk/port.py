"""What the desk asks of the worker: the seam at which the tests put a fake."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from app.records import JobView, MessageRecord, SessionRecord


class DeskWorker(Protocol):
    """Does the work in a thread of its own; every method here returns at once."""

    def submit_plan(
        self,
        path: Path,
        password: str | None = None,
        pages: tuple[int, int] | None = None,
        settings: Any = None,
    ) -> str:
        """Parse, count and estimate; the job's result is the plan."""

    def submit_ingest(
        self,
        path: Path,
        password: str | None = None,
        pages: tuple[int, int] | None = None,
        settings: Any = None,
    ) -> str:
        """Read the document into a session; the job's result names it."""

    def submit_reopen(self, session_id: str) -> str:
        """Read on where a session of the library was left."""

    def submit_question(self, session_id: str, text: str, sampling: Any = None) -> str:
        """Answer a question; the job's text grows with the answer."""

    def job(self, job_id: str) -> JobView | None:
        """One job as it is now."""

    def jobs(self, active: bool = False) -> Sequence[JobView]:
        """All jobs, or those that wait or run."""

    def cancel(self, job_id: str) -> Any:
        """Ask a job to stop."""

    def sessions(self) -> Sequence[SessionRecord]:
        """All sessions, the last used first."""

    def messages(self, session_id: str) -> Sequence[MessageRecord]:
        """The conversation of one session, oldest first."""

    def doubts(self, session: SessionRecord) -> Sequence[str]:
        """Why what a session holds may not be what its pages show."""

    def delete_session(self, session_id: str) -> Any:
        """Remove a session with its saved cache."""

    def close(self) -> Any:
        """Checkpoint what is being read and end the thread."""
