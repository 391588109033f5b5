"""HTML to blocks with the standard library's parser: the text a browser would show, in order.

Used instead of MuPDF's HTML layout because it keeps every character, knows headings and table
rows, and costs no layout. What style sheets hide is not known here; the hidden attribute and
inline display:none are, and such text is left out and counted.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

from ingest.clean import plain_letters
from ingest.htmlelements import VOID, OpenElements
from ingest.parts import PARAGRAPH, Block
from ingest.superscript import BEGIN, END, settle

_BLOCKS = frozenset(
    """address article aside blockquote body caption center dd details dialog div dl dt fieldset
    figcaption figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html li main nav ol option p
    pre section summary table tbody tfoot thead tr ul""".split()  # noqa: SIM905
)
_SKIPPED = frozenset({"script", "style", "template", "noscript", "svg", "iframe", "object"})
_CELL_CHARS = 500
_MARKS = re.compile(f"[{BEGIN}{END}]")  # of raised text that a block's end cut in two
_HEADINGS = {f"h{level}": level for level in range(1, 7)}


class HtmlText(HTMLParser):
    """Feed it HTML, call close(), read .blocks, .title and .hidden (text left out as hidden)."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self.title = ""
        self.hidden: list[str] = []
        self._pieces: list[str] = []
        self._open = OpenElements()
        self._skip_from: str = ""
        self._skip_depth = 0  # of the element that is skipped with all inside it
        self._level = 0
        self._in_title = False
        self._row = False
        self._rows: list[list[int]] = []  # of each row open: where its cells begin in the blocks
        self._item = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._close_to(self._open.ended_by_start(tag))
        if not self._skip_from:
            self._enter(tag, dict(attrs))
        if tag not in VOID:
            self._open.push(tag)

    def _enter(self, tag: str, attrs: dict[str, str | None]) -> None:
        can_hide = tag not in VOID and not self._open.ignores(tag)
        if tag in _SKIPPED or (can_hide and _is_hidden(attrs)):
            self._skip_from = "skipped" if tag in _SKIPPED else "hidden"
            self._skip_depth = len(self._open)
            return
        if tag in _BLOCKS:
            self._flush()
        if tag == "title":
            self._in_title = True
        elif tag == "br":
            self._pieces.append("\n")
        elif tag == "sup":
            self._pieces.append(BEGIN)
        elif tag in ("td", "th"):
            self._flush()
            if self._rows:
                self._rows[-1].append(len(self.blocks))
        elif tag == "tr":
            self._row = True
            self._rows.append([])
        elif tag == "li":
            self._item = True
        elif tag in _HEADINGS:
            self._level = _HEADINGS[tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        self._close_to(self._open.ended_by_end(tag))
        if tag in _BLOCKS and not self._skip_from:
            self._flush()

    def _close_to(self, depth: int) -> None:
        """Close the innermost elements until `depth` are open."""
        while len(self._open) > depth:
            if self._skip_from:
                self._open.pop()
                if len(self._open) == self._skip_depth:
                    self._skip_from = ""
            else:
                self._leave(self._open.innermost)
                self._open.pop()

    def _leave(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._flush()
        if tag == "title":
            self._in_title = False
        elif tag == "tr":
            self._end_row()
        elif tag == "li":
            self._item = False
        elif tag == "sup":
            self._pieces.append(END)
        elif tag in _HEADINGS:
            self._level = 0

    def handle_data(self, data: str) -> None:
        if self._skip_from == "hidden" and data.strip():
            self.hidden.append(" ".join(data.split()))
        elif self._in_title:
            self.title = " ".join((self.title + data).split())
        elif not self._skip_from:
            data = _MARKS.sub("", data)
            self._pieces.append(data if "pre" in self._open else _spaces(data))

    def unknown_decl(self, data: str) -> None:
        """The text of a CDATA section, which is text in XHTML."""
        if data.startswith("CDATA["):
            self.handle_data(data.removeprefix("CDATA["))

    def close(self) -> None:
        super().close()
        self._flush()
        while self._rows:
            self._end_row()

    def _end_row(self) -> None:
        """Make one block of the row's cells, parted by tabs, if they hold words and not a page."""
        self._flush()
        self._row = False
        starts = self._rows.pop()
        if len(starts) < 2 or starts[0] == len(self.blocks):
            return
        ends = [*starts[1:], len(self.blocks)]
        cells = [self.blocks[start:end] for start, end in zip(starts, ends, strict=True)]
        if all(_is_plain(cell) for cell in cells):
            texts = (" ".join(_words(block.text) for block in cell) for cell in cells)
            before = "\n" if starts[0] else PARAGRAPH
            self.blocks[starts[0] :] = [Block("\t".join(texts).rstrip(), before=before)]

    def _flush(self) -> None:
        raw = plain_letters(_MARKS.sub("", settle("".join(self._pieces))))
        self._pieces = []
        if "pre" in self._open:
            text = raw.strip("\n").rstrip()
        else:
            lines = (_squeeze(line) for line in raw.split("\n"))
            text = "\n".join(lines).strip("\n ")
            text = text.strip()
        if not text.strip():
            return
        before = PARAGRAPH
        if (self._row or self._item) and self.blocks:
            before = "\n"
        if self._item:
            text, self._item = f"- {text}", False
        self.blocks.append(Block(text, before=before, level=self._level))


def _is_plain(cell: list[Block]) -> bool:
    """Whether a cell can stand in a row of text: no headings, lists, tables, code, nor an essay."""
    if any(block.level or "\t" in block.text or block.text.startswith("- ") for block in cell):
        return False
    return len(cell) < 2 or sum(len(block.text) for block in cell) <= _CELL_CHARS


def _words(text: str) -> str:
    """Line breaks in a cell as blanks, except in a long one, which has paragraphs of its own."""
    return " ".join(text.split("\n")) if len(text) <= _CELL_CHARS else text


def _spaces(data: str) -> str:
    return " ".join(data.replace("\n", " ").split(" ")) if data else ""


def _squeeze(line: str) -> str:
    """Single spaces inside each cell; the tabs between cells stay."""
    return "\t".join(" ".join(cell.split()) for cell in line.split("\t"))


def _is_hidden(attrs: dict[str, str | None]) -> bool:
    style = (attrs.get("style") or "").replace(" ", "").lower()
    return "hidden" in attrs or "display:none" in style or "visibility:hidden" in style


def html_text(markup: str) -> HtmlText:
    """Parse a whole page."""
    parser = HtmlText()
    parser.feed(markup)
    parser.close()
    return parser
