"""What is no document, or too much of one, is refused by name, with a way on."""

from __future__ import annotations

import io
import pickle
import random
import zipfile
from pathlib import Path

import pytest
from ingest_files import make_epub, make_pdf, read_here

from ingest import (
    BrokenDocument,
    DocumentMissing,
    DocumentTooLarge,
    EmptyDocument,
    IngestError,
    NotADocument,
    ParseLimits,
    UnsupportedDocument,
    errors,
    open_document,
)
from ingest.detect import detect


def zip_bytes(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


NOISE = random.Random(7).randbytes(5000)
ODT = {"mimetype": b"application/vnd.oasis.opendocument.text", "content.xml": b"<x/>"}


@pytest.mark.parametrize(
    ("name", "data", "error", "words"),
    [
        ("a.pdf", b"", EmptyDocument, "0 bytes"),
        ("a.epub", b"", EmptyDocument, "0 bytes"),
        ("a.txt", b" \n\n ", EmptyDocument, "blank"),
        ("a.pdf", NOISE, NotADocument, "named .pdf"),
        ("a", NOISE, NotADocument, "no known kind"),
        ("a.txt", NOISE, NotADocument, "no known kind"),
        ("a.docx", NOISE, BrokenDocument, "Word"),
        ("a.epub", b"PK\x03\x04" + NOISE, BrokenDocument, "EPUB"),
        ("a.pdf", b"MZ" + NOISE, NotADocument, "Windows program"),
        ("a", b"\x7fELF" + NOISE, NotADocument, "Linux program"),
        ("a.zip", zip_bytes({"x.txt": b"hello"}), NotADocument, "ZIP archive"),
        ("a.epub", zip_bytes({"x.txt": b"hello"}), BrokenDocument, "named .epub"),
        ("a.xlsx", zip_bytes({"xl/workbook.xml": b"<x/>"}), UnsupportedDocument, "Excel"),
        ("a.odt", zip_bytes(ODT), UnsupportedDocument, "OpenDocument"),
        ("a.epub", zip_bytes({"../../etc/x": b"y"}), BrokenDocument, "leaves it"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + NOISE, UnsupportedDocument, "old office"),
        ("a.rtf", b"{\\rtf1 hello}", UnsupportedDocument, "RTF"),
        ("a.png", b"\x89PNG\r\n" + NOISE, UnsupportedDocument, "picture"),
        ("a.pdf", b"only some words, no PDF", NotADocument, "holds no PDF"),
        ("a.html", b"<html><body><script>x()</script></body></html>", EmptyDocument, "script"),
    ],
)
def test_refusals_name_the_cause_and_the_next_step(
    tmp_path: Path, name: str, data: bytes, error: type[IngestError], words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(error, match=words) as caught:
        read_here(path)
    assert caught.value.cause and caught.value.next_step


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DocumentMissing):
        read_here(tmp_path / "nowhere.pdf")
    with pytest.raises(NotADocument, match="folder"):
        read_here(tmp_path)


def test_the_content_wins_over_a_wrong_name(tmp_path: Path) -> None:
    pdf = make_pdf(tmp_path / "book.epub", [["Text of a PDF."]])
    assert read_here(pdf).kind == "pdf"
    epub = make_epub(tmp_path / "book.txt", [("One", "<p>Text.</p>")])
    assert read_here(epub).kind == "epub"


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(DocumentTooLarge, match="more than"):
        read_here(path, limits=ParseLimits(max_file_bytes=4999))


def test_a_zip_bomb_is_refused_by_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.epub"
    zeros = b"\0" * (40 * 1024 * 1024)
    path.write_bytes(zip_bytes({"mimetype": b"application/epub+zip", "a.xhtml": zeros}))
    with pytest.raises(DocumentTooLarge, match="unpack"):
        detect(path, ParseLimits())
    with pytest.raises(DocumentTooLarge, match="unpacks to"):
        detect(path, ParseLimits(max_expanded_bytes=1024 * 1024))


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "many.epub"
    path.write_bytes(zip_bytes({f"f{i}": b"" for i in range(20_001)}))
    with pytest.raises(DocumentTooLarge, match="entries"):
        detect(path, ParseLimits())


@pytest.mark.parametrize("kind", ["docx", "epub"])
def test_damaged_archives_are_broken_and_never_our_fault(tmp_path: Path, kind: str) -> None:
    whole = tmp_path / f"whole.{kind}"
    if kind == "epub":
        make_epub(whole, [(f"Ch {i}", f"<p>Text {i}.</p>") for i in range(6)])
    else:
        import docx

        word = docx.Document()
        word.add_paragraph("Some text.")
        word.save(str(whole))
    data = whole.read_bytes()
    path = tmp_path / f"hurt.{kind}"
    n_refused = 0
    for seed in range(25):
        draw = random.Random(seed)
        hurt = bytearray(data)
        start = draw.randrange(len(hurt))
        del hurt[start : start + draw.randrange(1, 60)]
        for _ in range(5):
            hurt[draw.randrange(len(hurt))] = draw.randrange(256)
        path.write_bytes(hurt)
        try:
            document = read_here(path)  # it is read or refused: both are right, no third thing is
        except IngestError as refusal:
            n_refused += 1
            assert refusal.cause and refusal.next_step
        else:
            assert document.text
    assert n_refused


def test_errors_travel_as_dictionaries_and_as_pickles() -> None:
    error = errors.ScannedDocument("No text.", "Run OCR.")
    back = errors.error_from_dict(errors.error_to_dict(error))
    assert type(back) is errors.ScannedDocument
    assert (back.cause, back.next_step) == ("No text.", "Run OCR.")
    assert isinstance(errors.error_from_dict({"type": "Nonsense"}), errors.ParserCrashed)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.cause) == (errors.ScannedDocument, "No text.")


def test_a_name_that_begins_with_a_tilde_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~$draft.txt").write_text("Words of a draft.", encoding="utf-8")
    assert open_document("~$draft.txt").text == "Words of a draft."
    with pytest.raises(DocumentMissing):
        open_document("~nobody-of-this-name/a.txt")
