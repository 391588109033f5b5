"""Jobs outlive the page that asked for them, and end in a state that is true."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.answers import Answer
from app.citations import Citation
from app.errors import NoSuchSession
from app.jobs import JobStore
from app.library import Library
from app.paths import data_paths
from app.records import JobView
from app.worker import Worker
from engine.errors import PrefillStopped
from ingest import PasswordRequired
from tests.unit.app.made_documents import document_of

SESSION = "ab" * 12


class FakeReader:
    """Reads in steps the test allows, one token of progress each."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.step = threading.Semaphore(0)
        self.passwords: list[str | None] = []
        self.histories: list[int] = []
        self.fails: Exception | None = None
        self.announces: list[str] = []
        self.plan_stages: list[str] = []
        self.announce: Any = None

    def open(self, path: Any, **how: Any) -> Any:
        self.passwords.append(how["password"])
        if self.fails is not None:
            raise self.fails
        if str(path).endswith("secret.pdf") and how["password"] is None:
            raise PasswordRequired("It is protected.")
        document = document_of("The wolf ran.\n")
        self.library.add_document(document, "a.txt", needs_password=False)
        self.library.start_session(
            SESSION, document=document.sha256, pages=(1, 1), model="tiny", settings={}, n_tokens=9
        )
        how["on_session"](SESSION)
        for text in self.announces:
            self.announce(text)
        return self._read(how)

    def reopen(self, session_id: str, **how: Any) -> Any:
        if "on_session" in how:
            return self._read(how)
        return self._session(reused=True, resumed_from=0)

    def _read(self, how: dict[str, Any]) -> Any:
        how["on_progress"]("read", 0, 3)
        for done in range(1, 4):
            self.step.acquire()
            if how["stop"]():
                raise PrefillStopped(None, done, 3)
            how["on_progress"]("read", done, 3)
        self.library.finish_session(SESSION, kept_tokens=3.0)
        return self._session(reused=False, resumed_from=0)

    def _session(self, **values: Any) -> Any:
        return SimpleNamespace(
            record=self.library.session(SESSION),
            reused=values["reused"],
            report=SimpleNamespace(resumed_from=values["resumed_from"]),
        )

    def plan(self, path: Any, **how: Any) -> Any:
        for stage in self.plan_stages:
            if stage == "parsing":
                how["while_parsing"]()
            else:
                how["on_progress"](stage, 0, 0)
            self.step.acquire()
        return SimpleNamespace(to_dict=lambda: {"n_tokens": 9, "fits": True})

    def ask(self, session: Any, question: str, sampling: Any = None, **how: Any) -> Answer:
        self.histories.append(len(how["history"]))
        finish, text = "eos", ""
        for piece in ("The ", "wolf ", "ran."):
            self.step.acquire()
            if self.fails is not None:
                raise self.fails
            how["on_text"](piece)
            text += piece
            if how["stop"]():
                finish = "stop"
                break
        citations = [Citation(1, "1", "The wolf ran.", True)]
        return Answer(question, text.strip(), citations, 0.1, 5.0, 3, 20, 64, finish)

    def forget(self, session_id: str) -> None:
        """Nothing is held."""


@pytest.fixture
def reader(data_dir: Path) -> Iterator[FakeReader]:
    library = Library(data_paths())
    yield FakeReader(library)
    library.close()


@pytest.fixture
def worker(reader: FakeReader) -> Iterator[Worker]:
    worker = Worker(reader, history_tokens=100)
    yield worker
    reader.step.release(100)
    worker.close()


def ended(worker: Worker, job_id: str) -> JobView:
    view = worker.wait(job_id, 60)
    assert view is not None and not view.active
    return view


def read_book(worker: Worker, reader: FakeReader) -> str:
    reader.step.release(3)
    view = ended(worker, worker.submit_ingest("book.txt"))
    assert view.state == "done" and view.session_id == SESSION
    return SESSION


def until(condition: Any) -> None:
    """Wait for another thread, at most a minute."""
    ready = threading.Event()
    for _ in range(6000):
        if condition():
            return
        ready.wait(0.01)
    raise AssertionError("it never came")


def test_a_reading_reports_progress_and_its_session(worker: Worker, reader: FakeReader) -> None:
    job_id = worker.submit_ingest("book.txt", password="open sesame")
    reader.step.release()
    until(lambda: worker.job(job_id).done == 1)
    view = worker.job(job_id)
    assert view is not None
    assert (view.kind, view.state, view.total, view.session_id) == ("ingest", "running", 3, SESSION)
    assert [v.id for v in worker.jobs(active=True)] == [job_id]
    reader.step.release(2)
    view = ended(worker, job_id)
    assert view.state == "done" and view.result == {
        "session_id": SESSION,
        "reused": False,
        "resumed_from": 0,
        "told": "",
    }
    assert worker.jobs(active=True) == [] and worker.sessions()[0].state == "ready"
    assert reader.passwords == ["open sesame"]


def test_the_password_is_never_written_down(worker: Worker, reader: FakeReader) -> None:
    reader.step.release(3)
    ended(worker, worker.submit_ingest("book.txt", password="open sesame"))
    worker.library.database.get().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for file in worker.library.paths.root.rglob("*"):
        if file.is_file():
            assert b"open sesame" not in file.read_bytes()


def test_the_question_is_stored_at_once_and_the_answer_grows(
    worker: Worker, reader: FakeReader
) -> None:
    read_book(worker, reader)
    job_id = worker.submit_question(SESSION, "Who ran?")
    question, answer = worker.messages(SESSION)
    assert (question.text, answer.state) == ("Who ran?", "pending")
    reader.step.release(2)
    until(lambda: worker.job(job_id).text == "The wolf ")
    assert worker.job(job_id).state == "running"
    reader.step.release()
    view = ended(worker, job_id)
    assert view.state == "done"
    stored = worker.messages(SESSION)[1]
    assert (question.id, stored.id) == (view.result["question_id"], view.result["answer_id"])
    assert (stored.text, stored.state) == ("The wolf ran.", "done")
    assert stored.citations[0]["page"] == 1 and stored.citations[0]["verified"] is True


def test_no_word_of_a_question_or_answer_stays_with_its_job(
    worker: Worker, reader: FakeReader
) -> None:
    read_book(worker, reader)
    reader.step.release(3)
    ended(worker, worker.submit_question(SESSION, "Who ran?"))
    (row,) = worker.library.database.get().query("SELECT * FROM jobs WHERE kind = 'question'")
    assert not any(word in str(row) for word in ("Who", "ran", "wolf"))


def test_only_answered_questions_are_history(worker: Worker, reader: FakeReader) -> None:
    read_book(worker, reader)
    reader.step.release(100)
    for n in range(3):
        ended(worker, worker.submit_question(SESSION, f"Question {n}?"))
    assert reader.histories == [0, 1, 2]


def test_a_stopped_answer_keeps_what_was_said(worker: Worker, reader: FakeReader) -> None:
    read_book(worker, reader)
    job_id = worker.submit_question(SESSION, "Who ran?")
    reader.step.release()
    until(lambda: worker.job(job_id).text == "The ")
    worker.cancel(job_id)
    reader.step.release()
    view = ended(worker, job_id)
    assert view.state == "cancelled" and worker.messages(SESSION)[1].text == "The wolf"
    assert [m.state for m in worker.messages(SESSION)] == ["done", "stopped"]


def test_a_waiting_job_is_cancelled_at_once(worker: Worker, reader: FakeReader) -> None:
    first = worker.submit_ingest("a.txt")
    second = worker.submit_ingest("b.txt")
    worker.cancel(second)
    assert worker.job(second).state == "cancelled"
    reader.step.release(3)
    assert ended(worker, first).state == "done"
    assert len(reader.passwords) == 1


@pytest.mark.parametrize("stages", [["parse", "parsing"], ["fetch", "fetch"], ["fetch", "load"]])
def test_opening_and_counting_can_be_cancelled(
    stages: list[str], worker: Worker, reader: FakeReader
) -> None:
    reader.plan_stages = stages
    job_id = worker.submit_plan("large.html")
    until(lambda: worker.job(job_id).message != "Working." and worker.job(job_id).state != "queued")
    worker.cancel(job_id)
    reader.step.release(2)
    view = ended(worker, job_id)
    assert (view.state, view.result) == ("cancelled", {"error": "OpeningStopped"})
    assert "stopped" in view.message


def test_counting_that_was_cancelled_shows_no_plan(worker: Worker, reader: FakeReader) -> None:
    reader.plan_stages = ["counting"]
    job_id = worker.submit_plan("large.html")
    until(lambda: worker.job(job_id).message == "counting.")
    worker.cancel(job_id)
    reader.step.release(1)
    assert ended(worker, job_id).state == "cancelled"


def test_an_answer_stopped_while_the_model_is_loaded_was_stopped(
    worker: Worker, reader: FakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_book(worker, reader)
    loading = threading.Event()

    def reopen(session_id: str, **how: Any) -> Any:
        loading.set()
        reader.step.acquire()
        how["on_progress"]("load", 0, 0)

    monkeypatch.setattr(reader, "reopen", reopen)
    job_id = worker.submit_question(SESSION, "Who?")
    assert loading.wait(60)
    worker.cancel(job_id)
    reader.step.release()
    assert ended(worker, job_id).state == "cancelled"
    assert worker.messages(SESSION)[1].state == "stopped"


def test_a_question_stopped_while_it_waits_is_stopped(worker: Worker, reader: FakeReader) -> None:
    read_book(worker, reader)
    first = worker.submit_question(SESSION, "Who ran?")
    second = worker.submit_question(SESSION, "Where?")
    worker.cancel(second)
    assert worker.job(second).state == "cancelled"
    assert [m.state for m in worker.messages(SESSION)] == ["done", "pending", "done", "stopped"]
    reader.step.release(3)
    ended(worker, first)
    assert [m.state for m in worker.messages(SESSION)] == ["done", "done", "done", "stopped"]


def test_what_the_reader_announces_goes_with_the_job(worker: Worker, reader: FakeReader) -> None:
    worker.hear("Nobody asked for anything yet.")
    reader.announces = ["The checkpoint is dropped.", "Fewer threads are used."]
    reader.announce = worker.hear
    job_id = worker.submit_ingest("book.txt")
    reader.step.release()
    until(lambda: worker.job(job_id).done == 1)
    told = "The checkpoint is dropped. Fewer threads are used."
    assert worker.job(job_id).message == f"Reading. {told}"
    reader.step.release(2)
    view = ended(worker, job_id)
    assert view.message == "Read." and view.result["told"] == told
    reader.announces = []
    reader.step.release(3)
    assert ended(worker, worker.submit_ingest("book.txt")).result["told"] == ""


def test_a_stopped_reading_is_cancelled_and_can_be_read_on(
    worker: Worker, reader: FakeReader
) -> None:
    job_id = worker.submit_ingest("book.txt")
    reader.step.release()
    until(lambda: worker.job(job_id).done == 1)
    worker.cancel(job_id)
    reader.step.release()
    view = ended(worker, job_id)
    assert view.state == "cancelled" and "checkpoint" in view.message
    reader.step.release(3)
    assert ended(worker, worker.submit_reopen(SESSION)).state == "done"


def test_a_refusal_is_a_sentence_with_its_class(worker: Worker) -> None:
    view = ended(worker, worker.submit_ingest("secret.pdf"))
    assert view.state == "failed" and view.message == (
        "It is protected. Give the password with --password."
    )
    assert view.result == {"error": "PasswordRequired"}


def test_a_fault_goes_to_the_log_and_the_worker_lives_on(
    worker: Worker, reader: FakeReader, caplog: pytest.LogCaptureFixture
) -> None:
    reader.fails = ZeroDivisionError("odd")
    view = ended(worker, worker.submit_ingest("book.txt"))
    assert view.state == "failed" and "log" in view.message
    reader.fails = None
    assert ended(worker, worker.submit_plan("book.txt")).result["n_tokens"] == 9


def test_a_failed_answer_says_why(worker: Worker, reader: FakeReader) -> None:
    read_book(worker, reader)
    reader.fails = MemoryError()
    reader.step.release()
    assert ended(worker, worker.submit_question(SESSION, "Who?")).state == "failed"
    answer = worker.messages(SESSION)[1]
    assert answer.state == "failed" and "memory" in answer.details["problem"]
    assert answer.details["error"] == "MemoryError"


def test_questions_need_a_session(worker: Worker) -> None:
    with pytest.raises(NoSuchSession):
        worker.submit_question("feedbeef", "Who?")


def test_closing_leaves_interrupted_jobs_that_a_new_program_finds(
    worker: Worker, reader: FakeReader
) -> None:
    running, waiting = worker.submit_ingest("a.txt"), worker.submit_ingest("b.txt")
    reader.step.release()
    until(lambda: worker.job(running).done == 1)
    closer = threading.Thread(target=worker.close)
    closer.start()
    until(lambda: worker._closing)
    reader.step.release()
    closer.join(60)
    library = Library(data_paths())
    later = Worker(FakeReader(library))
    assert {later.job(job).state for job in (running, waiting)} == {"interrupted"}
    assert later.sessions()[0].state == "reading"
    later.close()
    library.close()


def test_a_question_that_waits_while_the_desk_is_closed_was_stopped(
    worker: Worker, reader: FakeReader
) -> None:
    read_book(worker, reader)
    first = worker.submit_question(SESSION, "Who ran?")
    worker.submit_question(SESSION, "Where?")
    reader.step.release()
    until(lambda: worker.job(first).text == "The ")
    closer = threading.Thread(target=worker.close)
    closer.start()
    until(lambda: worker._closing)
    reader.step.release()
    closer.join(60)
    answers = [m for m in worker.messages(SESSION) if m.role == "assistant"]
    assert [(m.text, m.state) for m in answers] == [("The wolf", "stopped"), ("", "stopped")]


def test_a_question_of_a_program_that_was_killed_was_stopped(
    worker: Worker, reader: FakeReader
) -> None:
    read_book(worker, reader)
    job_id = worker.submit_question(SESSION, "Who ran?")
    until(lambda: worker.job(job_id).state == "running")
    asked_elsewhere = worker.library.add_question(SESSION, "Asked on the command line?")[1]
    library = Library(data_paths())
    JobStore(library.database).update(job_id, owner="999999:1.00")
    Worker(FakeReader(library)).close()
    states = {m.id: m.state for m in library.messages(SESSION) if m.role == "assistant"}
    assert states.pop(asked_elsewhere) == "pending"
    assert list(states.values()) == ["stopped"]
    library.close()


def test_deleting_stops_what_runs_on_the_session(worker: Worker, reader: FakeReader) -> None:
    read_book(worker, reader)
    job_id = worker.submit_question(SESSION, "Who?")
    until(lambda: worker.job(job_id).state == "running")
    deleter = threading.Thread(target=worker.delete_session, args=(SESSION,))
    deleter.start()
    until(lambda: worker._live[job_id].stop.is_set())
    reader.step.release()
    deleter.join(60)
    assert worker.sessions() == [] and worker.messages(SESSION) == []
    assert worker.job(job_id) is None and worker.jobs(active=True) == []
