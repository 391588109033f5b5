"""A document that was refused does not stay; one that somebody still looks at does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from app.paths import DataPaths
from app.service import Reader
from app.store import original_file
from app.unread import PATIENCE_S, sweep_unread
from engine.errors import NotEnoughMemory, PrefillStopped, UnknownModel
from tests.unit.app.tiny_reader import tiny_reader


def no_such_model(*_: object, **__: object) -> None:
    raise UnknownModel("No model is called nosuch.", "")


def text_in(paths: DataPaths) -> bool:
    """Whether the book's words can be found anywhere in the data directory."""
    kept = [file for file in paths.root.rglob("*") if file.is_file()]
    return any(b"wolves" in file.read_bytes() for file in kept)


def test_the_text_of_a_refused_document_does_not_stay(
    reader: Reader, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.loader.load_model", no_such_model)
    for refused in (reader.open, reader.plan):
        with pytest.raises(UnknownModel):
            refused(book)
        assert reader.library.unread_documents() == [] and not text_in(reader.paths)
        assert list(reader.paths.documents.iterdir()) == []


def test_a_refusal_takes_nothing_that_somebody_else_has_opened(
    reader: Reader, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny_reader()
    looking: list[str] = []

    def opened_elsewhere(device: str) -> int:
        if not looking:
            looking.append("at the plan")
            other.plan(book)
        return 2**10

    monkeypatch.setattr("app.plan.available_bytes", opened_elsewhere)
    with pytest.raises(NotEnoughMemory):
        reader.open(book)
    assert len(reader.library.unread_documents()) == 1
    other.library.close()


def test_a_document_that_is_being_read_stays(reader: Reader, book: Path) -> None:
    with pytest.raises(PrefillStopped):
        reader.open(book, stop=lambda: True)
    (record,) = reader.library.sessions()
    assert original_file(reader.paths, record.document).read_bytes() == book.read_bytes()


def test_a_document_that_nobody_reads_is_swept_a_day_later(reader: Reader, book: Path) -> None:
    sha256 = reader.plan(book).sha256
    folder = reader.paths.document(sha256)
    stray = reader.paths.document("ab" * 32)
    stray.mkdir()
    assert sweep_unread(reader.library) == []
    for old in (folder, stray):
        os.utime(old, (time.time() - PATIENCE_S - 60,) * 2)
    reader.plan(book)  # looked at again
    assert sweep_unread(reader.library) == []
    os.utime(folder, (time.time() - PATIENCE_S - 60,) * 2)
    assert sweep_unread(reader.library) == [sha256]
    assert not text_in(reader.paths) and not folder.exists()
    assert stray.exists()  # doctor names it


def test_a_session_keeps_its_document_however_old(reader: Reader, book: Path) -> None:
    record = reader.open(book).record
    os.utime(reader.paths.document(record.document), (0, 0))
    assert sweep_unread(reader.library) == []
    assert original_file(reader.paths, record.document).exists()
