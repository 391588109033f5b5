"""What can be no document is refused before it is copied, and its size is bounded anyhow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app.errors import OpeningStopped
from app.library import Library
from app.paths import data_paths
from app.store import keep_document
from ingest import DocumentTooLarge, EmptyDocument, NotADocument
from tests.unit.app.tiny_reader import BOOK


@pytest.fixture
def library() -> Iterator[Library]:
    library = Library(data_paths())
    yield library
    library.close()


def test_what_is_no_file_is_not_copied(library: Library, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.txt").touch()
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(NotADocument):
            keep_document(library, path)
    with pytest.raises(EmptyDocument):
        keep_document(library, tmp_path / "empty.txt")
    assert list(library.paths.documents.iterdir()) == []


def test_too_large_a_file_is_not_copied(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large.txt"
    with large.open("wb") as file:
        file.truncate(2**30)
    monkeypatch.setattr("app.store._copy", None)
    with pytest.raises(DocumentTooLarge):
        keep_document(library, large)


STREAM = """
import dataclasses, sys
from pathlib import Path
import ingest
from app.library import Library
from app.paths import data_paths
from app.store import keep_document

most = int(sys.argv[1])
limits = ingest.ParseLimits
ingest.ParseLimits = lambda: dataclasses.replace(limits(), max_file_bytes=most)
library = Library(data_paths())
try:
    print(keep_document(library, Path("/dev/stdin")).document.title)
except ingest.IngestError as error:
    print(type(error).__name__)
print(len(list(library.paths.documents.iterdir())))
"""


@pytest.mark.parametrize(
    ("most", "said"), [(2**20, ["stdin", "1"]), (99, ["DocumentTooLarge", "0"])]
)
def test_a_document_comes_through_a_pipe_as_far_as_the_limit(most: int, said: list[str]) -> None:
    found = subprocess.run(
        [sys.executable, "-c", STREAM, str(most)],
        input=BOOK.encode(),
        capture_output=True,
        cwd=Path(__file__).parents[3],
        check=True,
    )
    assert found.stdout.decode().split() == said


def test_the_advice_for_too_many_pages_can_be_followed(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many(*_: object, **__: object) -> None:
        raise DocumentTooLarge("The document has 6,000 pages.", "Open pages 1-5000.")

    monkeypatch.setattr("ingest.open_document", too_many)
    book = tmp_path / "book.txt"
    book.write_text(BOOK)
    with pytest.raises(DocumentTooLarge, match=r"6,000 pages\. Split the file"):
        keep_document(library, book)


def test_parsing_ends_when_whoever_looks_at_it_says_so(library: Library, book: Path) -> None:
    def look() -> None:
        raise OpeningStopped

    with pytest.raises(OpeningStopped):
        keep_document(library, book, while_parsing=look)
    assert list(library.paths.documents.iterdir()) == [] and not library.unread_documents()
    commands = [child.cmdline() for child in psutil.Process().children()]
    assert not any("ingest.worker" in command for command in commands)
    assert keep_document(library, book).parsed_now
