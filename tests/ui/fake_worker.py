"""A worker without model and parser: jobs take time, answers stream, sessions survive in JSON.

Documents are told apart by their file's bytes: one that contains `/Encrypt` is locked with the
password `sesame`, one that contains `BROKEN` cannot be read, one with `HUGE` is too long.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from app.records import JobView, MessageRecord, SessionRecord

READ_TOKENS = 40_960
STEP_S = 0.05
ANSWER = (
    "The ship is called the **Pequod**, and it sails from Nantucket on a cold Christmas day. "
    "Its captain keeps to his cabin at first. <b>Markup</b> and ![pictures](http://evil.test/x.png)"
    " in an answer are text."
)
CITATIONS = [
    {"page": 3, "label": "3", "quote": "The Pequod sailed.", "verified": True},
    {"page": 9, "label": "ix", "quote": "A captain *below* deck.", "verified": False},
]
DOUBT = "The letters stored for page 9 may not be <those> that are shown."
_TITLE = "A Voyage in Chapters"


@dataclass
class _Job:
    view: JobView
    password: str | None = None
    stop: threading.Event = field(default_factory=threading.Event)


class FakeWorker:
    """DeskWorker with its own thread per job; `pace` stretches or shortens every wait."""

    def __init__(self, folder: Path, *, pace: float = 1.0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "fake.json"
        self.pace = pace
        self.opened: list[str] = []  # paths that were submitted
        self._lock = threading.RLock()
        self._jobs: dict[str, _Job] = {}
        self._sessions: list[SessionRecord] = []
        self._messages: list[MessageRecord] = []
        self._count = 0
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        if self.file.exists():
            stored = json.loads(self.file.read_text())
            self._sessions = [SessionRecord(**row) for row in stored["sessions"]]
            self._messages = [MessageRecord(**row) for row in stored["messages"]]

    def submit_plan(
        self,
        path: Path,
        password: str | None = None,
        pages: tuple[int, int] | None = None,
        settings: Any = None,
    ) -> str:
        return self._start("plan", {"path": str(path), "pages": pages}, None, password)

    def submit_ingest(
        self,
        path: Path,
        password: str | None = None,
        pages: tuple[int, int] | None = None,
        settings: Any = None,
    ) -> str:
        return self._start("ingest", {"path": str(path), "pages": pages}, None, password)

    def submit_reopen(self, session_id: str) -> str:
        return self._start("ingest", {"session": session_id}, session_id, None)

    def submit_question(self, session_id: str, text: str, sampling: Any = None) -> str:
        with self._lock:
            number = len(self._messages) + 1
            now = str(time.time())
            self._messages += [
                MessageRecord(number, session_id, "user", text, "done", None, {}, now),
                MessageRecord(number + 1, session_id, "assistant", "", "pending", number, {}, now),
            ]
        return self._start("question", {"answer_id": number + 1}, session_id, None)

    def job(self, job_id: str) -> JobView | None:
        with self._lock:
            job = self._jobs.get(job_id)
            return job.view if job else None

    def jobs(self, active: bool = False) -> list[JobView]:
        with self._lock:
            views = [job.view for job in self._jobs.values()]
        return [view for view in reversed(views) if view.active or not active]

    def cancel(self, job_id: str) -> None:
        with self._lock:
            job = self._jobs.get(job_id)
        if job is not None:
            job.stop.set()

    def sessions(self) -> list[SessionRecord]:
        with self._lock:
            return [
                replace(
                    record,
                    n_questions=sum(
                        m.session == record.id and m.role == "user" for m in self._messages
                    ),
                )
                for record in self._sessions
            ]

    def doubts(self, session: SessionRecord) -> list[str]:
        return [DOUBT]

    def messages(self, session_id: str) -> list[MessageRecord]:
        with self._lock:
            return [message for message in self._messages if message.session == session_id]

    def delete_session(self, session_id: str) -> None:
        with self._lock:
            self._sessions = [r for r in self._sessions if r.id != session_id]
            self._messages = [m for m in self._messages if m.session != session_id]
            self._save()

    def reset(self) -> None:
        """Stop every job and forget everything, for the next test."""
        for job in list(self._jobs.values()):
            job.stop.set()
        for thread in self._threads:
            thread.join(10)
        with self._lock:
            self._sessions, self._messages, self._threads = [], [], []
            self._jobs = {}
            self.pace = 1.0
            self._save()

    def close(self) -> None:
        self._closing.set()
        for job in list(self._jobs.values()):
            job.stop.set()
        for thread in self._threads:
            thread.join(10)

    # Inside

    def _start(
        self, kind: str, payload: dict[str, Any], session_id: str | None, password: str | None
    ) -> str:
        with self._lock:
            self._count += 1
            job_id = f"job{self._count}"
            view = JobView(
                job_id, kind, "running", 0, 0, 0.0, None, "", "Working.", {}, session_id, payload
            )
            self._jobs[job_id] = _Job(view, password)
            if "path" in payload:
                self.opened.append(payload["path"])
        run = {"plan": self._plan, "ingest": self._ingest, "question": self._answer}[kind]
        thread = threading.Thread(target=run, args=(self._jobs[job_id],), daemon=True)
        self._threads.append(thread)
        thread.start()
        return job_id

    def _change(self, job: _Job, **values: Any) -> None:
        with self._lock:
            job.view = replace(job.view, **values)

    def _wait(self, job: _Job, seconds: float) -> bool:
        """Pause; True if the job was stopped."""
        return job.stop.wait(seconds * self.pace)

    def _refused(self, job: _Job) -> bool:
        content = Path(job.view.payload["path"]).read_bytes()
        error, message = "", ""
        if b"/Encrypt" in content and job.password != "sesame":
            error = "WrongPassword" if job.password else "PasswordRequired"
            message = (
                "The password does not open this document."
                if job.password
                else "The document is protected by a password. Give it with --password."
            )
        elif b"BROKEN" in content:
            error = "BrokenDocument"
            message = "The file is damaged. Try another copy of it."
        if error:
            self._change(job, state="failed", message=message, result={"error": error})
        return bool(error)

    def _plan(self, job: _Job) -> None:
        self._change(job, message="Opening the document.")
        self._wait(job, 0.3)
        if self._refused(job):
            return
        content = Path(job.view.payload["path"]).read_bytes()
        first, last = job.view.payload["pages"] or (1, 212)
        n_tokens = int((400_000 if b"HUGE" in content else READ_TOKENS) * (last - first + 1) / 212)
        plan = {
            "title": _TITLE,
            "sha256": hashlib.sha256(content).hexdigest(),
            "kind": "pdf",
            "page_kind": "page",
            "session_id": self._session_id(content),
            "n_pages": 212,
            "first_page": first,
            "last_page": last,
            "n_tokens": n_tokens,
            "limit_tokens": 131_072,
            "budget_tokens": 4096,
            "kept_tokens": min(4096, n_tokens),
            "cache_bytes": 50_331_648,
            "memory_bytes": 402_653_184,
            "available_memory_bytes": 8 << 30,
            "disk_bytes": 170_000_000,
            "free_disk_bytes": 90 << 30,
            "seconds": 42.0,
            "model": "fake-0.5b",
            "fitting_pages": (1, 69) if n_tokens > 131_072 else (first, last),
            "already_read": False,
            "begun_tokens": 0,
            "lowered": "",
            "damage": "",
            "warnings": ("Page 7 is a picture without text.",),
        }
        self._change(job, state="done", message="", result=plan)

    def _ingest(self, job: _Job) -> None:
        if "path" in job.view.payload:
            if self._refused(job):
                return
            content = Path(job.view.payload["path"]).read_bytes()
            session_id = self._session_id(content)
        else:
            session_id = job.view.payload["session"]
        self._change(job, session_id=session_id)
        self._put_session(session_id, "reading")
        step = 1024
        for done in range(0, READ_TOKENS + 1, step):
            self._change(
                job,
                message="Reading.",
                done=done,
                total=READ_TOKENS,
                tok_s=step / STEP_S,
                eta_s=(READ_TOKENS - done) / step * STEP_S * self.pace,
            )
            if self._wait(job, STEP_S):
                self._change(
                    job,
                    state="cancelled",
                    message="The reading was stopped.",
                    result={"error": "PrefillStopped"},
                )
                return
        self._put_session(session_id, "ready")
        self._change(job, state="done", message="Read.", result={"session_id": session_id})

    def _answer(self, job: _Job) -> None:
        self._change(job, message="Answering.")
        self._wait(job, 0.4)
        state, words = "done", ANSWER.split(" ")
        for n in range(1, len(words) + 1):
            self._change(job, text=" ".join(words[:n]))
            if self._wait(job, 2 * STEP_S):
                state = "stopped"
                break
        details: dict[str, Any] = {"ttft_s": 0.4, "decode_tok_s": 20.0}
        if state == "done":
            details["citations"] = CITATIONS
        with self._lock:
            self._messages = [
                replace(m, text=job.view.text, state=state, details=details)
                if m.id == job.view.payload["answer_id"]
                else m
                for m in self._messages
            ]
            self._save()
        self._change(job, state="done" if state == "done" else "cancelled", message="")

    def _session_id(self, content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()[:16]

    def _put_session(self, session_id: str, state: str) -> None:
        record = SessionRecord(
            id=session_id, document="d" * 64, first_page=1, last_page=212, model="fake-0.5b",
            settings={}, state=state, problem="", n_tokens=READ_TOKENS, kept_tokens=4096.0,
            kept_fraction=0.1, nbytes=50_331_648, snapshot_bytes=50_331_648, positions="original",
            prefill_s=42.0, prefill_tok_s=975.0, created_at="", used_at="", title=_TITLE,
            file_name="voyage.pdf", kind="pdf", page_kind="page", n_pages=212,
        )  # fmt: skip
        with self._lock:
            others = [r for r in self._sessions if r.id != session_id]
            self._sessions = [record, *others]
            self._save()

    def _save(self) -> None:
        """Like the library: what is stored is there after a restart."""
        rows = {
            "sessions": [asdict(record) for record in self._sessions],
            "messages": [asdict(message) for message in self._messages],
        }
        aside = self.file.with_suffix(".new")
        aside.write_text(json.dumps(rows))
        aside.replace(self.file)
