"""What a tab can do: every click changes the tab's place or hands a job to the worker.

A seat belongs to one tab. Clicks and the timer reach it from several threads; its lock makes them
take turns, so that what the timer saw before a click never overwrites what the click changed. A
click that comes where it no longer belongs, as the second of a double click, does nothing.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.desk import words
from app.desk.advice import advice, job_advice, needs_password, told
from app.desk.picture import (
    DOCUMENT_GONE,
    HOME,
    SESSION_GONE,
    Picture,
    draw,
    place_on_load,
    question_job,
    reading_job,
    why_not_to_be_asked,
)
from app.desk.port import DeskWorker
from app.desk.uploads import Uploads
from app.messages import FAULT, explain
from app.records import JobView

MAX_SEATS = 64
_log = logging.getLogger("longread")


class Seat:
    """One tab: where it is, which password it was told, and what it was sent last."""

    def __init__(
        self,
        worker: DeskWorker,
        uploads: Uploads,
        css: str = "lr-chip",
        others: Callable[[], Sequence[Seat]] = tuple,
    ) -> None:
        self.worker = worker
        self.uploads = uploads
        self.css = css
        self.others = others
        self.place = HOME
        self.note = ""
        self.told = ""
        self.confirm = False
        self.password: str | None = None
        self.lock = threading.RLock()
        self.shown: Picture | None = None
        self.n_sent = 0
        self.looked_at_s = 0.0  # when the tab asked last, on the monotonic clock
        self.pages_sent: tuple[int, object] = (0, None)  # in which answer, and what for

    def look(self) -> Picture:
        """The picture as things stand; follows a reading that has ended to its session."""
        picture = self._draw()
        if picture.place != self.place:
            # What was said on the way (cancelled, failed) stays until the next click.
            self._leave(self._note_of_ended(), self._told_at_return())
            self.place = picture.place
            picture = self._draw()
        return picture

    def _draw(self) -> Picture:
        return draw(
            self.worker,
            self.place,
            note=self.note,
            told=self.told,
            confirm=self.confirm,
            css=self.css,
        )

    def act(self, action: Callable[..., None], *given: Any) -> None:
        """Run one click; a refusal becomes the note, a fault of ours is also logged."""
        self.note = self.told = ""
        try:
            action(*given)
        except Exception as error:  # noqa: BLE001 - the top of a click: reported, never swallowed
            message = explain(error)
            if message is None:
                _log.error("a click at the desk failed", exc_info=error)
                message = FAULT
            self.note = advice(str(message), type(error).__name__)

    # Clicks

    def load(self, remembered: str) -> None:
        """A tab opened or was reloaded."""
        self.place = place_on_load(self.worker, remembered or "")

    def drop(self, path: str | None) -> None:
        """A file was dropped: count it and show the plan."""
        if path:
            self._leave()
            self.place = f"plan:{self.worker.submit_plan(Path(path))}"

    def unlock(self, password: str) -> None:
        """Open the locked document of this place with a password."""
        job = self._job()
        if job is None or not needs_password(job):
            return
        if not password:
            self.note = "Type the document's password first."
            return
        self.password = password
        path = self._path()
        self.place = f"plan:{self.worker.submit_plan(path, password)}"

    def replan(self, first: Any, last: Any) -> None:
        """Count again for other pages."""
        pages = self._pages(first, last)
        if pages is not None:
            path = self._path()
            self.place = f"plan:{self.worker.submit_plan(path, self.password, pages)}"

    def read(self, first: Any, last: Any) -> None:
        """Begin to read the planned document."""
        pages = self._pages(first, last)
        if pages is not None:
            job_id = self.worker.submit_ingest(self._path(), self.password, pages)
            self.place = f"read:{job_id}"

    def cancel(self) -> None:
        """Stop the reading or opening of this place, and leave a place that only waits."""
        kind, _, name = self.place.partition(":")
        self.worker.cancel(name)
        if kind == "plan":
            self.home()

    def show_reading(self) -> None:
        """Go to the reading that runs."""
        job = reading_job(self.worker.jobs(active=True))
        if job is not None:
            self._leave()
            self.place = f"read:{job.id}"

    def home(self) -> None:
        """Back to the drop area."""
        self._leave()
        self.place = HOME

    def open(self, session_id: str | None) -> None:
        """Show a session of the list."""
        if session_id:
            self._leave()
            self.place = f"session:{session_id}"

    def resume(self) -> None:
        """Read on where the open session's reading stopped."""
        if self._draw().can_resume:
            self.place = f"read:{self.worker.submit_reopen(self._session_id())}"

    def ask(self, question: str) -> None:
        """Hand a question to the worker, unless one is being answered or none can be."""
        session_id = self._session_id()
        record = next((r for r in self.worker.sessions() if r.id == session_id), None)
        if record is None or not question.strip():
            return
        self.note = why_not_to_be_asked(record)
        if self.note:
            return
        answering = question_job(self.worker.jobs(active=True), session_id)
        if answering is not None:
            if question.strip() != self._asked(answering):
                self.note = "One question at a time: wait for the answer, or stop it."
            return
        self.worker.submit_question(session_id, question.strip())

    def stop(self) -> None:
        """Stop the answer of the open session."""
        job = question_job(self.worker.jobs(active=True), self._session_id())
        if job is not None:
            self.worker.cancel(job.id)

    def ask_delete(self) -> None:
        """Open the question before deleting."""
        self.confirm = True

    def keep(self) -> None:
        """Close it again."""
        self.confirm = False

    def delete(self) -> None:
        """Delete the open session."""
        session_id = self._session_id()
        if session_id:
            self.home()
            self.worker.delete_session(session_id)

    # Inside

    def _leave(self, note: str = "", told: str = "") -> None:
        """Before the place changes: what belonged to it is dropped, a temporary file included."""
        path = self.dropped()
        if path and not self._is_needed(path):
            self.uploads.discard(path)
        self.confirm, self.password, self.note, self.told = False, None, note, told

    def dropped(self) -> str:
        """The file that this place is about; nothing where there is none."""
        job = self._job()
        return str(job.payload.get("path", "")) if job is not None else ""

    def _is_needed(self, path: str) -> bool:
        """Whether a job that waits or runs, or another tab, still wants a dropped file."""
        jobs = self.worker.jobs(active=True)
        return any(job.payload.get("path") == path for job in jobs) or any(
            seat.dropped() == path for seat in self.others() if seat is not self
        )

    def _job(self) -> JobView | None:
        """The job whose place this is."""
        kind, _, name = self.place.partition(":")
        return self.worker.job(name) if kind in ("plan", "read") else None

    def _note_of_ended(self) -> str:
        """What is said of a place that cannot be shown any longer."""
        job = self._job()
        if self.note or (job is not None and job.state in ("done", "queued", "running")):
            return self.note
        if job is not None:
            return job_advice(job)
        return SESSION_GONE if self._session_id() else DOCUMENT_GONE

    def _told_at_return(self) -> str:
        """What was announced of a document that opened at once; a reading showed it meanwhile."""
        job = self._job()
        return told(str(job.result.get("told", ""))) if job and job.result.get("reused") else ""

    def _session_id(self) -> str:
        kind, _, name = self.place.partition(":")
        return name if kind == "session" else ""

    def _asked(self, job: JobView) -> str:
        """The question that a job answers."""
        messages = self.worker.messages(job.session_id or "")
        texts = {message.id: message.text for message in messages}
        answer_id = job.payload.get("answer_id")
        replies = (texts.get(m.reply_to or 0, "") for m in messages if m.id == answer_id)
        return next(replies, "")

    def _path(self) -> Path:
        return Path(self.dropped())

    def _pages(self, first: Any, last: Any) -> tuple[int, int] | None:
        """The typed range, or None where there is no plan, or the note says what is wrong."""
        job = self._job()
        if job is None or job.kind != "plan" or job.state != "done":
            return None
        n_pages = int(job.result["n_pages"])
        try:
            pages = words.page_range(first, last) or (1, n_pages)
        except ValueError as error:
            self.note = str(error)
            return None
        if pages[1] > n_pages:
            self.note = f"The document ends at {n_pages}. Choose a last page up to there."
            return None
        return pages


class Seats:
    """The seats of all tabs by Gradio's session hash; the longest unused ones go."""

    def __init__(self, make: Callable[[], Seat]) -> None:
        self._make = make
        self._seats: OrderedDict[str, Seat] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, session_hash: str | None) -> Seat:
        """The seat of a tab, made when it first comes."""
        key = session_hash or ""
        with self._lock:
            seat = self._seats.get(key)
            if seat is None:
                seat = self._seats[key] = self._make()
            self._seats.move_to_end(key)
            while len(self._seats) > MAX_SEATS:
                self._seats.popitem(last=False)
            return seat

    def all(self) -> list[Seat]:
        """The seats there are."""
        with self._lock:
            return list(self._seats.values())
