"""PDF: order, labels, headers, hyphens, hidden text, passwords, pages without text."""

from __future__ import annotations

from pathlib import Path

import pytest
from ingest_files import PAGE, add_page, codes, make_pdf, new_pdf, read_here, save

from ingest import (
    BrokenDocument,
    DocumentTooLarge,
    EmptyDocument,
    PagesNotFound,
    ParseLimits,
    PasswordRequired,
    ScannedDocument,
    WrongPassword,
)
from ingest.readers.mupdf import load_pymupdf
from ingest.wordlike import is_unlike_language

PROSE = "The river rose in the night and the mill stood still until the morning came."


def book(path: Path, n_pages: int, *, footer: bool = True) -> Path:
    """Pages with a running header, a footer with the page number, and a body of their own."""
    doc = new_pdf()
    for number in range(1, n_pages + 1):
        page = add_page(doc, [f"Body of page {number} tells a story.", PROSE], y=200)
        page.insert_text((72, 40), "The Running Header", fontsize=9)
        if footer:
            page.insert_text((290, 810), str(number), fontsize=9)
        if number in (2, 3):
            page.insert_text((72, 400), "This sentence stands on two pages.", fontsize=11)
    return save(doc, path)


def test_running_header_and_page_number_go_and_the_body_stays(tmp_path: Path) -> None:
    document = read_here(book(tmp_path / "b.pdf", 6))
    assert "Running Header" not in document.text
    for number, page in enumerate(document.pages, start=1):
        text = document.page_text(page)
        assert text.startswith(f"Body of page {number}")
        assert text.count(PROSE) == 1, "repeats on each page, but in the middle of it"
        assert not text.endswith(str(number))
    assert document.text.count("This sentence stands on two pages.") == 2
    message = next(w.message for w in document.warnings if w.code == "running_lines_removed")
    assert "The Running Header" in message


def test_two_pages_are_too_few_to_call_a_line_running(tmp_path: Path) -> None:
    document = read_here(book(tmp_path / "b.pdf", 2, footer=False))
    assert document.text.count("The Running Header") == 2


def test_a_total_at_the_foot_of_each_page_is_no_page_number(tmp_path: Path) -> None:
    doc = new_pdf()
    totals = ["1930", "277", "8051", "46", "3310"]
    for total in totals:
        page = add_page(doc, ["Costs of the mill"], y=300)
        page.insert_text((400, 800), total, fontsize=11)
    document = read_here(save(doc, tmp_path / "totals.pdf"))
    assert all(total in document.text for total in totals)


def test_headers_that_count_along_go_even_if_their_words_change(tmp_path: Path) -> None:
    doc = new_pdf()
    for number in range(1, 9):
        page = add_page(doc, [f"Story {number} begins here and goes on."], y=300)
        page.insert_text((72, 40), f"Chapter about thing {chr(64 + number)}", fontsize=9)
        page.insert_text((500, 40), str(number + 20), fontsize=9)
    document = read_here(save(doc, tmp_path / "c.pdf"))
    assert "Chapter about" not in document.text
    assert "Story 8 begins" in document.text


def test_spans_map_every_character_to_its_page_and_rectangle(tmp_path: Path) -> None:
    document = read_here(book(tmp_path / "b.pdf", 4))
    document.check()
    for number in range(1, 5):
        char = document.text.index(f"Body of page {number}")
        assert document.page_at(char).number == number
        span = document.span_at(char)
        assert span.rect is not None
        x0, y0, x1, y1 = span.rect
        assert 60 < x0 < 80 and 180 < y0 < 210 and x1 > 200 and y1 > y0


def test_columns_are_read_one_after_the_other(tmp_path: Path) -> None:
    doc = new_pdf()
    page = doc.new_page(width=PAGE[0], height=PAGE[1])
    for index in range(8):
        page.insert_text((50, 100 + 14 * index), f"left line number {index} here")
    for index in range(8):
        page.insert_text((320, 100 + 14 * index), f"right line number {index} here")
    text = read_here(save(doc, tmp_path / "two.pdf")).text
    assert text.index("left line number 7") < text.index("right line number 0")


def test_hyphens_at_line_ends_are_joined(tmp_path: Path) -> None:
    lines = [
        "This is a long line of text that ends in a hyphen-",
        "ated word, and then it goes on.",
    ]
    document = read_here(make_pdf(tmp_path / "h.pdf", [lines]))
    assert "hyphenated word" in document.text


def test_a_word_cut_by_the_page_break_is_joined_and_still_mapped(tmp_path: Path) -> None:
    first = ["The last line of this page is quite long, and its last word is inter-"]
    second = ["rupted by the page break, as happens so often in books."]
    document = read_here(make_pdf(tmp_path / "cut.pdf", [first, second]))
    char = document.text.index("interrupted by")
    assert document.page_at(char).number == 1
    assert document.page_at(char + len("inter")).number == 2


def test_a_paragraph_that_runs_over_the_page_is_one_paragraph(tmp_path: Path) -> None:
    first = ["The old mill by the river had been standing there for more than"]
    second = ["two hundred years before anybody thought of tearing it down."]
    document = read_here(make_pdf(tmp_path / "run.pdf", [first, second]))
    assert "more than two hundred years" in document.text


def test_table_rows_stay_rows(tmp_path: Path) -> None:
    doc = new_pdf()
    page = doc.new_page(width=PAGE[0], height=PAGE[1])
    rows = [("Town", "People", "Area"), ("Ulm", "126000", "118"), ("Bonn", "330000", "141")]
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            page.insert_text((72 + 150 * x, 100 + 30 * y), cell, fontsize=11)
    text = read_here(save(doc, tmp_path / "t.pdf")).text
    assert "Ulm\t126000\t118" in text
    assert "Town\tPeople\tArea" in text


def test_printed_labels_are_kept(tmp_path: Path) -> None:
    doc = new_pdf()
    for number in range(5):
        add_page(doc, [f"Text on leaf {number}."])
    doc.set_page_labels(
        [
            {"startpage": 0, "prefix": "", "style": "r", "firstpagenum": 1},
            {"startpage": 2, "prefix": "A-", "style": "D", "firstpagenum": 7},
        ]
    )
    document = read_here(save(doc, tmp_path / "l.pdf"))
    assert [page.label for page in document.pages] == ["i", "ii", "A-7", "A-8", "A-9"]
    assert [page.number for page in document.pages] == [1, 2, 3, 4, 5]


def test_outline_and_title(tmp_path: Path) -> None:
    doc = new_pdf()
    for number in range(3):
        add_page(doc, [f"Text on leaf {number}."])
    doc.set_toc([[1, "Start", 1], [2, "Middle", 2], [1, "End", 3]])
    doc.set_metadata({"title": "A Fine Title"})
    path = save(doc, tmp_path / "o.pdf")
    document = read_here(path)
    assert document.title == "A Fine Title"
    assert [(t.level, t.title, t.page) for t in document.toc] == [
        (1, "Start", 1),
        (2, "Middle", 2),
        (1, "End", 3),
    ]
    part = read_here(path, pages=(2, 3))
    assert [t.title for t in part.toc] == ["Middle", "End"]


def test_a_page_range_keeps_the_numbers_of_the_file(tmp_path: Path) -> None:
    path = book(tmp_path / "b.pdf", 8)
    document = read_here(path, pages=(3, 5))
    assert [page.number for page in document.pages] == [3, 4, 5]
    assert "Body of page 3" in document.text and "Body of page 6" not in document.text
    assert "page_range" in codes(document)
    assert [page.number for page in read_here(path, pages=(7, 99)).pages] == [7, 8]


@pytest.mark.parametrize(
    ("pages", "said"),
    [((3, 3), "Only page 3 was read"), ((3, 5), "Only pages 3 to 5 were read")],
)
def test_a_page_range_is_said_in_one_or_many(
    tmp_path: Path, pages: tuple[int, int], said: str
) -> None:
    document = read_here(book(tmp_path / "b.pdf", 8), pages=pages)
    (warning,) = [w for w in document.warnings if w.code == "page_range"]
    assert warning.message.startswith(said)


def test_one_page_is_no_pages(tmp_path: Path) -> None:
    with pytest.raises(PagesNotFound, match="has 1 page; page 2") as caught:
        read_here(book(tmp_path / "b.pdf", 1), pages=(2, 3))
    assert caught.value.next_step == "Choose page 1."


@pytest.mark.parametrize("pages", [(9, 12), (0, 2), (3, 2), (-1, 1)])
def test_an_impossible_page_range_is_refused(tmp_path: Path, pages: tuple[int, int]) -> None:
    with pytest.raises(PagesNotFound) as caught:
        read_here(book(tmp_path / "b.pdf", 8), pages=pages)
    assert caught.value.next_step


def test_too_many_pages_name_the_limit_and_a_range_gets_around_it(tmp_path: Path) -> None:
    path = book(tmp_path / "b.pdf", 8)
    limits = ParseLimits(max_pages=5)
    with pytest.raises(DocumentTooLarge, match="8 pages, more than 5") as caught:
        read_here(path, limits=limits)
    assert "pages 1-5" in caught.value.next_step
    assert len(read_here(path, pages=(1, 5), limits=limits).pages) == 5


@pytest.mark.parametrize("method", ["PDF_ENCRYPT_RC4_128", "PDF_ENCRYPT_AES_256"])
def test_passwords(tmp_path: Path, method: str) -> None:
    encryption = getattr(load_pymupdf(), method)
    path = make_pdf(
        tmp_path / "p.pdf",
        [["A secret line of text."]],
        encryption=encryption,
        user_pw="s\u00e9same",
        owner_pw="keeper",
    )
    with pytest.raises(PasswordRequired):
        read_here(path)
    with pytest.raises(PasswordRequired):
        read_here(path, "")
    with pytest.raises(WrongPassword) as caught:
        read_here(path, "nope")
    assert "nope" not in str(caught.value)
    assert "secret line" in read_here(path, "s\u00e9same").text
    assert "secret line" in read_here(path, "keeper").text


def test_an_empty_user_password_opens_silently(tmp_path: Path) -> None:
    encryption = load_pymupdf().PDF_ENCRYPT_AES_256
    path = make_pdf(
        tmp_path / "p.pdf", [["Open text."]], encryption=encryption, user_pw="", owner_pw="keeper"
    )
    document = read_here(path)
    assert document.text == "Open text."
    assert not document.warnings


def add_picture(page: object) -> None:
    pymupdf = load_pymupdf()
    pixmap = pymupdf.Pixmap(pymupdf.csGRAY, pymupdf.IRect(0, 0, 60, 60))
    pixmap.clear_with(120)
    page.insert_image(pymupdf.Rect(50, 50, 550, 800), pixmap=pixmap)  # type: ignore[attr-defined]


def test_pictures_only_is_scanned_and_names_the_way_out(tmp_path: Path) -> None:
    doc = new_pdf()
    for _ in range(2):
        add_picture(doc.new_page())
    with pytest.raises(ScannedDocument, match="2 pages") as caught:
        read_here(save(doc, tmp_path / "s.pdf"))
    assert "OCR" in caught.value.next_step


@pytest.mark.parametrize(
    ("n_pages", "said"), [(1, "1 page with nothing on it"), (2, "2 pages with nothing on them")]
)
def test_blank_pages_are_empty_and_not_scanned(n_pages: int, said: str, tmp_path: Path) -> None:
    doc = new_pdf()
    for _ in range(n_pages):
        doc.new_page()
    with pytest.raises(EmptyDocument, match=said):
        read_here(save(doc, tmp_path / "e.pdf"))


def test_a_few_scanned_pages_are_a_warning(tmp_path: Path) -> None:
    doc = new_pdf()
    add_page(doc, [PROSE])
    add_picture(doc.new_page())
    add_picture(doc.new_page())
    doc.new_page()
    document = read_here(save(doc, tmp_path / "m.pdf"))
    warning = next(w for w in document.warnings if w.code == "pages_without_text")
    assert warning.page == 2
    assert "pages 2-3" in warning.message


def moved_by_one(text: str) -> str:
    """As a font does that names each letter after the one before."""
    return "".join(chr(ord(c) - 1) if c.lower() in "bcdefghijklmnopqrstuvwxyz" else c for c in text)


def test_letters_that_form_no_words_are_announced_with_their_page(tmp_path: Path) -> None:
    doc = new_pdf()
    add_page(doc, [PROSE] * 8)
    add_page(doc, [moved_by_one(PROSE)] * 8)
    document = read_here(save(doc, tmp_path / "m.pdf"))
    (warning,) = [w for w in document.warnings if w.code == "strange_letters"]
    assert warning.page == 2 and "page 2" in warning.message and "OCR" in warning.message


@pytest.mark.parametrize(
    "text",
    [
        "Zażółć gęślą jaźń, a potem przyszedł wiatr i zgasił świecę. " * 12,
        "Vítr přinesl zprávu, že strč prst skrz krk nikdo neřekl dvakrát. " * 12,
        "The RFC says: HTTP, TCP, TLS and DNS. " * 3,  # too few letters to judge
        "МОСКВА " * 80 + "http ftp ssh " * 10,
        "x1 = k2 * b3 - c4; " * 20,
    ],
)
def test_languages_with_few_vowels_numbers_and_short_pages_are_no_strangers(text: str) -> None:
    assert not is_unlike_language(text)


def test_hidden_text_is_announced_with_its_page(tmp_path: Path) -> None:
    doc = new_pdf()
    add_page(doc, [PROSE])
    page = add_page(doc, ["Ordinary black text stands here."])
    page.insert_text((72, 300), "invisible orders", render_mode=3)
    page.insert_text((72, 330), "white orders", color=(1, 1, 1))
    page.insert_text((72, 360), "tiny orders", fontsize=1)
    document = read_here(save(doc, tmp_path / "hidden.pdf"))
    warning = next(w for w in document.warnings if w.code == "hidden_text")
    assert warning.page == 2
    for words in ("invisible orders", "white orders", "tiny orders"):
        assert words in warning.message
    assert "Ordinary" not in warning.message


def test_white_text_on_a_dark_ground_and_a_scan_layer_are_not_hidden(tmp_path: Path) -> None:
    pymupdf = load_pymupdf()
    doc = new_pdf()
    page = doc.new_page()
    page.draw_rect(pymupdf.Rect(50, 80, 400, 130), fill=(0, 0, 0.4))
    page.insert_text((72, 110), "White on blue", color=(1, 1, 1))
    scan = doc.new_page()
    add_picture(scan)
    scan.insert_text((100, 200), "recognised words", render_mode=3)
    document = read_here(save(doc, tmp_path / "fine.pdf"))
    assert "hidden_text" not in codes(document)
    assert "recognised_text" in codes(document)
    assert "recognised words" in document.text


def test_form_fields_are_read(tmp_path: Path) -> None:
    pymupdf = load_pymupdf()
    doc = new_pdf()
    page = add_page(doc, ["Name of applicant"])
    widget = pymupdf.Widget()
    widget.field_name, widget.field_type = "applicant", pymupdf.PDF_WIDGET_TYPE_TEXT
    widget.field_value, widget.rect = "Ada Byron", pymupdf.Rect(200, 90, 400, 110)
    page.add_widget(widget)
    assert "Ada Byron" in read_here(save(doc, tmp_path / "form.pdf")).text


@pytest.mark.parametrize("text", ["Insured? Smoker?", "Insured? Smoker? Tick Yes or leave blank."])
def test_a_ticked_box_is_said_and_its_mark_is_no_text(tmp_path: Path, text: str) -> None:
    pymupdf = load_pymupdf()
    doc = new_pdf()
    page = add_page(doc, [text])
    for n, (name, ticked) in enumerate([("insured", True), ("smoker", False)]):
        widget = pymupdf.Widget()
        widget.field_name, widget.field_type = name, pymupdf.PDF_WIDGET_TYPE_CHECKBOX
        widget.field_value, widget.rect = ticked, pymupdf.Rect(72, 130 + 30 * n, 90, 148 + 30 * n)
        page.add_widget(widget)
    assert read_here(save(doc, tmp_path / "form.pdf")).text == f"{text}\ninsured: Yes"


def test_a_typed_in_note_is_read_and_not_said_to_be_missing(tmp_path: Path) -> None:
    pymupdf = load_pymupdf()
    doc = new_pdf()
    page = add_page(doc, ["Body of the page."])
    page.add_freetext_annot(pymupdf.Rect(72, 130, 300, 150), "Typed-in answer 42")
    document = read_here(save(doc, tmp_path / "note.pdf"))
    assert "Typed-in answer 42" in document.text
    assert "comments_skipped" not in codes(document)


def test_arabic_ligatures_are_spelled_out_in_reading_order(tmp_path: Path) -> None:
    """The word al-khutut as it is drawn, from left to right, with lam and khah in one glyph."""
    doc = new_pdf()
    add_page(doc, ["DCDBA"])
    letters = {"A": "0627", "B": "FCCB", "C": "0648", "D": "0637"}
    rows = "".join(f"<{ord(sign):02X}> <{code}>\n" for sign, code in letters.items())
    cmap = doc.get_new_xref()
    doc.update_object(cmap, "<<>>")
    doc.update_stream(
        cmap,
        (
            "/CIDInit /ProcSet findresource begin begincmap /CMapType 2 def\n"
            "1 begincodespacerange <00> <FF> endcodespacerange\n"
            f"{len(letters)} beginbfchar\n{rows}endbfchar endcmap end"
        ).encode(),
    )
    doc.xref_set_key(doc.get_page_fonts(0)[0][0], "ToUnicode", f"{cmap} 0 R")
    words = "\u0627\u0644\u062e\u0637\u0648\u0637"
    assert read_here(save(doc, tmp_path / "arabic.pdf")).text == words


def test_comments_and_attachments_that_are_not_read_are_announced(tmp_path: Path) -> None:
    doc = new_pdf()
    page = add_page(doc, [PROSE])
    page.add_text_annot((300, 300), "A remark")
    doc.embfile_add("a.txt", b"attached")
    assert {"comments_skipped", "attachments_skipped"} <= codes(
        read_here(save(doc, tmp_path / "c.pdf"))
    )


def test_a_truncated_pdf_is_repaired_with_a_warning_or_broken(tmp_path: Path) -> None:
    path = book(tmp_path / "b.pdf", 4)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.9)])
    try:
        document = read_here(path)
    except BrokenDocument as error:
        assert error.next_step
    else:
        assert "repaired" in codes(document)


@pytest.mark.parametrize(("line", "read"), [("a.", False), ("- / -", False), ("no 7", True)])
def test_a_repaired_file_of_which_hardly_a_letter_is_left_is_broken(
    line: str, read: bool, tmp_path: Path
) -> None:
    path = make_pdf(tmp_path / "b.pdf", [[line]])
    path.write_bytes(path.read_bytes()[:-60])  # its table of objects
    if read:
        assert "repaired" in codes(read_here(path))
        return
    with pytest.raises(BrokenDocument, match="readable character") as refused:
        read_here(path)
    assert "again" in refused.value.next_step


def test_a_page_of_hardly_a_letter_in_a_repaired_file_is_read(tmp_path: Path) -> None:
    path = make_pdf(tmp_path / "b.pdf", [["A first page of words."], ["ii"], ["A third."]])
    path.write_bytes(path.read_bytes()[:-60])
    document = read_here(path, pages=(2, 2))
    assert document.text.strip() == "ii" and "repaired" in codes(document)


def test_a_whole_file_of_one_letter_is_read(tmp_path: Path) -> None:
    assert read_here(make_pdf(tmp_path / "a.pdf", [["a"]])).text.strip() == "a"


def test_a_header_alone_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "h.pdf"
    path.write_bytes(b"%PDF-1.7\n" + b"nothing more\n" * 20)
    with pytest.raises(BrokenDocument):
        read_here(path)


def test_hidden_text_that_was_left_out_anyway_is_not_announced(tmp_path: Path) -> None:
    doc = new_pdf()
    for number in range(4):
        page = add_page(doc, [f"Story {number} begins here and goes on."], y=300)
        page.insert_text((72, 20), "printer mark", fontsize=1)
    document = read_here(save(doc, tmp_path / "marks.pdf"))
    assert "printer mark" not in document.text
    assert "hidden_text" not in codes(document)


def test_a_damaged_text_layer_is_announced(tmp_path: Path) -> None:
    doc = new_pdf()
    page = add_page(doc, [PROSE])
    stream = b"BT /helv 11 Tf 72 400 Td (" + b"\\001\\002\\003\\004" * 40 + b") Tj ET"
    doc.update_stream(page.get_contents()[0], page.read_contents() + b"\n" + stream)
    document = read_here(save(doc, tmp_path / "garbage.pdf"))
    assert "garbage_text" in codes(document)


def test_a_turned_page_reads_in_order(tmp_path: Path) -> None:
    doc = new_pdf()
    page = add_page(doc, ["First line of a turned page", "and the second line of it."])
    page.set_rotation(90)
    text = read_here(save(doc, tmp_path / "turned.pdf")).text
    assert text.index("First line") < text.index("and the second")
