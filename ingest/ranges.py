"""Page ranges: which pages of a document are asked for, and whether that can be done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ingest.errors import BrokenDocument, DocumentTooLarge, PagesNotFound

PageRange = tuple[int, int]
_Item = TypeVar("_Item")


def check_range(pages: PageRange | None) -> None:
    """PagesNotFound unless `pages` is None or (first, last) with 1 <= first <= last."""
    if pages is None:
        return
    first, last = pages
    if not 1 <= first <= last:
        raise PagesNotFound(
            f"The page range {first}-{last} makes no sense.",
            "Give the first and the last page, counted from 1.",
        )


def chosen_pages(count: int, pages: PageRange | None, max_pages: int, what: str) -> range:
    """Page numbers to read, from 1, of a document with `count` pages; the range's end is clipped.

    Raises BrokenDocument (no pages), PagesNotFound (starts past the end), DocumentTooLarge.
    """
    check_range(pages)
    if count < 1:
        raise BrokenDocument(
            f"The {what} file has no pages: it is damaged or incomplete.",
            "Get a fresh copy of the file.",
        )
    first, last = pages or (1, count)
    if first > count:
        raise PagesNotFound(
            f"The document has {count:,} {'page' if count == 1 else 'pages'}; page {first} is not "
            "among them.",
            "Choose page 1." if count == 1 else f"Choose pages between 1 and {count}.",
        )
    numbers = range(first, min(last, count) + 1)
    if len(numbers) > max_pages:
        raise DocumentTooLarge(
            f"The document has {len(numbers):,} pages, more than {max_pages:,}.",
            f"Open a part of it, for example pages {first}-{first + max_pages - 1}.",
        )
    return numbers


def choose(
    items: Sequence[_Item], pages: PageRange | None, max_pages: int, what: str
) -> list[_Item]:
    """The items (chapters, sections) that chosen_pages names."""
    return [items[number - 1] for number in chosen_pages(len(items), pages, max_pages, what)]
