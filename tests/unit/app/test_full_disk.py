"""On a disk so full that the library cannot be opened, sessions can be deleted all the same."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from app.cli import main
from app.database import ThreadDatabase
from app.paths import data_paths
from engine import files
from tests.unit.app.tiny_reader import BOOK, tiny_reader, use_tiny_model


@pytest.fixture
def sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of two sessions on a disk that has no room for the library while both are on it."""
    use_tiny_model(monkeypatch)
    reader, ids = tiny_reader(), []
    for n in (400, 600):
        book = tmp_path / f"book{n}.txt"
        book.write_text(BOOK[:n], encoding="utf-8")
        ids.append(reader.open(book).record.id)
    reader.library.close()
    opened = ThreadDatabase.__init__

    def full(self: ThreadDatabase, path: Path) -> None:
        if all(data_paths().snapshot(name).exists() for name in ids):
            raise sqlite3.OperationalError("disk I/O error")
        opened(self, path)

    monkeypatch.setattr(ThreadDatabase, "__init__", full)
    return ids


def snapshots() -> list[str]:
    return sorted(folder.name for folder in data_paths().snapshots.iterdir())


def test_deleting_makes_the_room_that_it_needs(
    sessions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    gone, stays = sessions
    assert main(["delete", gone[:8]]) == 0
    assert f"Deleted {gone}: book400" in capsys.readouterr().out
    assert snapshots() == [stays]
    assert main(["sessions"]) == 0
    out = capsys.readouterr().out
    assert stays in out and gone not in out


@pytest.mark.parametrize("name", ["feedbeef", "", "../../documents", "z"])
def test_nothing_goes_where_one_of_the_names_is_nobodys(
    name: str, sessions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["delete", sessions[0], name]) == 5
    assert snapshots() == sorted(sessions) and "full" in capsys.readouterr().err


def test_what_another_program_reads_stays(
    sessions: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SILENT_WAIT_S", 0.01)
    with files.locked(data_paths().snapshots, sessions[0]):
        assert main(["delete", sessions[0]]) == 2
    assert "read by another program" in capsys.readouterr().err
    assert snapshots() == sorted(sessions)


def test_the_ids_are_said_to_be_found_without_the_library(
    sessions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sessions"]) == 5
    err = capsys.readouterr().err
    assert "snapshots" in err and "`delete" in err
