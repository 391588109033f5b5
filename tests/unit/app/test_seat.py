"""A tab and what other tabs and jobs still need; and what it is told of a reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.desk import cards
from app.desk.seat import Seat, Seats
from app.desk.uploads import Uploads
from app.records import JobView, MessageRecord, SessionRecord


def job(name: str, kind: str, state: str, path: Path, **values: Any) -> JobView:
    """A job on a dropped file."""
    given = {"done": 0, "total": 0, "tok_s": 0.0, "eta_s": None, "text": "", "message": ""}
    result = values.pop("result", {})
    return JobView(
        id=name, kind=kind, state=state, result=result, session_id=None,
        payload={"path": str(path)}, **(given | values),
    )  # fmt: skip


class FewJobs:
    """A worker that only knows what the test tells it."""

    def __init__(self, *jobs: JobView) -> None:
        self.known = list(jobs)
        self.read: list[SessionRecord] = []

    def job(self, job_id: str) -> JobView | None:
        return next((found for found in self.known if found.id == job_id), None)

    def jobs(self, active: bool = False) -> Sequence[JobView]:
        return [found for found in self.known if found.active or not active]

    def sessions(self) -> Sequence[SessionRecord]:
        return self.read

    def messages(self, session_id: str) -> Sequence[MessageRecord]:
        return ()

    def doubts(self, session: SessionRecord) -> Sequence[str]:
        return ()


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    made = Uploads(tmp_path)
    made.clear()
    return made


@pytest.fixture
def dropped(uploads: Uploads) -> Path:
    file = uploads.folder / "abc" / "book.txt"
    file.parent.mkdir()
    file.write_text("The wolf ran.")
    return file


def seats_of(worker: Any, uploads: Uploads) -> Seats:
    seats = Seats(lambda: Seat(worker, uploads, others=lambda: seats.all()))
    return seats


def test_a_tab_that_leaves_takes_its_file_along(uploads: Uploads, dropped: Path) -> None:
    seat = seats_of(FewJobs(job("p", "plan", "done", dropped)), uploads).of("one")
    seat.place = "plan:p"
    seat.home()
    assert not dropped.exists()


@pytest.mark.parametrize("place", ["plan:p", "plan:q"])
def test_a_file_stays_while_another_tab_shows_it(
    place: str, uploads: Uploads, dropped: Path
) -> None:
    worker = FewJobs(job("p", "plan", "done", dropped), job("q", "plan", "done", dropped))
    seats = seats_of(worker, uploads)
    one, two = seats.of("one"), seats.of("two")
    one.place, two.place = "plan:p", place
    one.home()
    assert dropped.exists()
    two.home()
    assert not dropped.exists()


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_file_stays_while_a_job_needs_it(state: str, uploads: Uploads, dropped: Path) -> None:
    worker = FewJobs(job("p", "plan", "done", dropped), job("r", "ingest", state, dropped))
    seat = seats_of(worker, uploads).of("one")
    seat.place = "plan:p"
    seat.home()
    assert dropped.exists()


TOLD = "Used is session ab12, which read this in other bits. Add --reread to read it anew."


def a_session() -> SessionRecord:
    return SessionRecord(
        id="s1", document="d", first_page=1, last_page=1, model="tiny", settings={}, state="ready",
        problem="", n_tokens=9, kept_tokens=9.0, kept_fraction=1.0, nbytes=1, snapshot_bytes=1,
        positions="original", prefill_s=1.0, prefill_tok_s=9.0, created_at="", used_at="",
        title="Book", n_pages=1,
    )  # fmt: skip


@pytest.mark.parametrize(("reused", "told"), [(True, True), (False, False)])
def test_what_was_said_at_a_return_stands_over_the_conversation(
    reused: bool, told: bool, uploads: Uploads, dropped: Path
) -> None:
    result = {"session_id": "s1", "reused": reused, "told": TOLD}
    worker = FewJobs(job("r", "ingest", "done", dropped, result=result))
    worker.read = [a_session()]
    seat = seats_of(worker, uploads).of("one")
    seat.place = "read:r"
    picture = seat.look()
    assert picture.place == "session:s1"
    assert ("Used is session ab12" in picture.notice) is told
    assert "--reread" not in picture.notice and "lr-error" not in picture.notice
    seat.act(seat.keep)
    assert "Used is session" not in seat.look().notice


def test_what_is_said_while_reading_stands_under_the_bar(dropped: Path) -> None:
    told = f"Reading. {TOLD} Fewer <threads> are used."
    reading = job("r", "ingest", "running", dropped, done=5, total=10, message=told)
    card = cards.progress_card(reading, "Book")
    assert '<p class="lr-line">Reading</p>' in card and 'aria-label="Reading"' in card
    assert "Used is session ab12" in card and "Fewer &lt;threads&gt; are used." in card
    assert "--reread" not in card


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("Fetching the model. Resumed.", "29 MiB of 57 MiB"),
        ("Reading.", "30,000,000 of 60,000,000"),
    ],
)
def test_bytes_are_told_from_tokens_by_what_is_being_done(
    message: str, words: str, dropped: Path
) -> None:
    running = job("r", "ingest", "running", dropped, done=30_000_000, total=60_000_000)
    assert words in cards.progress_words(replace(running, message=message))


class Recorder(FewJobs):
    """A worker that takes what it is given, and notes it."""

    def __init__(self, *jobs: JobView) -> None:
        super().__init__(*jobs)
        self.asked: list[str] = []
        self.deleted: list[str] = []
        self.said: list[MessageRecord] = []

    def messages(self, session_id: str) -> Sequence[MessageRecord]:
        return self.said

    def _take(self, kind: str, **payload: Any) -> str:
        view = job(f"j{len(self.known)}", kind, "running", Path("book.txt"))
        payload = {**view.payload, **payload} if kind == "plan" else payload or view.payload
        session = "s1" if "session" in payload or kind == "question" else None
        self.known.append(replace(view, payload=payload, session_id=session))
        return view.id

    def submit_plan(self, path: Path, *how: Any) -> str:
        return self._take("plan", path=str(path))

    def submit_ingest(self, path: Path, *how: Any, **more: Any) -> str:
        return self._take("ingest", path=str(path), **more)

    def submit_reopen(self, session_id: str) -> str:
        return self._take("ingest", session=session_id)

    def submit_question(self, session_id: str, text: str) -> str:
        self.asked.append(text)
        self.said += [
            MessageRecord(1, session_id, "user", text, "done", None, {}, ""),
            MessageRecord(2, session_id, "assistant", "", "pending", 1, {}, ""),
        ]
        return self._take("question", answer_id=2)

    def cancel(self, job_id: str) -> None:
        """Nothing runs."""

    def delete_session(self, session_id: str) -> None:
        self.deleted.append(session_id)
        self.read = []


PLANNED = {"n_pages": 9, "n_tokens": 9, "sha256": "d", "session_id": "s1"}


def acted(seat: Seat, *clicks: tuple[Any, ...]) -> None:
    for action, *given in clicks:
        seat.act(action, *given)


@pytest.mark.parametrize("action", ["read", "replan"])
def test_a_second_click_on_a_plan_is_no_fault(action: str, uploads: Uploads, dropped: Path) -> None:
    worker = Recorder(job("p", "plan", "done", dropped, result=PLANNED))
    seat = seats_of(worker, uploads).of("one")
    seat.place = "plan:p"
    acted(seat, *[(getattr(seat, action), "1", "9")] * 2)
    assert seat.note == "" and len(worker.known) == 2


def test_a_second_click_on_open_with_a_password_is_no_fault(
    uploads: Uploads, dropped: Path
) -> None:
    locked = {"error": "PasswordRequired"}
    worker = Recorder(job("p", "plan", "failed", dropped, result=locked))
    seat = seats_of(worker, uploads).of("one")
    seat.place = "plan:p"
    acted(seat, (seat.unlock, "sesame"), (seat.unlock, "sesame"), (seat.unlock, ""))
    assert seat.note == "" and len(worker.known) == 2


def test_a_second_click_on_continue_reading_is_no_fault(uploads: Uploads) -> None:
    worker = Recorder()
    worker.read = [replace(a_session(), state="reading")]
    seat = seats_of(worker, uploads).of("one")
    seat.place = "session:s1"
    acted(seat, (seat.resume,), (seat.resume,))
    assert seat.note == "" and len(worker.known) == 1
    seat.place = "session:s1"  # from another tab
    acted(seat, (seat.resume,))
    assert seat.note == "" and len(worker.known) == 1


def test_a_second_click_on_delete_is_no_fault(uploads: Uploads) -> None:
    worker = Recorder()
    worker.read = [a_session()]
    seat = seats_of(worker, uploads).of("one")
    seat.place = "session:s1"
    acted(seat, (seat.ask_delete,), (seat.delete,), (seat.delete,))
    assert seat.note == "" and worker.deleted == ["s1"]


def test_a_question_that_is_clicked_twice_is_asked_once_and_others_wait(uploads: Uploads) -> None:
    worker = Recorder()
    worker.read = [a_session()]
    seat = seats_of(worker, uploads).of("one")
    seat.place = "session:s1"
    acted(seat, (seat.ask, "Who ran? "), (seat.ask, "Who ran? "))
    assert seat.note == "" and worker.asked == ["Who ran?"]
    acted(seat, (seat.ask, "Where?"))
    assert "One question at a time" in seat.note and worker.asked == ["Who ran?"]


@pytest.mark.parametrize(
    ("state", "said"), [("reading", "not been read to the end"), ("damaged", "layers-000")]
)
def test_enter_asks_nothing_where_nothing_can_be_asked(
    state: str, said: str, uploads: Uploads
) -> None:
    worker = Recorder()
    problem = "The file layers-000.safetensors fails its checksum."
    worker.read = [replace(a_session(), state=state, problem=problem)]
    seat = seats_of(worker, uploads).of("one")
    seat.place = "session:s1"
    acted(seat, (seat.ask, "Who ran?"))
    assert worker.asked == [] and said in seat.note, "and what was typed stays"


def test_a_session_that_another_tab_deleted_is_told_as_such(uploads: Uploads) -> None:
    worker = Recorder()
    worker.read = [a_session()]
    seat = seats_of(worker, uploads).of("one")
    seat.place = "session:s1"
    assert seat.look().mode == "chat"
    worker.delete_session("s1")
    for _ in range(2):
        picture = seat.look()
        assert picture.place == "" and "no longer in the library" in picture.notice
    acted(seat, (seat.home,))
    assert seat.look().notice == ""


def test_a_question_on_a_session_that_another_tab_deleted_is_told_as_such(
    uploads: Uploads,
) -> None:
    seat = seats_of(Recorder(), uploads).of("one")
    seat.place = "session:s1"
    acted(seat, (seat.ask, "Who ran?"))
    picture = seat.look()
    assert picture.place == "" and "no longer in the library" in picture.notice


def test_a_plan_that_went_with_its_document_is_told_as_such(uploads: Uploads) -> None:
    seat = seats_of(Recorder(), uploads).of("one")
    seat.place = "plan:gone"
    picture = seat.look()
    assert picture.place == "" and "no longer in the library" in picture.notice
