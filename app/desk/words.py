"""Numbers and pages as a person reads them."""

from __future__ import annotations

from typing import Any

from app.records import SESSION_DAMAGED, SESSION_READING, SessionRecord


def count(number: int, noun: str) -> str:
    """`1 page`, `1,204 tokens`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size(nbytes: float) -> str:
    """Bytes in the binary unit that leaves one to three digits before the point."""
    value, units = float(nbytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1000 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return (
        f"{value:.0f} {units[0]}" if value >= 10 or units[0] == "B" else f"{value:.1f} {units[0]}"
    )


def duration(seconds: float) -> str:
    """A time to wait, no more exact than an estimate can be."""
    if seconds < 1.5:
        return "about 1 second"
    if seconds < 55:
        return f"about {round(seconds)} seconds"
    minutes = seconds / 60
    if minutes < 1.5:
        return "about 1 minute"
    if minutes < 90:
        return f"about {round(minutes)} minutes"
    return f"about {minutes / 60:.1f} hours"


def page_name(page: int, label: str, page_kind: str) -> str:
    """`p. 12`; `p. xii (page 14 of the file)`; a chapter or section by its title."""
    label = label.strip()
    if page_kind == "page":
        if not label or label == str(page):
            return f"p. {page}"
        return f"p. {label} (page {page} of the file)"
    if not label or label == str(page):
        return f"{page_kind} {page}"
    return shorten(label, 48)


def shorten(text: str, n_chars: int) -> str:
    """The text on one line, cut at `n_chars` with an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= n_chars else line[: n_chars - 1].rstrip() + "\u2026"


def stretch(record: SessionRecord) -> str:
    """What was read of a document: `212 pages`, `pages 10-20` with a dash, or `page 7`."""
    if (record.first_page, record.last_page) == (1, record.n_pages):
        return count(record.n_pages, record.page_kind)
    if record.first_page == record.last_page:
        return f"{record.page_kind} {record.first_page}"
    return f"{record.page_kind}s {record.first_page}\u2013{record.last_page}"


def session_line(record: SessionRecord, *, being_read: bool = False) -> str:
    """Two lines for the list: the title, and how much there is."""
    title = shorten(record.title or record.file_name or "Untitled", 27)
    pages = stretch(record)
    if being_read:
        return f"{title}\n{pages} \u00b7 being read"
    if record.state == SESSION_READING:
        return f"{title}\n{pages} \u00b7 not read to the end"
    if record.state == SESSION_DAMAGED:
        return f"{title}\n{pages} \u00b7 damaged"
    asked = count(record.n_questions, "question") if record.n_questions else "no questions yet"
    return f"{title}\n{pages} \u00b7 {asked}"


def page_range(first: Any, last: Any) -> tuple[int, int] | None:
    """Both numbers as a range, None if both are empty. Raises ValueError with a sentence."""
    if first in (None, "") and last in (None, ""):
        return None
    try:
        start, end = int(first), int(last)
    except (TypeError, ValueError) as error:
        raise ValueError("Give both a first and a last page, as numbers.") from error
    if start < 1:
        raise ValueError("Pages are counted from 1.")
    if end < start:
        raise ValueError(f"Pages {start} to {end} are not a range: begin with the smaller number.")
    return start, end
