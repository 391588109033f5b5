"""Word files: headings by inheritance and outline level, equations, ruby."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ingest_files import codes, read_here

from ingest.document import Document

WORD = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
MATH = 'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'


def saved(word: Any, tmp_path: Path) -> Document:
    path = tmp_path / "b.docx"
    word.save(str(path))
    return read_here(path)


def with_paragraphs(tmp_path: Path, *paragraphs: str) -> Document:
    import docx
    from docx.oxml import parse_xml

    word = docx.Document()
    for index, xml in enumerate(paragraphs):
        word.element.body.insert(index, parse_xml(f"<w:p {WORD} {MATH}>{xml}</w:p>"))
    return saved(word, tmp_path)


def test_a_style_based_on_a_heading_is_one(tmp_path: Path) -> None:
    import docx
    from docx.enum.style import WD_STYLE_TYPE

    word = docx.Document()
    chapter = word.styles.add_style("My Chapter", WD_STYLE_TYPE.PARAGRAPH)
    chapter.base_style = word.styles["Heading 1"]
    special = word.styles.add_style("My Special Chapter", WD_STYLE_TYPE.PARAGRAPH)
    special.base_style = chapter
    for index, style in enumerate([chapter, special, chapter]):
        word.add_paragraph(f"Chapter {index}", style=style)
        word.add_paragraph(f"Text {index}.")
    document = saved(word, tmp_path)
    assert [page.label for page in document.pages] == ["Chapter 0", "Chapter 1", "Chapter 2"]
    assert [t.level for t in document.toc] == [1, 1, 1]


def test_styles_that_are_based_on_each_other_end(tmp_path: Path) -> None:
    import docx
    from docx.enum.style import WD_STYLE_TYPE

    word = docx.Document()
    one = word.styles.add_style("One", WD_STYLE_TYPE.PARAGRAPH)
    two = word.styles.add_style("Two", WD_STYLE_TYPE.PARAGRAPH)
    one.base_style, two.base_style = two, one
    word.add_paragraph("Text.", style=one)
    assert saved(word, tmp_path).toc == ()


@pytest.mark.parametrize(("value", "level"), [("0", 1), ("1", 2), ("9", 0), ("", 0), ("x", 0)])
def test_a_paragraph_with_an_outline_level_is_a_heading(
    tmp_path: Path, value: str, level: int
) -> None:
    heading = f'<w:pPr><w:outlineLvl w:val="{value}"/></w:pPr><w:r><w:t>Chapter</w:t></w:r>'
    document = with_paragraphs(tmp_path, heading, "<w:r><w:t>Text.</w:t></w:r>")
    assert [t.level for t in document.toc] == ([level] if level else [])
    assert document.text == "Chapter\n\nText."


def test_the_letters_of_equations_are_read_and_it_is_said(tmp_path: Path) -> None:
    equation = (
        "<w:r><w:t xml:space='preserve'>Energy is </w:t></w:r><m:oMath><m:r><m:t>E=m</m:t></m:r>"
        "<m:sSup><m:e><m:r><m:t>c</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup>"
        "</m:oMath><w:r><w:t>.</w:t></w:r>"
    )
    document = with_paragraphs(tmp_path, equation)
    assert document.text == "Energy is E=mc^2."
    assert "equations_in_line" in codes(document)


def test_digits_of_a_fraction_and_of_an_index_do_not_join(tmp_path: Path) -> None:
    def math(text: str) -> str:
        return f"<m:r><m:t>{text}</m:t></m:r>"

    fraction = f"<m:f><m:num>{math('n+1')}</m:num><m:den>{math('2')}</m:den></m:f>"
    index = f"<m:sSub><m:e>{math('x')}</m:e><m:sub>{math('12')}</m:sub></m:sSub>"
    document = with_paragraphs(tmp_path, f"<m:oMath>{index}{math('=')}{fraction}</m:oMath>")
    assert document.text == "x_12=(n+1)/2"


def test_the_reading_of_a_word_in_ruby_is_no_part_of_it(tmp_path: Path) -> None:
    ruby = (
        "<w:r><w:ruby><w:rt><w:r><w:t>とうきょう</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>東京</w:t>"
        "</w:r></w:rubyBase></w:ruby></w:r><w:r><w:t>は</w:t></w:r>"
    )
    assert with_paragraphs(tmp_path, ruby).text == "東京は"
