"""Running lines: what goes, and what must not be taken for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from ingest_files import add_page, codes, new_pdf, read_here, save

BODY = "The river rose in the night and the mill stood still until the morning."


def slides(path: Path, titles: Sequence[str], *, title_size: float, body_size: float) -> Path:
    """Landscape pages, each with a title at the same height and a line of its own under it."""
    doc = new_pdf()
    for number, title in enumerate(titles, start=1):
        page = doc.new_page(width=960, height=540)
        page.insert_text((60, 60), title, fontsize=title_size)
        page.insert_text((60, 200), f"It was {number} million.", fontsize=body_size)
    return save(doc, path)


def headed(path: Path, headers: Sequence[str], *, size: float = 9) -> Path:
    """Pages of prose, each with its own line at the upper edge."""
    doc = new_pdf()
    for number, header in enumerate(headers, start=1):
        page = add_page(doc, [f"Part {number * number} of the story.", BODY], y=300)
        page.insert_text((72, 40), header, fontsize=size)
    return save(doc, path)


@pytest.mark.parametrize(("title_size", "body_size"), [(30, 20), (20, 20)])
def test_numbered_titles_of_slides_stay(
    tmp_path: Path, title_size: float, body_size: float
) -> None:
    titles = ["1. Revenue", "2. Costs", "3. Profit", "4. Staff", "5. Outlook"]
    path = slides(tmp_path / "d.pdf", titles, title_size=title_size, body_size=body_size)
    document = read_here(path)
    assert [document.page_text(page).split("\n")[0] for page in document.pages] == titles
    assert "running_lines_removed" not in codes(document)


def test_a_title_in_larger_type_stays_though_only_its_number_changes(tmp_path: Path) -> None:
    titles = [f"Question {number}" for number in range(1, 6)]
    document = read_here(slides(tmp_path / "d.pdf", titles, title_size=30, body_size=20))
    assert all(title in document.text for title in titles)


def test_a_title_in_larger_type_stays_on_every_slide_that_has_it(tmp_path: Path) -> None:
    path = slides(tmp_path / "d.pdf", ["Results"] * 4, title_size=30, body_size=20)
    assert read_here(path).text.count("Results") == 4


@pytest.mark.parametrize(
    "line",
    [
        "Invoice {count}: total {odd} EUR",
        "Question {number}: answer is {odd}",
        "Happy birthday to you",
        "{number}",
        "Page {number}",
    ],
)
def test_the_only_text_of_a_page_stays(tmp_path: Path, line: str) -> None:
    doc = new_pdf()
    lines = [
        line.format(count=1000 + number, number=number, odd=number * 7919 % 101)
        for number in range(1, 9)
    ]
    for text in lines:
        add_page(doc, [text], y=60)
    document = read_here(save(doc, tmp_path / "i.pdf"))
    assert [document.page_text(page) for page in document.pages] == lines


def test_a_header_and_a_number_that_are_all_of_a_page_stay(tmp_path: Path) -> None:
    doc = new_pdf()
    for number in range(1, 6):
        page = add_page(doc, [] if number == 3 else [f"Part {number} of it.", BODY], y=300)
        page.insert_text((72, 40), "The Running Header", fontsize=9)
        page.insert_text((290, 810), str(number), fontsize=9)
    document = read_here(save(doc, tmp_path / "b.pdf"))
    assert document.text.count("The Running Header") == 1
    assert document.page_text(document.pages[2]) == "The Running Header\n\n3"


def test_a_number_that_changes_freely_beside_the_one_that_counts_is_content(
    tmp_path: Path,
) -> None:
    totals = [17, 3, 58, 9, 44, 21]
    headers = [f"Invoice {1001 + i}: total {total} EUR" for i, total in enumerate(totals)]
    document = read_here(headed(tmp_path / "i.pdf", headers))
    assert all(header in document.text for header in headers)


def test_years_in_headings_of_different_words_are_no_page_numbers(tmp_path: Path) -> None:
    headers = ["Floods of 2019", "Drought in 2020", "Peace by 2021", "The 2022 fair", "War of 2023"]
    document = read_here(headed(tmp_path / "y.pdf", headers, size=11))
    assert all(header in document.text for header in headers)


@pytest.mark.parametrize("row", ["1.{number}", "{number}, 40, 7", "+{number}.5 %"])
def test_measures_and_sections_at_an_edge_are_no_page_numbers(tmp_path: Path, row: str) -> None:
    rows = [row.format(number=number) for number in range(1, 6)]
    document = read_here(headed(tmp_path / "m.pdf", rows))
    assert [document.page_text(page).split("\n")[-1] for page in document.pages] == rows


@pytest.mark.parametrize(
    "header",
    [
        "Page {number} of 6",
        "Seite {number} von 6",
        "{number}",
        "- {number} -",
        "Chapter {chapter}, page {number} of 90",
        "Annual Report 2023 {number}",
        "{number} | {word}",
        "{word} \u00b7 {number}",
    ],
)
def test_page_numbers_and_what_stands_around_them_go(tmp_path: Path, header: str) -> None:
    words = ["Otters", "Herons", "Beavers", "Storks", "Kites", "Owls"]
    headers = [
        header.format(number=number, chapter=1 + number // 4, word=word)
        for number, word in enumerate(words, start=1)
    ]
    document = read_here(headed(tmp_path / "p.pdf", headers))
    for page in document.pages:
        assert document.page_text(page).endswith(BODY), "its header is gone"


def numbered(path: Path, numbers: Sequence[str], *, size: float = 11, foot: bool = False) -> Path:
    """Pages of prose with a number alone at the upper edge, and the page's own at the lower."""
    doc = new_pdf()
    for page_number, number in enumerate(numbers, start=1):
        page = add_page(doc, [f"Part {page_number**2} of the story.", BODY], y=300)
        page.insert_text((72, 60), number, fontsize=size)
        if foot:
            page.insert_text((290, 800), str(page_number), fontsize=9)
    return save(doc, path)


@pytest.mark.parametrize("foot", [False, True])
def test_years_over_pages_stay(tmp_path: Path, foot: bool) -> None:
    years = [str(year) for year in range(1998, 2003)]
    document = read_here(numbered(tmp_path / "y.pdf", years, foot=foot))
    assert all(year in document.text for year in years)
    for page in document.pages:
        assert str(page.number) not in document.page_text(page).split("\n")


def test_numbers_of_questions_over_pages_stay(tmp_path: Path) -> None:
    numbers = [f"{n}." for n in range(1, 6)]
    document = read_here(numbered(tmp_path / "q.pdf", numbers))
    for page, number in zip(document.pages, numbers, strict=True):
        assert number in document.page_text(page).split("\n")


def test_of_two_numbers_that_count_along_the_page_number_goes(tmp_path: Path) -> None:
    psalms = [str(n) for n in range(31, 36)]
    document = read_here(numbered(tmp_path / "p.pdf", psalms, foot=True))
    for page, psalm in zip(document.pages, psalms, strict=True):
        lines = document.page_text(page).split("\n")
        assert psalm in lines and str(page.number) not in lines


@pytest.mark.parametrize("first", [1, 31, 412])
def test_page_numbers_go_whatever_they_begin_with(tmp_path: Path, first: int) -> None:
    numbers = [str(n) for n in range(first, first + 5)]
    document = read_here(numbered(tmp_path / "n.pdf", numbers))
    for page, number in zip(document.pages, numbers, strict=True):
        assert number not in document.page_text(page).split("\n")


def test_numbers_that_are_left_out_and_are_not_the_pages_own_are_named(tmp_path: Path) -> None:
    document = read_here(numbered(tmp_path / "n.pdf", [str(n) for n in range(31, 36)]))
    (said,) = [w.message for w in document.warnings if w.code == "running_lines_removed"]
    assert '"31"' in said
    plain = read_here(numbered(tmp_path / "m.pdf", [str(n) for n in range(1, 6)]))
    assert "running_lines_removed" not in codes(plain)
