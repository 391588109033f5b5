"""Running headers, footers and page numbers: found by position AND repetition across pages.

A row goes only if it stands at the outer edge of its page and either the same words stand at the
same height on enough pages, or a number in it counts along with the pages. A sentence that occurs
twice, a table's total or a heading that stands on one page does none of this and stays, and so do
a title in larger type than the rest of its page and whatever is the only text of a page.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from ingest.edgerows import EdgePage, EdgeRow, edge_rows, is_bare_number, is_list_number
from ingest.lines import Line

MIN_PAGES = 3
MIN_DENSITY = 0.3  # of the pages between first and last; mirrored headings reach a half
BAND_PAGES = 5  # for rows at one height that count along with the pages while their words change
BAND_SHARE = 0.6  # of all pages, for the same
FALLING_SHARE = 0.2  # of the pages; "Chapter 9, page 3" may start anew in a second part
_HEIGHT_TOLERANCE = 4.0  # points


def find_furniture(pages: Sequence[EdgePage]) -> dict[int, list[Line]]:
    """Lines to leave out, by page index; never all the text of a page. Needs three pages; fewer
    never lose anything but a page number that counts along on both of two pages."""
    rows = [row for page in pages for row in edge_rows(page)]
    by_text: dict[tuple[str, str], list[EdgeRow]] = defaultdict(list)
    by_band: dict[tuple[str, int], list[EdgeRow]] = defaultdict(list)
    for row in rows:
        by_text[row.zone, row.text.casefold()].append(row)
        for band in _bands(row.middle):
            by_band[row.zone, band].append(row)
    chosen: dict[int, EdgeRow] = {}
    for group in by_text.values():
        _choose(chosen, _repeated(group))
    for group in by_band.values():
        _choose(chosen, _counting(group, len(pages)))
    found: dict[int, list[Line]] = defaultdict(list)
    for row in _without_other_numbers(chosen.values()):
        found[row.page].extend(row.lines)
    return {page.index: found[page.index] for page in pages if _leaves_text(page, found)}


def _leaves_text(page: EdgePage, found: dict[int, list[Line]]) -> bool:
    """Whether the page loses something, and something is left of it."""
    gone = {id(line) for line in found.get(page.index, ())}
    return bool(gone) and any(line.text and id(line) not in gone for line in page.lines)


def _without_other_numbers(rows: Iterable[EdgeRow]) -> Iterator[EdgeRow]:
    """Rows but bare numbers that count along and are hardly the page's: of two on a page the one
    goes that counts along on more pages, or else is nearer to the page's index; and years stay."""
    rows = list(rows)
    numbers = [row for row in rows if _is_number_row(row)]
    votes = Counter(offset for row in numbers for offset in row.offsets)
    best: dict[int, tuple[int, int]] = {}
    for row in numbers:
        best[row.page] = max(_witnesses(row, votes), best.get(row.page, (0, 0)))
    for row in rows:
        is_number = _is_number_row(row)
        if not is_number or (_witnesses(row, votes) == best[row.page] and not row.is_year):
            yield row


def _witnesses(row: EdgeRow, votes: Mapping[int, int]) -> tuple[int, int]:
    """How many rows count along as a number of this one does, and how near it is, negative."""
    return max((votes[offset], -abs(offset)) for offset in row.offsets)


def _is_number_row(row: EdgeRow) -> bool:
    """Whether a row is a number that counts pages, and not that of a question: "3."."""
    return bool(row.numbers) and is_bare_number(row.text) and not is_list_number(row.text)


def _choose(chosen: dict[int, EdgeRow], rows: Iterable[EdgeRow]) -> None:
    for row in rows:
        chosen[id(row)] = row


def _bands(middle: float) -> tuple[int, int]:
    """Two overlapping bands, so that no height falls between them."""
    step = 2 * _HEIGHT_TOLERANCE
    return 2 * int(middle // step), 2 * int((middle + _HEIGHT_TOLERANCE) // step) + 1


def _repeated(group: list[EdgeRow]) -> list[EdgeRow]:
    """Rows with the same words at the same height on enough pages; bare numbers are not words.
    On a turned page among them the same words may stand at another height, outermost still."""
    if not any(char.isalpha() for char in group[0].text):
        return []
    heights = sorted(row.middle for row in group)
    usual = heights[len(heights) // 2]
    if not _enough_pages([row for row in group if abs(row.middle - usual) <= _HEIGHT_TOLERANCE]):
        return []
    return [
        row
        for row in group
        if not row.title and (row.outermost or abs(row.middle - usual) <= _HEIGHT_TOLERANCE)
    ]


def _enough_pages(rows: list[EdgeRow]) -> bool:
    """Whether rows stand on at least three pages, and on those densely."""
    pages = {row.page for row in rows}
    return len(pages) >= MIN_PAGES and len(pages) >= MIN_DENSITY * (max(pages) - min(pages) + 1)


def _counting(group: list[EdgeRow], n_pages: int) -> list[EdgeRow]:
    """Rows at one height whose number runs along with the pages.

    A row that is only a page number needs few witnesses; the same words around it need as many as
    a running header. Where the words change, the number must stand at their end, and on most pages
    apart from them, because those words may be read nowhere else.
    """
    if n_pages < 2:
        return []
    votes = Counter(offset for row in group for offset in row.offsets)
    kept: list[EdgeRow] = []
    for offset, count in votes.most_common(3):
        rows = [row for row in group if offset in row.offsets]
        if count >= min(MIN_PAGES, n_pages):
            kept.extend(row for row in rows if row.outermost and _is_number_row(row))
        rows = [row for row in rows if not row.title]
        kept.extend(_same_words(rows))
        if _is_band([row for row in rows if row.has_apart(row.page + offset)]):
            ends = (row for row in rows if row.has_at_end(row.page + offset))
            kept.extend(row for row in ends if row.outermost)
    return kept


def _same_words(rows: list[EdgeRow]) -> Iterator[EdgeRow]:
    """Rows that differ in their numbers only: "Chapter 2, page 14 of 90"."""
    by_words: dict[str, list[EdgeRow]] = defaultdict(list)
    for row in rows:
        by_words[row.words].append(row)
    for words, same in by_words.items():
        if any(map(str.isalpha, words)) and _enough_pages(same) and _hardly_falls(same):
            yield from same


def _hardly_falls(rows: list[EdgeRow]) -> bool:
    """Whether all numbers stand still or rise from page to page: an amount does not."""
    rows = sorted(rows, key=lambda row: row.page)
    falls = sum(
        any(after < before for before, after in zip(left.numbers, right.numbers, strict=False))
        for left, right in pairwise(rows)
    )
    return falls <= FALLING_SHARE * len(rows)


def _is_band(rows: list[EdgeRow]) -> bool:
    """Whether rows stand on at least five pages, and on most between the first and the last."""
    pages = {row.page for row in rows}
    return len(pages) >= BAND_PAGES and len(pages) >= BAND_SHARE * (max(pages) - min(pages) + 1)
