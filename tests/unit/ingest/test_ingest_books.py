"""EPUB, FB2, MOBI, XPS, DOCX, HTML, Markdown and text: nothing is lost, sections are labelled."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import pytest
from ingest_files import codes, make_epub, make_fb2, make_mobi, make_xps, read_here

from ingest import BrokenDocument, EmptyDocument, PagesNotFound, UnsupportedDocument

LONG = "A sentence of middling length stands here to fill the page. " * 8


def test_epub_chapters_are_pages_with_titles(tmp_path: Path) -> None:
    chapters = [
        ("The Otter", "<h1>The Otter</h1><p>Otters e\ufb03ciently swim.</p><p>They fish.</p>"),
        ("The Heron", "<h1>The Heron</h1><p>Herons wait.</p>"),
    ]
    document = read_here(make_epub(tmp_path / "b.epub", chapters))
    assert (document.kind, document.page_kind) == ("epub", "chapter")
    assert document.title == "A Made Book"
    assert [page.label for page in document.pages] == ["The Otter", "The Heron"]
    assert document.page_at(document.text.index("Herons wait")).number == 2
    assert document.span_at(document.text.index("They fish")).chapter == "The Otter"
    assert "efficiently" in document.text
    assert [(t.title, t.page) for t in document.toc] == [("The Otter", 1), ("The Heron", 2)]


def test_long_epub_chapters_are_cut_at_paragraphs(tmp_path: Path) -> None:
    body = "".join(f"<p>Paragraph {i}. {LONG}</p>" for i in range(60))
    document = read_here(make_epub(tmp_path / "b.epub", [("Long", body)]))
    assert len(document.pages) > 5
    assert all(page.label.startswith("Long ¶ ") for page in document.pages)
    assert all(f"Paragraph {i}." in document.text for i in range(60))
    assert {span.chapter for span in document.spans} == {"Long"}


def test_epub_paragraphs_are_not_broken_where_the_layout_broke_them(tmp_path: Path) -> None:
    document = read_here(make_epub(tmp_path / "b.epub", [("One", f"<p>{LONG}well-known</p>")]))
    assert document.text == f"{LONG}well-known"


def test_an_epub_page_range_counts_chapters(tmp_path: Path) -> None:
    path = make_epub(tmp_path / "b.epub", [(f"Ch {i}", f"<p>Text {i}.</p>") for i in range(5)])
    document = read_here(path, pages=(2, 3))
    assert [(page.number, page.label) for page in document.pages] == [(2, "Ch 1"), (3, "Ch 2")]
    with pytest.raises(PagesNotFound):
        read_here(path, pages=(6, 7))


def test_an_epub_without_text_is_empty(tmp_path: Path) -> None:
    with pytest.raises(EmptyDocument):
        read_here(make_epub(tmp_path / "b.epub", [("x", "<p> </p>")]))


def test_a_copy_protected_epub_says_so(tmp_path: Path) -> None:
    path = make_epub(tmp_path / "b.epub", [("One", "<p>Text.</p>")])
    with zipfile.ZipFile(path, "a") as book:
        book.writestr(
            "META-INF/encryption.xml",
            '<encryption><EncryptedData><EncryptionMethod Algorithm="http://www.w3.org/2001/04/'
            'xmlenc#aes128-cbc"/></EncryptedData></encryption>',
        )
    with pytest.raises(UnsupportedDocument, match="DRM"):
        read_here(path)


def test_fb2_and_mobi_and_xps_are_read(tmp_path: Path) -> None:
    fb2 = read_here(make_fb2(tmp_path / "b.fb2"))
    assert fb2.kind == "fb2"
    assert "otters" in fb2.text and "herons" in fb2.text
    html = "<html><body><h1>One</h1><p>The mobile book speaks of mice.</p></body></html>"
    mobi = read_here(make_mobi(tmp_path / "b.mobi", html))
    assert mobi.kind == "mobi"
    assert "speaks of mice" in mobi.text
    xps = read_here(make_xps(tmp_path / "b.xps", ["The fixed page", "speaks of geese."]))
    assert (xps.kind, xps.page_kind) == ("xps", "page")
    assert "speaks of geese" in xps.text


def test_markdown_is_kept_to_the_letter(tmp_path: Path) -> None:
    source = (
        "# The Book\n\nIntro with *stars* and a [link](http://x).\n\n## One\nText of one.\n\n"
        "```\n## no heading\n\n# nor this\n```\n\n### Deeper\n\nMore.\n\nTwo\n---\n\n- a\n- b\n"
    )
    path = tmp_path / "b.md"
    path.write_bytes(source.replace("\n", "\r\n").encode())
    document = read_here(path)
    assert document.title == "The Book"
    assert [page.label for page in document.pages] == ["The Book", "One", "Two"]
    assert "".join(document.text.split()) == "".join(source.split())
    assert "```\n## no heading\n\n# nor this\n```" in document.text
    assert [(t.level, t.title) for t in document.toc] == [
        (1, "The Book"),
        (2, "One"),
        (3, "Deeper"),
        (2, "Two"),
    ]


def test_code_in_one_line_of_markdown_opens_no_fence(tmp_path: Path) -> None:
    path = tmp_path / "b.md"
    path.write_text("# Tool\n\n```npm install x```\n\n## One\n\na\n\n## Two\n\nb\n", "utf-8")
    assert [page.label for page in read_here(path).pages] == ["Tool", "One", "Two"]


@pytest.mark.parametrize("name", ["b.md", "b.txt", "b.html"])
def test_text_about_pdf_is_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("<html><p>A file begins with the header %PDF-1.7 and ends with %%EOF.", "utf-8")
    document = read_here(path)
    assert document.kind in ("markdown", "txt", "html")
    assert "the header %PDF-1.7 and" in document.text


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("b.txt", f"start\n\n{' ' * 60_000}\n\nend\nmore"),
        ("b.txt", f"start\n{chr(9) * 60_000}\n \n\nend\nmore"),
        ("b.txt", f"start\n\nend{' ' * 60_000}more"),
        ("b.md", f"# a{' ' * 60_000}b"),
        ("b.md", f"start\n\n{'- ' * 30_000}b"),
        ("b.html", f"<p>start{' ' * 60_000}<pre>{' ' * 60_000}end</pre>"),
    ],
)
def test_long_runs_of_blanks_cost_no_time(tmp_path: Path, name: str, source: str) -> None:
    path = tmp_path / name
    path.write_text(source, encoding="utf-8")
    started = time.process_time()
    document = read_here(path)
    assert time.process_time() - started < 2
    assert (
        document.text.split()
        == source.replace("<p>", "").replace("<pre>", " ").replace("</pre>", "").split()
    )


def test_the_indent_after_a_blank_line_stays(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    path.write_text("start\n \n\n\n    indented\n  less\n\nend", encoding="utf-8")
    assert read_here(path).text == "start\n\n    indented\n  less\n\nend"


def test_text_without_headings_is_cut_at_paragraph_ends(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i}. {LONG}".strip() for i in range(30)]
    path = tmp_path / "b.txt"
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    document = read_here(path)
    assert document.text == "\n\n".join(paragraphs)
    assert document.pages[0].label == "¶ 1-7"
    assert document.pages[-1].label.endswith("-30")
    assert all(2000 < page.end - page.start < 5000 for page in document.pages)


def test_text_with_chapter_lines_is_cut_there(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    path.write_text("A Tale\n\nCHAPTER I\n\nOnce.\n\nCHAPTER II. The End\n\nGone.\n", "utf-8")
    document = read_here(path)
    assert [page.label for page in document.pages] == [
        "Beginning",
        "CHAPTER I",
        "CHAPTER II. The End",
    ]


def test_one_endless_paragraph_is_cut_at_its_line_ends(tmp_path: Path) -> None:
    lines = [f"{i} some line of a log file that goes on" for i in range(2000)]
    path = tmp_path / "b.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    document = read_here(path)
    assert document.text == "\n".join(lines)
    assert len(document.pages) > 10


SENTENCES = " ".join(f"Speaker {i} says what is to be said, and no more." for i in range(2000))
JAPANESE = "".join(f"これは第{i}の文章です。" for i in range(2000))
WORDS = " ".join(f"word{i}" for i in range(9000))


@pytest.mark.parametrize(
    ("name", "source", "text", "end"),
    [
        ("b.txt", SENTENCES, SENTENCES, "."),
        ("b.txt", JAPANESE, JAPANESE, "。"),
        ("b.txt", WORDS, WORDS, ""),
        ("b.txt", "x" * 50_000, "x" * 50_000, ""),
        ("b.md", f"# A\n\n{SENTENCES}", f"# A\n\n{SENTENCES}", "."),
        ("b.html", f"<p>{SENTENCES}", SENTENCES, "."),
        (
            "b.html",
            "<br><br>".join([LONG.strip()] * 100),
            "\n\n".join([LONG.strip()] * 100),
            ".",
        ),
    ],
)
def test_a_paragraph_without_end_becomes_pages_of_the_usual_size(
    tmp_path: Path, name: str, source: str, text: str, end: str
) -> None:
    path = tmp_path / name
    path.write_text(source, encoding="utf-8")
    document = read_here(path)
    assert document.text == text
    assert all(1000 < page.end - page.start <= 6002 for page in document.pages)
    assert all(document.page_text(page).rstrip().endswith(end) for page in document.pages)


def test_a_chapter_of_one_paragraph_is_found_by_its_contents(tmp_path: Path) -> None:
    path = make_epub(tmp_path / "b.epub", [("A", f"<p>{SENTENCES}</p>"), ("B", "<p>End.</p>")])
    document = read_here(path)
    assert document.text == f"{SENTENCES}\n\nEnd."
    assert len(document.pages) > 20
    assert [(t.title, t.page) for t in document.toc] == [("A", 1), ("B", len(document.pages))]


@pytest.mark.parametrize(
    ("encoding", "text", "guessed"),
    [
        ("utf-8-sig", "Gr\u00fc\u00dfe aus K\u00f6ln", False),
        ("utf-16", "Gr\u00fc\u00dfe aus K\u00f6ln", False),
        ("cp1252", "Gr\u00fc\u00dfe aus K\u00f6ln und noch viel mehr gew\u00f6hnlicher Text", True),
        ("cp1251", "\u043c\u043d\u043e\u0433\u043e \u0441\u043b\u043e\u0432 \u043e " * 20, True),
        ("shift_jis", "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002" * 20, True),
        ("utf-16-le", "plain words without a mark " * 5, True),
    ],
)
def test_encodings(tmp_path: Path, encoding: str, text: str, guessed: bool) -> None:
    path = tmp_path / "b.txt"
    path.write_bytes(text.encode(encoding))
    document = read_here(path)
    assert document.text.strip() == text.strip()
    assert ("encoding_guessed" in codes(document)) is guessed


def test_html_keeps_text_rows_and_sections(tmp_path: Path) -> None:
    path = tmp_path / "b.html"
    path.write_text(
        "<!DOCTYPE html><html><head><title>A Page</title><style>p{}</style></head><body>"
        "<h1>Top</h1><p>Some <b>bold</b>\n text &amp; more.<br>New line.</p><script>evil()</script>"
        "<table><tr><th>Town<th>People</tr><tr><td>Ulm</td><td>126000</td></tr></table>"
        "<h2>Next</h2><ul><li>one<li>two</ul><pre>a\n  b</pre>"
        "<div style='display: none'>secret <b>orders</b></div><p>End.</p></body></html>",
        encoding="utf-8",
    )
    document = read_here(path)
    assert document.title == "A Page"
    assert [page.label for page in document.pages] == ["Top", "Next"]
    assert "Some bold text & more.\nNew line." in document.text
    assert "Town\tPeople\nUlm\t126000" in document.text
    assert "- one\n- two" in document.text
    assert "a\n  b" in document.text
    assert "evil" not in document.text and "secret" not in document.text
    assert document.text.endswith("End.")
    assert "hidden_left_out" in codes(document)


def test_docx_body_tables_boxes_and_headings(tmp_path: Path) -> None:
    import docx

    word = docx.Document()
    word.core_properties.title = "Word Title"
    word.add_heading("First", level=1)
    word.add_paragraph("A paragraph with \ufb01ne text.")
    word.add_paragraph("an item", style="List Bullet")
    table = word.add_table(rows=2, cols=2)
    for index, words in enumerate(["Town", "People", "Ulm", "126000"]):
        table.cell(index // 2, index % 2).text = words
    word.add_heading("Second", level=2)
    word.add_paragraph("The end.")
    path = tmp_path / "b.docx"
    word.save(str(path))
    document = read_here(path)
    assert (document.kind, document.title) == ("docx", "Word Title")
    assert [page.label for page in document.pages] == ["First", "Second"]
    assert "fine text" in document.text
    assert "Town\tPeople\nUlm\t126000" in document.text
    assert document.text.index("126000") < document.text.index("The end.")
    assert [(t.level, t.title, t.page) for t in document.toc] == [(1, "First", 1), (2, "Second", 2)]


def test_a_docx_with_ruined_xml_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "b.docx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<w:document")
    with pytest.raises(BrokenDocument, match="Word file"):
        read_here(path)


def test_a_docx_without_text_is_empty(tmp_path: Path) -> None:
    import docx

    path = tmp_path / "b.docx"
    docx.Document().save(str(path))
    with pytest.raises(EmptyDocument):
        read_here(path)


def test_json_is_read_as_text_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text('{"question": "why?", "answers": ["because"]}', encoding="utf-8")
    document = read_here(path)
    assert document.kind == "txt"
    assert '"why?"' in document.text
    assert "read_as_text" in codes(document)


def test_docx_revisions_boxes_and_notes(tmp_path: Path) -> None:
    import docx
    from docx.oxml import parse_xml

    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    document = docx.Document()
    body = document.element.body
    body.insert(
        0,
        parse_xml(
            f'<w:p xmlns:w="{word}"><w:r><w:t xml:space="preserve">The mill </w:t></w:r>'
            "<w:ins><w:r><w:t>still </w:t></w:r></w:ins><w:del><w:r><w:delText>never </w:delText>"
            "</w:r></w:del><w:r><w:t>turns.</w:t></w:r><w:r><w:pict><w:txbxContent><w:p><w:r>"
            "<w:t>Words in a box.</w:t></w:r></w:p></w:txbxContent></w:pict></w:r></w:p>"
        ),
    )
    body.insert(
        1,
        parse_xml(
            f'<w:sdt xmlns:w="{word}"><w:sdtContent><w:p><w:r><w:t>In a control.</w:t></w:r></w:p>'
            "</w:sdtContent></w:sdt>"
        ),
    )
    path = tmp_path / "r.docx"
    document.save(str(path))
    read = read_here(path)
    assert read.text == "The mill still turns.\n\nWords in a box.\n\nIn a control."
    assert "tracked_changes" in codes(read)


LONG_LINE = "result = compute(" + "first_argument=1, " * 40 + "'END OF LINE')"


def wide_body(n: int) -> str:
    """Code, unbroken lines, a word of n letters and a table that no page is wide enough for."""
    return (
        f"<pre>def f(x):\n    {LONG_LINE}</pre>"
        f"<p style='white-space:nowrap'>{'word ' * (n // 5)}ENDNOWRAP</p>"
        "<table><tr>" + "".join(f"<td>column{i}value</td>" for i in range(30)) + "</tr></table>"
        f"<p>http://example.com/{'a' * n}END</p>"
    )


def test_no_line_of_a_book_is_cut_at_the_edge_of_the_layout(tmp_path: Path) -> None:
    epub = read_here(make_epub(tmp_path / "b.epub", [("One", wide_body(6000))])).text
    mobi = read_here(make_mobi(tmp_path / "b.mobi", f"<html><body>{wide_body(400)}</body></html>"))
    assert "column29value" in epub
    for text in (epub, mobi.text):
        assert LONG_LINE in text
        assert "word ENDNOWRAP" in text
        assert "aaaEND" in text


@pytest.mark.parametrize("style", ["margin:0;text-indent:1em", "margin:0", ""])
def test_paragraphs_of_an_epub_stay_apart_and_lines_of_verse_too(
    tmp_path: Path, style: str
) -> None:
    prose = [f"Paragraph {i}. {LONG.strip()}" for i in range(3)]
    verse = "Roses are red,<br/>Violets are blue,<br/>Sugar is sweet,<br/>And so are you."
    paragraphs = "".join(f'<p style="{style}">{part}</p>' for part in prose)
    body = f"{paragraphs}<h2>Verse</h2><p>{verse}</p>"
    document = read_here(make_epub(tmp_path / "b.epub", [("One", body)]))
    assert document.text == "\n\n".join([*prose, "Verse", verse.replace("<br/>", "\n")])


def test_a_paragraph_of_an_epub_longer_than_a_laid_out_line_is_one(tmp_path: Path) -> None:
    prose = " ".join(f"Sentence {i} of a paragraph without an end." for i in range(500))
    narrow = "All of this stands in a box that is narrow, and it has no lines of its own."
    body = f'<p>{prose}</p><p style="width:10em">{narrow}</p>'
    document = read_here(make_epub(tmp_path / "b.epub", [("One", body)]))
    assert " ".join(document.text.split("\n\n")) == f"{prose} {narrow}"


def test_hyphens_of_the_layout_are_no_part_of_a_book(tmp_path: Path) -> None:
    text = " ".join(["incomprehensible improvements everywhere"] * 12)
    body = f'<p style="hyphens:auto;text-align:center">{text}</p>'
    document = read_here(make_epub(tmp_path / "b.epub", [("One", body)]))
    assert document.text == text


def test_rows_of_a_table_in_an_epub_stay_whole(tmp_path: Path) -> None:
    cell = "The highest church of the world, and the place where Albert Einstein was born. " * 2
    body = (
        f"<table><tr><td>Ulm</td><td>{cell}</td><td>126000</td></tr>"
        "<tr><td>Bonn</td><td>Beethoven</td><td>330000</td></tr></table>"
    )
    document = read_here(make_epub(tmp_path / "b.epub", [("One", body)]))
    first, second = document.text.split("\n")[0], document.text.split("\n")[-1]
    assert " ".join(first.split()) == f"Ulm {cell}126000"
    assert " ".join(second.split()) == "Bonn Beethoven 330000"


def test_chapters_of_an_fb2_have_their_own_titles(tmp_path: Path) -> None:
    sections = "".join(
        f"<section><title><p>Chapter {i}</p></title>"
        + "".join(f"<p>In chapter {i} paragraph {k} tells it. {LONG}</p>" for k in range(20))
        + "</section>"
        for i in range(1, 4)
    )
    path = tmp_path / "b.fb2"
    path.write_text(
        '<?xml version="1.0" encoding="utf-8"?><FictionBook xmlns="http://www.gribuser.ru/xml/'
        f'fictionbook/2.0"><description/><body>{sections}</body></FictionBook>',
        encoding="utf-8",
    )
    document = read_here(path)
    for i in range(1, 4):
        for k in (0, 18, 19):
            found = document.page_at(document.text.index(f"In chapter {i} paragraph {k} "))
            assert found.label == f"Chapter {i}"
    assert [(t.title, t.page) for t in document.toc] == [(f"Chapter {i}", i) for i in (1, 2, 3)]


def test_a_book_without_contents_is_cut_at_its_headings(tmp_path: Path) -> None:
    chapters = (f"<h1>Chapter {i}</h1><p>Text {i}.</p>" for i in range(1, 4))
    html = f"<html><body>{''.join(chapters)}</body></html>"
    document = read_here(make_mobi(tmp_path / "b.mobi", html))
    assert [page.label for page in document.pages] == ["Chapter 1", "Chapter 2", "Chapter 3"]
    assert document.page_at(document.text.index("Text 3")).label == "Chapter 3"


def test_a_picture_page_does_not_give_its_name_to_the_next_chapter(tmp_path: Path) -> None:
    picture = '<p><img src="none.png"/></p>'
    chapters = [
        ("Cover", picture),
        ("Chapter 1", "<p>Text of one.</p>"),
        ("Part Two", picture),
        ("Chapter 2", "<p>Text of two.</p>"),
    ]
    document = read_here(make_epub(tmp_path / "b.epub", chapters))
    assert [page.label for page in document.pages] == ["Chapter 1", "Chapter 2"]


def test_numeric_references_of_windows_letters_are_read_in_an_epub(tmp_path: Path) -> None:
    body = "<p>boiler sop&#151;wan grade, don&#146;t</p>"
    document = read_here(make_epub(tmp_path / "b.epub", [("One", body)]))
    assert document.text == "boiler sop\u2014wan grade, don\u2019t"
