"""Markdown, taken as it is: headings cut it into sections, no mark-up is removed."""

from __future__ import annotations

import re
from collections.abc import Callable

from ingest.parts import Block, Parsed
from ingest.ranges import check_range, choose
from ingest.readers.text import normal_text, text_warnings
from ingest.request import Request
from ingest.sections import label_of, sections_from_blocks

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]|$)")
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")  # "```code```" in a line opens nothing
_SETEXT = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
_FRONT_TITLE = re.compile(r"^title:[ \t]*[\"']?(.+?)[\"']?[ \t]*$", re.MULTILINE)


def read_markdown(request: Request, on_page: Callable[[int, int], None]) -> Parsed:
    """Read a Markdown file; its Pages are the sections under headings of level 1 and 2.
    Raises EmptyDocument, PagesNotFound, DocumentTooLarge."""
    check_range(request.pages)
    text = normal_text(request.decoded, request.path.name)
    blocks = markdown_blocks(text)
    pages, toc = sections_from_blocks(blocks)
    chosen = choose(pages, request.pages, request.limits.max_pages, "Markdown")
    on_page(len(pages), len(pages))
    numbers = {page.number for page in chosen}
    return Parsed(
        kind="markdown",
        page_kind="section",
        title=_title(text, blocks, request.path.stem),
        pages=chosen,
        toc=[entry for entry in toc if entry.page in numbers],
        warnings=text_warnings(request),
    )


def markdown_blocks(text: str) -> list[Block]:
    """Paragraphs and headings in order. Blank lines part paragraphs, except inside fenced code,
    where neither they nor "#" mean anything."""
    blocks: list[Block] = []
    lines: list[str] = []
    fence = ""
    for line in text.split("\n"):
        match = _FENCE.match(line)
        if fence:
            lines.append(line)
            if match and match[1].startswith(fence) and not line.strip(" `~"):
                fence = ""
            continue
        if match:
            fence = match[1]
            lines.append(line)
        elif not line.strip():
            _flush(blocks, lines)
        elif heading := _ATX.match(line):
            glued = bool(lines)
            _flush(blocks, lines)
            blocks.append(
                Block(line.rstrip(), level=len(heading[1]), before="\n" if glued else "\n\n")
            )
        elif lines and (underline := _SETEXT.match(line)) and len(lines) == 1:
            lines.append(line)
            _flush(blocks, lines, level=1 if underline[1][0] == "=" else 2)
        else:
            lines.append(line)
    _flush(blocks, lines)
    return blocks


def _flush(blocks: list[Block], lines: list[str], level: int = 0) -> None:
    text = "\n".join(lines).rstrip()
    if text.strip():
        blocks.append(Block(text, level=level))
    lines.clear()


def _title(text: str, blocks: list[Block], stem: str) -> str:
    if text.startswith("---\n"):
        front = text[4:].partition("\n---")[0]
        if match := _FRONT_TITLE.search(front):
            return match[1]
    first = next((block for block in blocks if block.level == 1), None)
    title = label_of(first.text) if first else ""
    return re.sub(r"^title:\s*", "", title, flags=re.IGNORECASE) or stem
