"""The one thread that owns the model. The desk submits jobs and looks at them; nothing more.

Jobs live in the library, so a reloaded page finds them again; after a restart of the program those
that had not ended are "interrupted". Passwords are kept in memory only; what was asked and answered
stands among the messages, where a deletion finds it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from app.conversation import Asker, answer_stored
from app.errors import AppError, NoSuchSession, OpeningStopped
from app.jobs import JobStore
from app.library import Library
from app.messages import EXIT_INTERRUPTED, FAULT, explain
from app.progress import OPENING_STAGES, READING_STAGES, STAGE_NAMES, OnProgress, RateMeter
from app.records import ANSWER_FAILED, JobView, MessageRecord, SessionRecord
from app.settings import ReadSettings

if TYPE_CHECKING:
    from engine.generate import Sampling

SAVE_EVERY_S = 0.5
CLOSE_WAIT_S = 30.0
_log = logging.getLogger("longread")


class ReaderLike(Asker, Protocol):
    """What the worker needs of `service.Reader`; tests give a fake."""

    library: Library

    @property
    def open(self) -> Callable[..., Any]:
        """See Reader.open; the result has `record`, `reused` and `report.resumed_from`."""

    @property
    def reopen(self) -> Callable[..., Any]:
        """See Reader.reopen."""

    @property
    def plan(self) -> Callable[..., Any]:
        """See Reader.plan; the result has `to_dict()`."""

    def forget(self, session_id: str) -> None:
        """See Reader.forget."""


class _Live:
    """A job in memory: what changes too often for the database, and what must not go there."""

    def __init__(self, view: JobView, password: str | None, question: str, sampling: Any) -> None:
        self.view = view
        self.password = password
        self.question = question
        self.sampling = sampling
        self.stop = threading.Event()
        self.ended = threading.Event()
        self.meter = RateMeter()
        self.stage = ""
        self.doing = "Working."
        self.told: list[str] = []
        self.saved_at = 0.0

    def heed_stop(self) -> None:
        """Raise OpeningStopped if an end was asked for."""
        if self.stop.is_set():
            raise OpeningStopped

    @property
    def message(self) -> str:
        """What is being done, and what the reader announced meanwhile."""
        return " ".join([self.doing, *self.told])


class Worker:
    """Runs jobs one after another in its own thread. All methods may be called from any thread.

    history_tokens  how much of a session's earlier conversation a question is asked with
    """

    def __init__(self, reader: ReaderLike, *, history_tokens: int = 0) -> None:
        self.reader = reader
        self.library = reader.library
        self.history_tokens = history_tokens
        self._store = JobStore(self.library.database)
        for job_id in self._store.interrupt_orphans():
            self._stop_answer(self._store.get(job_id))
        self._live: dict[str, _Live] = {}
        self._running: _Live | None = None
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="longread-worker", daemon=True)
        self._thread.start()

    # Submitting

    def submit_ingest(
        self,
        path: Path | str,
        password: str | None = None,
        pages: tuple[int, int] | None = None,
        settings: ReadSettings | None = None,
        *,
        reread: bool = False,
    ) -> str:
        """Read a file into a session. result: session_id, reused, resumed_from, told."""
        payload = _payload(path, pages, settings) | {"reread": reread}
        return self._submit("ingest", payload, password=password)

    def submit_plan(
        self,
        path: Path | str,
        password: str | None = None,
        pages: tuple[int, int] | None = None,
        settings: ReadSettings | None = None,
    ) -> str:
        """Parse and count only; result: Plan.to_dict()."""
        return self._submit("plan", _payload(path, pages, settings), password=password)

    def submit_reopen(self, session_id: str, *, reread: bool = False) -> str:
        """Bring a session of the library into memory; one not read to the end is read on."""
        record = self.library.session(session_id)
        return self._submit("ingest", {"session": record.id, "reread": reread}, record.id)

    def submit_question(self, session_id: str, text: str, sampling: Sampling | None = None) -> str:
        """Ask; question and pending answer stand in the library when this returns.

        result: question_id and answer_id; the answer itself is the message. Raises NoSuchSession.
        """
        record = self.library.session(session_id)
        question_id, answer_id = self.library.add_question(record.id, text)
        payload = {"question_id": question_id, "answer_id": answer_id}
        return self._submit("question", payload, record.id, question=text, sampling=sampling)

    def hear(self, text: str) -> None:
        """What the reader announces while a job runs, for that job's message."""
        live = self._running
        if live is not None and not live.ended.is_set():
            live.told.append(text)
            self._change(live, message=live.message)

    # Observing

    def job(self, job_id: str) -> JobView | None:
        """One job as it stands now, or None."""
        with self._lock:
            live = self._live.get(job_id)
            if live is not None:
                return live.view
        return self._store.get(job_id)

    def jobs(self, active: bool = False) -> list[JobView]:
        """Jobs, newest first; only those that wait or run if `active`."""
        views = [self.job(view.id) or view for view in self._store.all(active=active)]
        return [view for view in views if view.active or not active]

    def wait(self, job_id: str, timeout_s: float | None = None) -> JobView | None:
        """Block until a job has ended (or the time is over); its view then."""
        with self._lock:
            live = self._live.get(job_id)
        if live is not None:
            live.ended.wait(timeout_s)
        return self.job(job_id)

    def sessions(self) -> list[SessionRecord]:
        """The library's sessions, the last used first."""
        return self.library.sessions()

    def doubts(self, session: SessionRecord) -> list[str]:
        """Why what a session holds may not be what its pages show: its document's warnings."""
        document = self.library.document(session.document)
        return document.doubts if document else []

    def messages(self, session_id: str) -> list[MessageRecord]:
        """A session's conversation, oldest first."""
        return self.library.messages(session_id)

    # Ending

    def cancel(self, job_id: str) -> None:
        """Stop a job: at once if it waits or a file is parsed, else after its chunk or token."""
        with self._lock:
            live = self._live.get(job_id)
            waiting = live is not None and live.view.state == "queued"
        if live is None:
            return
        live.stop.set()
        if waiting:
            self._end(live, "cancelled", message="Cancelled before it began.")

    def delete_session(self, session_id: str) -> None:
        """Cancel what runs on a session, then remove it from the library and the disk.

        Raises NoSuchSession, or AppError if the work cannot be stopped in time.
        """
        record = self.library.session(session_id)
        with self._lock:
            busy = [live for live in self._live.values() if live.view.session_id == record.id]
        for live in busy:
            self.cancel(live.view.id)
            if not live.ended.wait(CLOSE_WAIT_S):
                raise AppError("The session is still being worked on.", "Try again in a moment.")
        self.reader.forget(record.id)
        self.library.delete_session(record.id)

    def close(self) -> None:
        """Stop what runs (its state is saved), and end the thread."""
        self._closing = True
        with self._lock:
            lives = list(self._live.values())
        for live in lives:
            live.stop.set()
        self._queue.put(None)
        self._thread.join(CLOSE_WAIT_S)
        for live in lives:
            if not live.ended.is_set():
                self._end(live, "interrupted", message="The program was closed.")

    # Inside

    def _submit(
        self,
        kind: str,
        payload: dict[str, Any],
        session_id: str | None = None,
        *,
        password: str | None = None,
        question: str = "",
        sampling: Any = None,
    ) -> str:
        job_id = self._store.add(kind, payload, session_id)
        view = self._store.get(job_id)
        assert view is not None
        with self._lock:
            self._live[job_id] = _Live(view, password, question, sampling)
        self._queue.put(job_id)
        return job_id

    def _run(self) -> None:
        while (job_id := self._queue.get()) is not None:
            with self._lock:
                live = self._live.get(job_id)
            if live is None or live.ended.is_set():
                continue
            if self._closing:
                self._end(live, "interrupted", message="The program was closed.")
                continue
            self._running = live
            self._change(live, state="running", message=live.message, save=True)
            try:
                self._work(live)
            except Exception as error:  # noqa: BLE001 - the top of the thread: reported, never swallowed
                self._fail(live, error)

    def _work(self, live: _Live) -> None:
        """Run one job to its end."""
        view = live.view
        if view.kind == "plan":
            plan = self.reader.plan(on_progress=self._progress(live), **_how_to_open(live))
            live.heed_stop()
            self._end(live, "done", message="", result=plan.to_dict())
        elif view.kind == "ingest":
            session = self._opened(live)
            result = {
                "session_id": session.record.id,
                "reused": session.reused,
                "resumed_from": session.report.resumed_from,
                "told": " ".join(live.told),
            }
            message = "Opened from disk." if session.reused else "Read."
            self._end(live, "done", message=message, result=result)
        else:
            self._answer(live)

    def _opened(self, live: _Live) -> Any:
        how: dict[str, Any] = {
            "on_progress": self._progress(live),
            "on_session": lambda session_id: self._change(live, session_id=session_id, save=True),
            "stop": live.stop.is_set,
            "reread": live.view.payload.get("reread", False),
        }
        session_id = live.view.payload.get("session")
        if session_id is not None:
            return self.reader.reopen(session_id, **how)
        return self.reader.open(**_how_to_open(live), **how)

    def _answer(self, live: _Live) -> None:
        payload, session_id = live.view.payload, live.view.session_id
        assert session_id is not None
        ids = (payload["question_id"], payload["answer_id"])
        try:
            session = self.reader.reopen(
                session_id, on_progress=self._progress(live), stop=live.stop.is_set
            )
        except Exception as error:
            message = explain(error) or FAULT
            if message.exit_code != EXIT_INTERRUPTED:
                problem = {"problem": str(message), "error": type(error).__name__}
                self.library.set_answer(ids[1], "", ANSWER_FAILED, problem)
            raise
        live.doing = "Answering."
        self._change(live, message=live.message, done=0, total=0, tok_s=0.0, eta_s=None)
        answer = answer_stored(
            self.library,
            self.reader,
            session,
            live.question,
            ids,
            live.sampling,
            on_text=lambda piece: self._change(live, text=live.view.text + piece),
            stop=live.stop.is_set,
            history_tokens=self.history_tokens,
        )
        result = {"question_id": ids[0], "answer_id": ids[1]}
        state = "cancelled" if answer.finish == "stop" else "done"
        self._end(live, state, message="", result=result)

    def _progress(self, live: _Live) -> OnProgress:
        """Puts progress into a job's view, and ends an opening whose stop is asked for."""

        def progressed(stage: str, done: int, total: int) -> None:
            if stage in OPENING_STAGES:
                live.heed_stop()
            if stage != live.stage:
                live.stage = stage
                live.meter.start(done, total)
            else:
                live.meter.update(done, total)
            live.doing = f"{STAGE_NAMES.get(stage, stage)}."
            tok_s, eta_s = live.meter.tok_s, live.meter.eta_s
            if stage not in READING_STAGES:
                tok_s, eta_s = 0.0, None
            self._change(
                live, done=done, total=total, tok_s=tok_s, eta_s=eta_s, message=live.message
            )

        return progressed

    def _fail(self, live: _Live, error: Exception) -> None:
        message = explain(error)
        if message is None:
            _log.error("job %s failed", live.view.id, exc_info=error)
            message = FAULT
        state = "failed"
        if message.exit_code == EXIT_INTERRUPTED:
            state = "interrupted" if self._closing else "cancelled"
        self._end(live, state, message=str(message), result={"error": type(error).__name__})

    def _change(self, live: _Live, *, save: bool = False, **values: Any) -> None:
        """Change a running job's view; the database follows at most every SAVE_EVERY_S."""
        with self._lock:
            live.view = replace(live.view, **values)
            view = live.view
        moment = time.monotonic()
        if save or moment - live.saved_at >= SAVE_EVERY_S:
            live.saved_at = moment
            self._store.update(
                view.id,
                state=view.state,
                session=view.session_id,
                done=view.done,
                total=view.total,
                tok_s=view.tok_s,
                eta_s=view.eta_s,
                message=view.message,
            )

    def _end(self, live: _Live, state: str, **values: Any) -> None:
        """Give a job its last state, in memory and in the library."""
        with self._lock:
            if live.ended.is_set():
                return
            session_id = values.get("result", {}).get("session_id") or live.view.session_id
            live.view = replace(live.view, state=state, eta_s=None, session_id=session_id, **values)
            view = live.view
        if state in ("cancelled", "interrupted"):
            self._stop_answer(view)
        self._store.update(
            view.id,
            state=state,
            session=session_id,
            done=view.done,
            total=view.total,
            tok_s=view.tok_s,
            eta_s=None,
            message=view.message,
            result=view.result,
        )
        live.ended.set()
        with self._lock:
            self._live.pop(view.id, None)

    def _stop_answer(self, view: JobView | None) -> None:
        """Of a question that nobody goes on with, the answer counts as stopped."""
        if view is not None and "answer_id" in view.payload:
            self.library.stop_answer(view.payload["answer_id"], view.text)


def _payload(
    path: Path | str, pages: tuple[int, int] | None, settings: ReadSettings | None
) -> dict[str, Any]:
    """What a job must remember to be done again; never the password."""
    return {
        "path": str(path),
        "pages": list(pages) if pages else None,
        "settings": settings.to_dict() if settings else None,
    }


def _how_to_open(live: _Live) -> dict[str, Any]:
    payload = live.view.payload
    settings: Callable[[dict[str, Any]], ReadSettings] = ReadSettings.from_dict
    pages: Sequence[int] | None = payload.get("pages")
    if "path" not in payload:
        raise NoSuchSession("This job names no file.", "Open the document again.")
    return {
        "path": payload["path"],
        "password": live.password,
        "while_parsing": live.heed_stop,
        "pages": tuple(pages) if pages else None,
        "settings": settings(payload["settings"]) if payload.get("settings") else None,
    }
