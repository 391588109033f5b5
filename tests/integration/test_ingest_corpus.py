"""Real and hostile files: each gives a Document or an IngestError, in time, and nothing else.

48 files of the shared folder, drawn with a fixed seed from every subfolder; the passwords that are
known; and what was found by reading the results of six files with one's own eyes.
"""

from __future__ import annotations

import csv
import os
import random
from pathlib import Path

import pytest

from ingest import (
    Document,
    IngestError,
    ParseLimits,
    PasswordRequired,
    ScannedDocument,
    WrongPassword,
    open_document,
)

SEED = 20250
N_FILES = 48
LIMIT_S = 60.0
PATIENT = ParseLimits(timeout_s=240)  # the tests measure processor time, see reading_cpu_s
_NAMED = os.environ.get("LONGREAD_SHARED")
SHARED = Path(_NAMED) if _NAMED else Path(__file__).resolve().parents[2].parent / "shared" / "data"
_SLOW_BYTES = 2_000_000  # the few largest have a test of their own


def strata() -> dict[str, list[Path]]:
    """Files by folder; the broken EPUBs are a stratum of their own."""
    found: dict[str, list[Path]] = {}
    for path in sorted(SHARED.glob("pdfs/*/*.pdf")):
        found.setdefault(path.parent.name, []).append(path)
    for path in sorted(SHARED.glob("epubs/*.epub")):
        name = "epubcheck" if path.name.startswith("epubcheck") else "epubs"
        found.setdefault(name, []).append(path)
    found["books"] = sorted(SHARED.glob("books/*.md"))
    return {name: paths for name, paths in found.items() if paths}


def sample() -> list[Path]:
    """N_FILES files, round robin over the strata, the same ones on every machine."""
    draw = random.Random(SEED)
    queues = {}
    for name, paths in strata().items():
        small = [path for path in paths if path.stat().st_size < _SLOW_BYTES]
        queues[name] = draw.sample(small, len(small))
    chosen: list[Path] = []
    while len(chosen) < N_FILES and any(queues.values()):
        for queue in queues.values():
            if queue and len(chosen) < N_FILES:
                chosen.append(queue.pop())
    return chosen


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def passwords() -> list[tuple[str, str]]:
    table = SHARED / "pdfs" / "PASSWORDS.tsv"
    if not table.is_file():
        return []
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [(row["file"], row["password"]) for row in rows]


def read(path: Path) -> Document | IngestError:
    """The document, or the refusal; any other exception fails the test."""
    before = reading_cpu_s()
    try:
        outcome: Document | IngestError = open_document(path, limits=PATIENT)
    except IngestError as error:
        assert error.cause and error.next_step, "a refusal says why and what to do"
        outcome = error
    assert reading_cpu_s() - before < LIMIT_S
    return outcome


def reading_cpu_s() -> float:
    """Processor seconds of all finished workers: a busy machine stretches a clock, not these."""
    times = os.times()
    return times.children_user + times.children_system


def test_the_sample_covers_every_folder(shared_data: Path) -> None:
    chosen = sample()
    assert len(chosen) >= 40
    folders = {path.parent.name for path in chosen}
    assert folders == {path.parent.name for paths in strata().values() for path in paths}


@pytest.mark.parametrize("path", sample() or [None], ids=lambda p: name_of(p) if p else "absent")
def test_a_file_is_read_or_refused(path: Path | None, shared_data: Path) -> None:
    assert path is not None
    outcome = read(path)
    if isinstance(outcome, Document):
        outcome.check()
        assert outcome.text.strip()
        outcome.text.encode("utf-8")
        for span in outcome.spans[:: max(1, len(outcome.spans) // 50)]:
            assert outcome.page_at(span.start).number == span.page
        assert Document.from_json(outcome.to_json()) == outcome
    if path.parent.name == "scanned_notext":
        assert isinstance(outcome, ScannedDocument)
    if path.parent.name == "encrypted_password":
        assert isinstance(outcome, PasswordRequired)
    if path.parent.name in ("long", "multicol", "tables", "books", "encrypted_emptypass"):
        assert isinstance(outcome, Document)


@pytest.mark.parametrize(("name", "password"), passwords() or [("absent", "")])
def test_known_passwords_open_and_others_do_not(
    name: str, password: str, shared_data: Path
) -> None:
    path = shared_data / "pdfs" / name
    if not password:
        with pytest.raises(WrongPassword):
            open_document(path, "surely not this one", limits=PATIENT)
        return
    try:
        outcome: Document | IngestError = open_document(path, password, limits=PATIENT)
    except IngestError as error:
        outcome = error
    assert not isinstance(outcome, PasswordRequired | WrongPassword), str(outcome)


def test_json_lines_are_read_as_text(shared_data: Path) -> None:
    path = next(iter(sorted((shared_data / "qa").rglob("*.json"))))
    document = open_document(path, limits=PATIENT)
    assert document.kind == "txt"
    assert "read_as_text" in {warning.code for warning in document.warnings}


def test_two_columns_are_not_interleaved(shared_data: Path) -> None:
    document = open_document(
        shared_data / "pdfs/multicol/pdf.js__tracemonkey_freetext.pdf", limits=PATIENT
    )
    assert (
        "Since no concrete type information is available, traditional compilers need to emit "
        "generic code that can handle all possible type combinations at runtime." in document.text
    )
    assert "a na\u00efve implementation" in document.text
    first_page = document.page_text(document.pages[0])
    left = first_page.index("de facto standard for client-side web programming")
    assert left < first_page.index("Google Mail, Google Docs")


def test_a_long_manual_loses_its_headers_and_keeps_its_labels(shared_data: Path) -> None:
    path = shared_data / "pdfs/long/debian__debian-reference-en__debian-reference.en.pdf"
    before = reading_cpu_s()
    document = open_document(path, limits=PATIENT)
    assert reading_cpu_s() - before < 15
    assert len(document.pages) == 261
    labels = [page.label for page in document.pages]
    assert labels[1:4] == ["i", "ii", "iii"]
    by_label = {page.label: page for page in document.pages}
    body = document.page_text(by_label["72"])
    assert body.startswith("2.7.8 Automatic download and upgrade of packages")
    assert not body.rstrip().endswith("72")
    assert len(document.toc) > 400


def test_table_rows_are_kept_together(shared_data: Path) -> None:
    document = open_document(shared_data / "pdfs/tables/tabula-java__us-024.pdf", limits=PATIENT)
    assert "Midwest\t29,202\t1,063\t(4.2)" in document.text


def test_a_filled_form_field_is_read(shared_data: Path) -> None:
    document = open_document(shared_data / "pdfs/forms/PyMuPDF__widgettest.pdf", limits=PATIENT)
    assert "Times-Roman" in document.text


def test_an_epub_cites_chapters(shared_data: Path) -> None:
    path = shared_data / "epubs/se__jerome-k-jerome_three-men-in-a-boat.epub"
    document = open_document(path, limits=PATIENT)
    assert document.page_kind == "chapter"
    chapters = {span.chapter for span in document.spans}
    assert {"Preface", "I", "XIX"} <= chapters
    char = document.text.index("My toothbrush is a thing that haunts me")
    assert document.span_at(char).chapter == "IV"


def test_a_markdown_book_is_kept_to_the_letter(shared_data: Path) -> None:
    path = shared_data / "books" / "Henry_David_Thoreau_Walden.md"
    document = open_document(path, limits=PATIENT)
    source = path.read_text(encoding="utf-8")
    assert "".join(document.text.split()) == "".join(source.split())
    assert document.title == "Walden"
