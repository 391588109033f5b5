"""What one tab shows, as plain values computed from the worker and the place the tab is at.

A place is a short text that survives a reload (the browser keeps it for the tab):

    ""            the drop area
    plan:JOB      a document that is opened and counted, then its plan
    read:JOB      a document that is being read
    session:ID    a conversation
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.desk import cards
from app.desk.advice import advice, is_calm, job_advice, needs_password
from app.desk.chat import ChatMessage, conversation
from app.desk.port import DeskWorker
from app.desk.words import session_line
from app.records import SESSION_DAMAGED, SESSION_READING, SESSION_READY, JobView, SessionRecord

HOME = ""
SESSION_GONE = "That session is no longer in the library."
DOCUMENT_GONE = "That document is no longer in the library. Drop it in again if it is still wanted."
UNFINISHED = "This document has not been read to the end. Continue where the reading stopped."


@dataclass(frozen=True)
class Picture:
    """Values of all components. mode: drop, opening, plan, password, reading or chat."""

    place: str = HOME
    mode: str = "drop"
    sessions: tuple[tuple[str, str], ...] = ()  # (label, id)
    selected: str | None = None
    strip: str = ""
    notice: str = ""
    card: str = ""
    can_read: bool = False
    read_label: str = "Read"
    pages: tuple[int, int] | None = None
    page_word: str = "page"
    head: str = ""
    messages: list[ChatMessage] = field(default_factory=list)
    answering: bool = False
    can_ask: bool = False
    can_resume: bool = False
    confirm: bool = False
    busy: bool = False


def draw(
    worker: DeskWorker,
    place: str,
    *,
    note: str = "",
    told: str = "",
    confirm: bool = False,
    css: str = "lr-chip",
) -> Picture:
    """The picture of a place as things stand now; a reading that ended leads to its session.

    note     an error sentence to show on top
    told     what was announced, to show there where there is no note
    confirm  whether the question before deleting is open
    """
    active = worker.jobs(active=True)
    sessions = worker.sessions()
    kind, _, name = place.partition(":")
    if kind == "read":
        kind, name, note = _ended_reading(worker, name, note)
        place = f"{kind}:{name}" if kind else HOME
    base = Picture(
        place=place,
        sessions=tuple(
            (session_line(record, being_read=_is_read(active, record.id)), record.id)
            for record in sessions
        ),
        strip=_strip(worker, active, place),
        notice=cards.notice(note or told, "error" if note and not is_calm(note) else "info"),
        busy=bool(active),
    )
    if kind == "session":
        record = next((record for record in sessions if record.id == name), None)
        if record is not None:
            return replace(_chat(worker, record, active, base, css), confirm=confirm)
        return replace(base, place=HOME)
    job = worker.job(name) if kind in ("plan", "read") else None
    if job is None:
        return replace(base, place=HOME)
    return _document(worker, job, base)


def _ended_reading(worker: DeskWorker, job_id: str, note: str) -> tuple[str, str, str]:
    """Where a reading's place leads: to itself while it runs, then to what became of it."""
    job = worker.job(job_id)
    if job is None or job.active:
        return "read", job_id, note
    session_id = str(job.result.get("session_id") or job.session_id or "")
    if job.state != "done":
        note = note or job_advice(job)
    known = any(record.id == session_id for record in worker.sessions())
    if known:
        return "session", session_id, note
    if needs_password(job):
        return "plan", job_id, note
    return "", "", note


def _document(worker: DeskWorker, job: JobView, base: Picture) -> Picture:
    """Opening, plan, password or reading, whichever the job has come to."""
    title = job_title(worker, job)
    if job.active:
        mode = "reading" if job.kind == "ingest" else "opening"
        return replace(base, mode=mode, card=cards.progress_card(job, title))
    if job.kind == "plan" and job.state == "done":
        plan = job.result
        fitting = plan["fitting_pages"] if plan["n_tokens"] > plan["limit_tokens"] else None
        chosen = fitting or (plan["first_page"], plan["last_page"])
        return replace(
            base,
            mode="plan",
            card=cards.plan_card(plan),
            can_read=not cards.plan_problems(plan),
            read_label="Open" if plan["already_read"] else "Read",
            pages=(int(chosen[0]), int(chosen[1])),
            page_word=plan["page_kind"],
        )
    base = replace(base, notice=base.notice or cards.notice(job_advice(job)))
    if needs_password(job):
        text = "It is opened on this machine only, and the password is not kept."
        return replace(base, mode="password", card=cards.heading(title, text))
    return replace(base, place=HOME)


def _chat(
    worker: DeskWorker,
    record: SessionRecord,
    active: Sequence[JobView],
    base: Picture,
    css: str,
) -> Picture:
    answering = question_job(active, record.id)
    reading = _is_read(active, record.id)
    notice = base.notice
    if not notice and record.state == SESSION_DAMAGED:
        notice = cards.notice(why_not_to_be_asked(record))
    if not notice and record.state == SESSION_READING and not reading:
        notice = cards.notice(why_not_to_be_asked(record), "info")
    return replace(
        base,
        mode="chat",
        notice=notice,
        selected=record.id,
        head=cards.session_heading(record, worker.doubts(record)),
        messages=conversation(worker.messages(record.id), answering, record.page_kind, css),
        answering=answering is not None,
        can_ask=record.state == SESSION_READY and answering is None,
        can_resume=record.state == SESSION_READING and not reading,
    )


def why_not_to_be_asked(record: SessionRecord) -> str:
    """Why no question can be put to a session, and the next step; nothing if one can."""
    if record.state == SESSION_DAMAGED:
        return advice(record.problem, "SnapshotCorrupt")
    return "" if record.state == SESSION_READY else UNFINISHED


def question_job(active: Sequence[JobView], session_id: str) -> JobView | None:
    """The question of this session that runs, or else the one that waits longest."""
    jobs = [job for job in active if job.kind == "question" and job.session_id == session_id]
    return _foremost(jobs)


def reading_job(active: Sequence[JobView]) -> JobView | None:
    """The ingest job that runs, or else the one that waits longest."""
    jobs = [job for job in active if job.kind == "ingest"]
    return _foremost(jobs)


def _is_read(active: Sequence[JobView], session_id: str) -> bool:
    return any(job.kind == "ingest" and job.session_id == session_id for job in active)


def _foremost(newest_first: Sequence[JobView]) -> JobView | None:
    running = [job for job in newest_first if job.state == "running"]
    waiting = list(reversed(newest_first))
    return next(iter(running or waiting), None)


def job_title(worker: DeskWorker, job: JobView) -> str:
    """A document's title if it is known yet, else its file's name."""
    for record in worker.sessions():
        if record.id == (job.session_id or job.payload.get("session")):
            return record.title or record.file_name
    return Path(str(job.payload.get("path", "Document"))).name


def _strip(worker: DeskWorker, active: Sequence[JobView], place: str) -> str:
    job = reading_job(active)
    if job is None or place == f"read:{job.id}":
        return ""
    return cards.reading_strip(job, job_title(worker, job))


def place_on_load(worker: DeskWorker, remembered: str) -> str:
    """Where a tab that (re)loads goes: where it was, else to what is going on."""
    kind, _, name = remembered.partition(":")
    if kind == "session" and any(record.id == name for record in worker.sessions()):
        return remembered
    if kind in ("plan", "read") and worker.job(name) is not None:
        return remembered
    active = worker.jobs(active=True)
    reading = reading_job(active)
    if reading is not None:
        return f"read:{reading.id}"
    asked = next((job for job in active if job.kind == "question" and job.session_id), None)
    return f"session:{asked.session_id}" if asked is not None else HOME
