"""The library keeps what it is given, from any thread, and forgets on request."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from pathlib import Path

import pytest
from sqlite_utils import Database

from app.errors import NoSuchSession, SessionBusy
from app.jobs import JobStore
from app.library import Library
from app.migrations import migrations
from app.paths import DataPaths, data_paths
from app.store import original_file, safe_name, stored_document, sweep
from engine import files
from tests.unit.app.made_documents import document_of

SESSION = "ab" * 12


@pytest.fixture
def library(data_dir: Path):
    library = Library(data_paths())
    yield library
    library.close()


def add_session(library: Library, session_id: str = SESSION, *texts: str) -> str:
    """A document with one session."""
    document = document_of(*(texts or ("The wolf ran.\n", "The bird sang.\n")))
    library.add_document(document, "book.txt", needs_password=False)
    library.start_session(
        session_id,
        document=document.sha256,
        pages=(1, len(document.pages)),
        model="tiny",
        settings={"budget_tokens": 64},
        n_tokens=12,
    )
    return document.sha256


def test_the_schema_grows_from_the_first_version_with_its_data(tmp_path: Path) -> None:
    db = Database(tmp_path / "library.db")
    migrations.apply(db, stop_before="002_page_search")
    db.table("documents").insert(
        {
            "sha256": "d",
            "title": "Old",
            "kind": "txt",
            "page_kind": "page",
            "file_name": "old.txt",
            "n_pages": 1,
            "n_chars": 4,
            "parser_version": "0",
            "created_at": "then",
        }
    )
    db.table("pages").insert({"document": "d", "number": 7, "label": "vii", "text": "grey wolf"})
    db.execute(
        "INSERT INTO sessions (id, document, first_page, last_page, model, settings, state,"
        " n_tokens, created_at, used_at) VALUES ('s', 'd', 1, 1, 'm', '{}', 'ready', 3, 'a', 'b')"
    )
    db.close()
    library = Library(DataPaths(tmp_path, tmp_path / "models"))
    assert library.search_pages("d", '"wolf"') == [7]
    record = library.session("s")
    assert (record.title, record.state, record.unverified) == ("Old", "ready", False)
    assert library.database.get().table("jobs").exists()
    library.close()


def test_every_step_is_recorded_once_and_a_second_start_changes_nothing(data_dir: Path) -> None:
    Library(data_paths()).close()
    library = Library(data_paths())
    db = library.database.get()
    names = [m.name for m in migrations.applied(db)]
    assert names == sorted(names) and len(names) == 6 and not migrations.pending(db)
    assert db.journal_mode == "wal"
    library.close()


def test_programs_that_start_together_make_one_library(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    together = threading.Barrier(6)

    def start(folder: Path) -> None:
        together.wait()
        try:
            Library(DataPaths(folder, tmp_path / "models")).close()
        except (sqlite3.Error, OSError) as error:
            failures.append(error)

    for n in range(5):
        threads = [threading.Thread(target=start, args=(tmp_path / str(n),)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_only_the_owner_may_read_the_library(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for folder in (tmp_path / "new", tmp_path):
        folder.mkdir(exist_ok=True)
        if folder == tmp_path:
            (folder / "library.db").touch(mode=0o644)  # of an earlier version
        library = Library(DataPaths(folder, tmp_path / "models"))
        add_session(library)
        files = list(folder.glob("library.db*"))
        assert len(files) == 3 and {file.stat().st_mode & 0o777 for file in files} == {0o600}
        library.close()


def test_foreign_keys_are_enforced(library: Library) -> None:
    message = {"session": "no such session", "role": "user", "text": "Who?", "state": "done"}
    with pytest.raises(sqlite3.IntegrityError):
        library._insert_message(message)


def test_a_question_on_a_deleted_session_is_refused_by_name(library: Library) -> None:
    add_session(library)
    library.add_question(SESSION, "Who?")
    library.delete_session(SESSION)
    with pytest.raises(NoSuchSession, match=f"{SESSION} was deleted"):
        library.add_question(SESSION, "Who?")


def test_pages_are_found_by_their_words_best_first(library: Library) -> None:
    sha256 = add_session(library, SESSION, "A wolf. A wolf.\n", "A bird.\n", "A wolf, a bird.\n")
    assert library.search_pages(sha256, '"wolf"') == [1, 3]
    assert library.search_pages(sha256, '"wolf" OR "bird"', limit=1) != []
    assert library.search_pages("other", '"wolf"') == []


def test_a_newer_parse_replaces_the_older_pages(library: Library) -> None:
    document = document_of("old words\n")
    library.add_document(document, "a.txt", needs_password=False)
    newer = document_of("old words\n")
    library.add_document(newer, "a.txt", needs_password=True)
    assert library.search_pages(document.sha256, '"words"') == [1]
    record = library.document(document.sha256)
    assert record is not None and record.needs_password


def test_the_question_is_there_before_the_answer(library: Library) -> None:
    add_session(library)
    question, answer = library.add_question(SESSION, "Who ran?")
    first, second = library.messages(SESSION)
    assert (first.id, first.role, first.text, first.state) == (question, "user", "Who ran?", "done")
    assert (second.id, second.state, second.reply_to) == (answer, "pending", question)
    library.set_answer(answer, "The wolf.", "done", {"citations": [{"page": 1}]})
    assert library.messages(SESSION)[1].citations == [{"page": 1}]
    assert library.session(SESSION).n_questions == 1


def test_a_session_is_known_by_the_beginning_of_its_id(library: Library) -> None:
    add_session(library)
    add_session(library, "abac" * 6)
    assert library.session("abab").id == SESSION
    for name in ("ab", "aba", "nosuch", "abcd", "%", ""):
        with pytest.raises(NoSuchSession):
            library.session(name)


def test_reading_again_keeps_the_conversation(library: Library) -> None:
    sha256 = add_session(library)
    library.add_question(SESSION, "Who ran?")
    library.mark_damaged(SESSION, "layers-000.safetensors fails its checksum")
    assert library.session(SESSION).state == "damaged"
    add_session(library)
    record = library.session(SESSION)
    assert (record.state, record.problem, record.n_questions) == ("reading", "", 1)
    assert record.document == sha256


def test_deleting_the_last_session_takes_the_document_with_it(library: Library) -> None:
    sha256 = add_session(library)
    other = "cd" * 12
    add_session(library, other)
    folder = library.paths.document(sha256)
    for path in (folder, library.paths.snapshot(SESSION), library.paths.partial(SESSION)):
        path.mkdir()
    (library.paths.snapshots / f".{SESSION}.lock").touch()  # left by a killed reading
    library.delete_session(SESSION)
    assert folder.exists()
    assert list(library.paths.snapshots.iterdir()) == []
    library.delete_session(other)
    assert not folder.exists() and library.document(sha256) is None
    raw = b"".join(p.read_bytes() for p in library.paths.root.glob("library.db*"))
    assert b"The bird sang" not in raw


def raw_library(library: Library) -> bytes:
    """All that can be read of the library's file, and of those that SQLite lays beside it."""
    return b"".join(p.read_bytes() for p in sorted(library.paths.root.glob("library.db*")))


def add_ended_jobs(library: Library, sha256: str) -> JobStore:
    """What the desk leaves of a document: a locked one's two plans, a reading, and another's."""
    store = JobStore(library.database)
    states = [
        store.add("plan", {"path": "/uploads/gazette.txt"}),
        store.add("plan", {"path": "/uploads/gazette.txt"}),
        store.add("ingest", {"path": "/uploads/gazette.txt"}, SESSION),
        store.add("ingest", {"session": SESSION}, SESSION),
    ]
    for job_id in states:
        store.update(job_id, state="done")
    store.update(states[0], state="failed", message="gazette.txt is locked.")
    store.update(states[1], result={"sha256": sha256, "title": "The gazette"})
    other = store.add("plan", {"path": "/uploads/almanac.txt"})
    store.update(other, state="done", result={"sha256": "f" * 64, "title": "The almanac"})
    store.update(store.add("ingest", {"path": "/uploads/ledger.txt"}), state="failed")
    store.add("plan", {"path": "/uploads/gazette.txt"})  # waits; it may be wanted again
    return store


def test_nothing_of_a_deleted_document_can_be_read_in_the_file(library: Library) -> None:
    sha256 = add_session(library, SESSION, "Quenelle biscuit.\n", "The bird sang.\n" * 500)
    _, answer = library.add_question(SESSION, "Who sold the compass? " * 300)
    library.set_answer(
        answer, "The chandler. " * 300, "done", {"citations": [{"quote": "zephyr " * 900}]}
    )
    store = add_ended_jobs(library, sha256)
    assert b"compass" in raw_library(library) and b"gazette" in raw_library(library)
    waiting = [view.id for view in store.all(active=True)]
    library.delete_session(SESSION)
    assert [view.id for view in store.all(active=True)] == waiting
    kept = {view.payload["path"] for view in store.all() if not view.active}
    assert kept == {"/uploads/ledger.txt"}, "and the almanac is no document of the library"
    for job_id in waiting:
        store.update(job_id, payload="{}")
    library._scrub()
    raw = raw_library(library).lower()
    for word in (b"quenelle", b"bird", b"compass", b"chandler", b"zephyr", b"gazette"):
        assert word not in raw, word


def test_a_log_that_another_program_is_reading_is_emptied_later_and_said(
    library: Library, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite does not refuse to empty its log beside a reader: it only says that it did not."""
    add_session(library)
    library.add_question(SESSION, "Who sold the compass?")
    other = sqlite3.connect(library.paths.database)
    other.execute("BEGIN")
    assert other.execute("SELECT count(*) FROM sessions").fetchone() == (1,)
    library.database.get().execute("PRAGMA busy_timeout = 10")
    library.delete_session(SESSION)
    assert "not tidied up" in caplog.text and "wal_checkpoint" in caplog.text
    other.close()
    add_session(library)
    library.delete_session(SESSION)
    assert b"compass" not in raw_library(library)


def test_jobs_of_another_reading_stay_while_the_document_does(library: Library) -> None:
    sha256 = add_session(library)
    other = "cd" * 12
    add_session(library, other)
    store = JobStore(library.database)
    jobs = {name: store.add("ingest", {"path": f"/{name}.txt"}, name) for name in (SESSION, other)}
    jobs["plan"] = store.add("plan", {"path": "/plan.txt"})
    for job_id in jobs.values():
        store.update(job_id, state="done", result={"sha256": sha256})
    library.delete_session(SESSION)
    assert {view.id for view in store.all()} == {jobs[other], jobs["plan"]}


def test_what_earlier_versions_left_of_deleted_documents_goes(tmp_path: Path) -> None:
    db = Database(tmp_path / "library.db")
    migrations.apply(db, stop_before="005_no_text_in_jobs")
    row = {"owner": "1:1.00", "created_at": "a", "updated_at": "a", "state": "done"}
    db.table("documents").insert(
        {
            "sha256": "d", "title": "Kept", "kind": "txt", "page_kind": "page",
            "file_name": "kept.txt", "n_pages": 1, "n_chars": 4, "parser_version": "0",
            "created_at": "then",
        }
    )  # fmt: skip
    db.execute(
        "INSERT INTO sessions (id, document, first_page, last_page, model, settings, state,"
        " n_tokens, created_at, used_at) VALUES ('s', 'd', 1, 1, 'm', '{}', 'ready', 3, 'a', 'b')"
    )
    question = {"question": "Who sold it?", "question_id": 1, "answer_id": 2}
    db.table("jobs").insert_all(
        [
            row
            | {
                "id": "q", "kind": "question", "session": "s", "payload": json.dumps(question),
                "text": "Ann.", "result": json.dumps({"text": "Ann.", "answer_id": 2}),
            },
            row | {"id": "gone", "kind": "ingest", "session": "deleted", "payload": "{}",
                   "text": "", "result": "{}"},
            row | {"id": "plan", "kind": "plan", "session": None, "payload": '{"path": "/a"}',
                   "text": "", "result": '{"sha256": "deleted"}'},
            row | {"id": "kept", "kind": "plan", "session": None, "payload": '{"path": "/b"}',
                   "text": "", "result": '{"sha256": "d"}'},
        ]
    )  # fmt: skip
    db.close()
    library = Library(DataPaths(tmp_path, tmp_path / "models"))
    store = JobStore(library.database)
    assert {view.id for view in store.all()} == {"q", "kept"}
    view = store.get("q")
    assert view is not None
    assert (view.text, view.payload) == ("", {"question_id": 1, "answer_id": 2})
    assert view.result == {"question_id": 1, "answer_id": 2}
    library.close()


def test_an_answer_that_was_pending_when_it_was_exported_was_stopped(library: Library) -> None:
    add_session(library)
    library.add_question(SESSION, "Who ran?")
    record, messages = library.session(SESSION), library.messages(SESSION)
    library.import_session(record, messages)
    assert [m.state for m in library.messages(SESSION)] == ["done", "stopped"]


def test_answers_that_a_closed_desk_left_waiting_were_stopped(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path, tmp_path / "models")
    library = Library(paths)
    add_session(library)
    answers = [library.add_question(SESSION, f"{n}?")[1] for n in range(3)]
    store = JobStore(library.database)
    jobs = [store.add("question", {"answer_id": answer}, SESSION) for answer in answers[:2]]
    store.update(jobs[0], state="interrupted")
    db = library.database.get()
    db.execute("DELETE FROM _sqlite_migrations WHERE name = '006_no_answers_left_waiting'")
    library.close()
    library = Library(paths)
    states = [m.state for m in library.messages(SESSION) if m.role == "assistant"]
    assert states == ["stopped", "pending", "pending"]
    library.close()


def test_a_session_that_another_program_reads_is_not_deleted(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SILENT_WAIT_S", 0.01)
    sha256 = add_session(library)
    folders = [library.paths.document(sha256), library.paths.partial(SESSION)]
    for folder in folders:
        folder.mkdir()
    busy = pytest.raises(SessionBusy, match="is being read by another program")
    with files.locked(library.paths.snapshots, SESSION), busy:
        library.delete_session(SESSION)
    assert library.session(SESSION) and all(folder.is_dir() for folder in folders)
    library.delete_session(SESSION)
    assert not library.sessions() and not any(folder.exists() for folder in folders)


def test_a_session_is_deleted_although_there_is_no_room_to_tidy_up(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = add_session(library)
    library.paths.snapshot(SESSION).mkdir()
    execute = Database.execute

    def full(db: Database, sql: str, *parameters: object) -> sqlite3.Cursor:
        if "VACUUM" in sql:
            raise sqlite3.OperationalError("database or disk is full")
        if sql.startswith("DELETE"):
            assert not library.paths.snapshot(SESSION).exists()  # its room comes first
        return execute(db, sql, *parameters)

    monkeypatch.setattr(Database, "execute", full)
    library.delete_session(SESSION)
    assert library.sessions() == [] and library.document(sha256) is None
    raw = b"".join(p.read_bytes() for p in library.paths.root.glob("library.db*"))
    assert b"The bird sang" not in raw


def test_what_is_used_or_answered_after_its_deletion_stays_deleted(library: Library) -> None:
    add_session(library)
    _, answer = library.add_question(SESSION, "Who?")
    library.delete_session(SESSION)
    library.touch_session(SESSION)
    library.set_answer(answer, "The wolf.", "done", {})
    assert library.sessions() == [] and library.messages(SESSION) == []


def test_threads_write_at_the_same_time(library: Library) -> None:
    add_session(library)
    failures: list[BaseException] = []

    def ask(number: int) -> None:
        try:
            for n in range(20):
                _, answer = library.add_question(SESSION, f"{number}-{n}")
                library.set_answer(answer, "x", "done", {})
        except sqlite3.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(library.messages(SESSION)) == 160


def test_a_write_that_looks_first_is_not_overtaken(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread writes between the look and the write; SQLite refuses that without waiting."""
    add_session(library)
    look = library._has_session
    other = threading.Thread(target=library.add_question, args=(SESSION, "Who?"))

    def slow_look(session_id: str) -> bool:
        found = look(session_id)
        if threading.current_thread() is not other and not other.ident:
            other.start()
            other.join(0.5)
        return found

    monkeypatch.setattr(library, "_has_session", slow_look)
    second = "cd" * 12
    add_session(library, second)
    other.join()
    assert library.session(second).state == "reading"
    assert [m.text for m in library.messages(SESSION)] == ["Who?", ""]


def test_jobs_of_a_dead_program_are_interrupted_and_ours_are_not(library: Library) -> None:
    store = JobStore(library.database)
    ours, theirs = store.add("ingest", {"path": "a"}), store.add("ingest", {"path": "b"})
    store.update(theirs, owner="999999:1.00", state="running")
    assert store.interrupt_orphans() == [theirs]
    states = {view.id: view.state for view in store.all()}
    assert states == {ours: "queued", theirs: "interrupted"}
    assert [view.id for view in store.all(active=True)] == [ours]


def test_leftovers_of_dead_processes_are_swept_and_living_ones_left(library: Library) -> None:
    paths = library.paths
    dead, alive = paths.snapshots / "x.tmp-999999", paths.snapshots / f"y.tmp-{os.getpid()}"
    kept = paths.snapshots / SESSION
    for folder in (dead, alive, kept):
        folder.mkdir()
    (paths.root / "formats.json.999999.tmp").write_text("{")
    assert sorted(sweep(paths)) == ["formats.json.999999.tmp", "x.tmp-999999"]
    assert alive.exists() and kept.exists() and not dead.exists()


def test_two_sweeps_do_not_stumble_over_each_other(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program removes each leftover between our look and our own removal."""
    paths = library.paths
    folder, file = paths.snapshots / "x.tmp-999999", paths.root / "x.999999.tmp"
    folder.mkdir()
    file.touch()

    def swept_elsewhere(pid: int) -> bool:
        folder.rmdir() if folder.exists() else file.unlink(missing_ok=True)
        return False

    monkeypatch.setattr("psutil.pid_exists", swept_elsewhere)
    sweep(paths)
    assert not folder.exists() and not file.exists()


def test_a_document_that_is_gone_is_reported_as_such(library: Library) -> None:
    from ingest import BrokenDocument, DocumentMissing

    with pytest.raises(BrokenDocument):
        stored_document(library.paths, "e" * 64)
    with pytest.raises(DocumentMissing):
        original_file(library.paths, "e" * 64)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\books\\a b.pdf", "a b.pdf"),
        ("a:b?.pdf", "a_b_.pdf"),
        ("", "document"),
        ("...", "document"),
        ("x" * 300 + ".pdf", "x" * 100 + ".pdf"),
        ("Krieg & Frieden \u2013 1.epub", "Krieg _ Frieden _ 1.epub"),
    ],
)
def test_file_names_are_made_harmless(name: str, safe: str) -> None:
    assert safe_name(name) == safe
    assert safe_name(safe) == safe


def test_doubts_of_a_document_are_told_for_its_session(library: Library) -> None:
    from dataclasses import replace
    from unittest.mock import MagicMock

    from app.worker import Worker
    from ingest.document import DocumentWarning

    document = replace(
        document_of("Xq zvbk.\n"),
        warnings=(
            DocumentWarning("running_lines_removed", "Running headers were left out."),
            DocumentWarning("strange_letters", "The letters of page 1 look like no words.", 1),
            DocumentWarning("repaired", "The file was damaged and has been repaired."),
            DocumentWarning("bytes_undecoded", "3 bytes could not be decoded as UTF-8."),
        ),
    )
    library.add_document(document, "book.pdf", needs_password=False)
    library.start_session(
        SESSION, document=document.sha256, pages=(1, 1), model="tiny", settings={}, n_tokens=4
    )
    worker = Worker(MagicMock(library=library))
    assert worker.doubts(library.session(SESSION)) == [
        "The letters of page 1 look like no words.",
        "The file was damaged and has been repaired.",
        "3 bytes could not be decoded as UTF-8.",
    ]
    worker.close()


def test_every_doubtful_code_is_one_that_a_reader_gives() -> None:
    import re

    import ingest
    from app.records import DOUBTFUL

    root = Path(ingest.__file__).parent
    texts = [file.read_text(encoding="utf-8") for file in root.rglob("*.py")]
    given = {code for text in texts for code in re.findall(r'"([a-z_]+)"', text)}
    assert given >= DOUBTFUL
