"""`export` overwrites nothing unasked, and `import` tells of each file what became of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.cli import main
from app.errors import PortableFileBad, SessionBusy
from app.exporting import title_name
from app.importing import import_session
from app.library import Library
from app.paths import data_paths
from engine import files
from tests.unit.app.tiny_reader import BOOK, tiny_reader, use_tiny_model


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_tiny_model(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def session(tmp_path: Path) -> str:
    """The id of a session of the book."""
    book = tmp_path / "book.txt"
    book.write_text(BOOK[:600], encoding="utf-8")
    reader = tiny_reader()
    record = reader.open(book).record
    reader.library.close()
    return record.id


@pytest.fixture
def library() -> Iterator[Library]:
    library = Library(data_paths())
    yield library
    library.close()


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("TCP/IP Illustrated", "TCP_IP Illustrated"),
        ("Vol. 1. The Beginning", "Vol. 1. The Beginning"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("What?\n  Who: me", "What_ Who_ me"),
        ("...", "document"),
        ("", "document"),
        ("狼" * 100, "狼" * 50),
        ("a" * 149 + "狼", "a" * 149),
    ],
    ids=lambda text: text[:12],
)
def test_a_title_makes_a_file_name(title: str, name: str) -> None:
    assert title_name(title) == name


def test_a_file_that_was_not_named_is_not_overwritten(
    session: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", session]) == 0
    target = tmp_path / "book.longread"
    target.write_bytes(b"somebody's own")
    assert main(["export", session]) == 2
    assert "book.longread is there already" in capsys.readouterr().err
    assert target.read_bytes() == b"somebody's own"
    assert main(["export", session, str(target)]) == 0  # asked for by name
    assert target.stat().st_size > 1000


def test_a_place_where_no_file_can_be_is_said(
    session: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    before = set(tmp_path.iterdir())
    for target, said in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "x", "There is no folder"),
        (tmp_path / "book.txt" / "x", "There is no folder"),
        (pipe, "not an ordinary file"),
    ):
        assert main(["export", session, str(target)]) == 2
        assert said in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


def test_every_file_is_told_of_as_it_is_taken_in(
    session: str, tmp_path: Path, library: Library, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.longread", tmp_path / "bad.longread"
    assert main(["export", session, str(good)]) == 0
    bad.write_bytes(b"no archive")
    library.delete_session(session)
    capsys.readouterr()
    assert main(["import", str(bad), str(good), str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert out == f"{session}  book\n"
    assert "bad.longread" in err and f"{tmp_path} is a folder" in err
    library.delete_session(session)
    assert main(["import", "--json", str(bad), str(good)]) == 3
    assert [row["session"] for row in json.loads(capsys.readouterr().out)] == [session]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_called_what_it_is(
    make: Callable[[Path], None], tmp_path: Path, library: Library
) -> None:
    make(tmp_path / "odd")
    with pytest.raises(PortableFileBad, match=r"is (a folder|not an ordinary file)"):
        import_session(library, tmp_path / "odd")


def test_a_session_is_taken_in_after_the_library_was_moved_away(
    session: str, tmp_path: Path, data_dir: Path
) -> None:
    assert main(["export", session, "s.longread"]) == 0
    for file in data_dir.glob("library.db*"):
        file.rename(tmp_path / file.name)
    assert main(["import", "s.longread"]) == 0
    assert main(["ask", session, "-q", "Who?", "--max-new-tokens", "1", "--model", "tiny"]) == 0


def test_nothing_is_taken_in_while_another_program_reads_the_same(
    session: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SILENT_WAIT_S", 0.01)
    assert main(["export", session, "s.longread"]) == 0
    library.delete_session(session)
    with files.locked(library.paths.snapshots, session), pytest.raises(SessionBusy):
        import_session(library, Path("s.longread"))
    assert import_session(library, Path("s.longread")).id == session


def test_a_file_without_a_name_is_refused(session: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", session, ""])
    assert ended.value.code == 2 and not list(tmp_path.glob("*.longread"))


def test_a_session_that_is_named_twice_is_deleted_once(
    session: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["delete", session[:6], session, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"deleted": [session]}
