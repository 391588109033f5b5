"""HTML pages: text in order, sections by headings."""

from __future__ import annotations

from collections.abc import Callable

from ingest.document import DocumentWarning
from ingest.errors import EmptyDocument
from ingest.htmltext import html_text
from ingest.parts import Parsed
from ingest.ranges import check_range, choose
from ingest.readers.text import normal_text, text_warnings
from ingest.request import Request
from ingest.sections import label_of, sections_from_blocks


def read_html(request: Request, on_page: Callable[[int, int], None]) -> Parsed:
    """Read an HTML page; its Pages are the sections under h1 and h2.
    Raises EmptyDocument, PagesNotFound, DocumentTooLarge."""
    check_range(request.pages)
    parsed = html_text(normal_text(request.decoded, request.path.name))
    if not parsed.blocks:
        raise EmptyDocument(
            "The page shows no text; it may be built by a script.",
            "Open it in a browser and print it to PDF.",
        )
    pages, toc = sections_from_blocks(parsed.blocks)
    chosen = choose(pages, request.pages, request.limits.max_pages, "HTML")
    on_page(len(pages), len(pages))
    numbers = {page.number for page in chosen}
    warnings = text_warnings(request)
    if parsed.hidden:
        sample = " ".join(parsed.hidden)[:80]
        message = f'Text that the page hides was left out: "{sample}".'
        warnings.append(DocumentWarning("hidden_left_out", message))
    first = next((block.text for block in parsed.blocks if block.level == 1), "")
    return Parsed(
        kind="html",
        page_kind="section",
        title=parsed.title[:300] or label_of(first) or request.path.stem,
        pages=chosen,
        toc=[entry for entry in toc if entry.page in numbers],
        warnings=warnings,
    )
