"""Raised text: exponents and marks of notes change no number, in any kind of document."""

from __future__ import annotations

from pathlib import Path

import pytest
from ingest_files import make_epub, read_here

SHOWN = [
    ("10<sup>5</sup> cells per cm<sup>2</sup>", "10^5 cells per cm^2"),
    ("in 1905<sup>3</sup> and later.<sup>4,5</sup>", "in 1905[3] and later.[4,5]"),
    ("10<sup>-12</sup> and 10<sup>n</sup>", "10^-12 and 10^n"),
    ("x<sup>2</sup> + (a + b)<sup>2</sup>", "x^2 + (a + b)^2"),
    ("said so (in the morning)<sup>7</sup>", "said so (in the morning)[7]"),
    ("the word<sup>12</sup> stands", "the word[12] stands"),
    ("Ca<sup>2+</sup> and Na<sup>+</sup>", "Ca^2+ and Na^+"),
    ("the 19<sup>th</sup> of May", "the 19th of May"),
    ("cited<sup>[3]</sup> here", "cited[3] here"),
    ("3<sup>1</sup>/<sub>2</sub> miles", "3 1/2 miles"),
    ("<sup>1</sup> A note.", "1 A note."),
]


@pytest.mark.parametrize(("markup", "text"), SHOWN)
def test_raised_text_in_html(tmp_path: Path, markup: str, text: str) -> None:
    path = tmp_path / "b.html"
    path.write_text(f"<!DOCTYPE html><p>{markup}</p>", encoding="utf-8")
    assert read_here(path).text == text


@pytest.mark.parametrize(("markup", "text"), SHOWN)
def test_raised_text_in_an_epub(tmp_path: Path, markup: str, text: str) -> None:
    document = read_here(make_epub(tmp_path / "b.epub", [("One", f"<p>{markup}</p>")]))
    assert document.text == text


def test_raised_text_in_a_word_file(tmp_path: Path) -> None:
    import docx

    word = docx.Document()
    paragraph = word.add_paragraph("10")
    for text, is_raised in [("5", True), (" cells in 1905", False), ("3", True), (".", False)]:
        paragraph.add_run(text).font.superscript = is_raised or None
    path = tmp_path / "b.docx"
    word.save(str(path))
    assert read_here(path).text == "10^5 cells in 1905[3]."


def test_raised_text_that_is_left_open_ends_with_its_paragraph(tmp_path: Path) -> None:
    path = tmp_path / "b.html"
    path.write_text("<!DOCTYPE html><p>10<sup>5</p><p>The next.</p>", encoding="utf-8")
    assert read_here(path).text == "10^5\n\nThe next."
