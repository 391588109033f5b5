"""A reader with a tiny model, and a book, for the tests of reading; others have their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.service import Reader
from tests.unit.app.tiny_reader import BOOK, tiny_reader, use_tiny_model


@pytest.fixture
def announced() -> list[str]:
    """What the reader said."""
    return []


@pytest.fixture
def reader(announced: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """A reader over a library of its own."""
    use_tiny_model(monkeypatch)
    reader = tiny_reader(announced)
    yield reader
    reader.library.close()


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A text file."""
    path = tmp_path / "book.txt"
    path.write_text(BOOK, encoding="utf-8")
    return path


@pytest.fixture
def typed_book(book: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same file as the command line gets it, where every model is the tiny one."""
    use_tiny_model(monkeypatch)
    return str(book)
