"""HTML to blocks with the standard library's parser: the text a browser would show, in order.

Used instead of MuPDF's HTML layout because it keeps every character, knows headings and table
rows, and costs no layout. What style sheets hide is not known here; the hidden attribute and
inline display:none are, and such text is left out and counted.
"""

from __future__ import annotations

from html.parser import HTMLParser

from ingest.parts import PARAGRAPH, Block

_BLOCKS = frozenset(
    """address article aside blockquote body caption center dd details dialog div dl dt fieldset
    figcaption figure footer form h1 h2 h3 h4 h5 h6 header hgroup hr html li main nav ol option p
    pre section summary table tbody tfoot thead tr ul""".split()  # noqa: SIM905
)
_SKIPPED = frozenset({"script", "style", "template", "noscript", "svg", "iframe", "object"})
_VOID = frozenset(
    """area base br col embed hr img input link meta param
    source track wbr""".split()  # noqa: SIM905
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}


class HtmlText(HTMLParser):
    """Feed it HTML, call close(), read .blocks, .title and .hidden (text left out as hidden)."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self.title = ""
        self.hidden: list[str] = []
        self._pieces: list[str] = []
        self._open: list[str] = []  # elements inside a skipped one, to find its end
        self._skip_from: str = ""
        self._level = 0
        self._pre = 0
        self._in_title = False
        self._cell = False
        self._row = False
        self._item = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skip_from:
            if tag not in _VOID:
                self._open.append(tag)
            return
        if tag in _SKIPPED or (tag not in _VOID and _is_hidden(dict(attrs))):
            self._skip_from = "skipped" if tag in _SKIPPED else "hidden"
            self._open = [tag]
            return
        if tag in _BLOCKS:
            self._flush()
        if tag == "title":
            self._in_title = True
        elif tag == "br":
            self._pieces.append("\n")
        elif tag == "pre":
            self._pre += 1
        elif tag in ("td", "th"):
            if self._cell:
                self._pieces.append("\t")
            self._cell = True
        elif tag == "tr":
            self._row, self._cell = True, False
        elif tag == "li":
            self._item = True
        elif tag in _HEADINGS:
            self._level = _HEADINGS[tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._skip_from:
            if tag in self._open:
                while self._open.pop() != tag:
                    continue
            if not self._open:
                self._skip_from = ""
            return
        if tag == "title":
            self._in_title = False
        if tag in _BLOCKS:
            self._flush()
        if tag == "pre":
            self._pre = max(self._pre - 1, 0)
        elif tag == "tr":
            self._row = self._cell = False
        elif tag in _HEADINGS:
            self._level = 0

    def handle_data(self, data: str) -> None:
        if self._skip_from == "hidden" and data.strip():
            self.hidden.append(" ".join(data.split()))
        elif self._in_title:
            self.title = " ".join((self.title + data).split())
        elif not self._skip_from:
            self._pieces.append(data if self._pre else _spaces(data))

    def close(self) -> None:
        super().close()
        self._flush()

    def _flush(self) -> None:
        raw = "".join(self._pieces)
        self._pieces = []
        if self._pre:
            text = raw.strip("\n").rstrip()
        else:
            lines = (_squeeze(line) for line in raw.split("\n"))
            text = "\n".join(lines).strip("\n ")
            text = text if self._row else text.strip()
        if not text.strip():
            return
        before = PARAGRAPH
        if (self._row or self._item) and self.blocks:
            before = "\n"
        if self._item:
            text, self._item = f"- {text}", False
        self.blocks.append(Block(text, before=before, level=self._level))


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
