"""Text that a reader of the page cannot see, but a model would read.

Cheap by design: invisible (render mode 3, zero opacity) and tiny (under 2 pt) text is known from
the text extraction itself, on every page. White text counts as hidden where no picture, shading
or coloured area lies around it; this is asked on at most 200 pages of a document, further ones
are named as unchecked. Pages are not rendered for it: rendering one can hang where extracting its
text does not. Text outside the page is clipped away by the extraction and never reaches the
document. Text hidden under a picture, coloured like a coloured ground, or invisible in a Type 3
font is NOT found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ingest.clean import page_ranges
from ingest.document import DocumentWarning, Rect
from ingest.lines import Line

MAX_GROUND_PAGES = 200
MAX_COLOURED_PATHS = 5000  # on pages with more, every filled path counts as coloured
MIN_CHARS = 3
_SAMPLE_CHARS = 80
_WHITE = 0.95
_THICK_LINE = 5.0  # points


@dataclass
class HiddenText:
    """Collects what is hidden page by page; warnings() sums it up."""

    found: dict[int, list[Line]] = field(default_factory=dict)
    ocr_pages: list[int] = field(default_factory=list)
    unchecked: list[int] = field(default_factory=list)
    _asked: int = 0

    def look(self, page: Any, number: int, lines: Sequence[Line]) -> None:
        """Examine one MuPDF page's lines."""
        suspects = [line for line in lines if line.hidden]
        if not suspects:
            return
        hidden = [line for line in suspects if line.hidden == "tiny"]
        invisible = [line for line in suspects if line.hidden == "invisible"]
        if invisible:
            drawn = _drawn_fonts(page)
            invisible = [line for line in invisible if line.font not in drawn]
            images = [tuple(info["bbox"]) for info in page.get_image_info()]
            uncovered = [line for line in invisible if not _covered(line.rect, images)]
            hidden.extend(uncovered)
            if len(uncovered) < len(invisible):
                self.ocr_pages.append(number)
        white = [line for line in suspects if line.hidden == "white"]
        if white and self._asked >= MAX_GROUND_PAGES:
            self.unchecked.append(number)
        elif white:
            self._asked += 1
            hidden.extend(_blank_on_paper(page, white))
        if hidden:
            self.found[number] = hidden

    def warnings(self, left_out: dict[int, list[Line]]) -> list[DocumentWarning]:
        """One warning a page for the first ten pages with hidden text, then one for the rest.
        Lines that were left out as running headers reach nobody, and are not mentioned."""
        samples = self._samples(left_out)
        found = [
            DocumentWarning(
                "hidden_text",
                f'Page {number} has text that cannot be seen on it: "{_sample(text)}".',
                number,
            )
            for number, text in list(samples.items())[:10]
        ]
        rest = list(samples)[10:]
        if rest:
            message = f"More text that cannot be seen, on page {page_ranges(rest)}."
            found.append(DocumentWarning("hidden_text", message, rest[0]))
        if self.unchecked:
            message = f"White text was not checked on page {page_ranges(self.unchecked)}."
            found.append(DocumentWarning("hidden_text_unchecked", message, self.unchecked[0]))
        if self.ocr_pages:
            message = (
                "Text from an earlier text recognition, which may hold misread words: "
                f"page {page_ranges(self.ocr_pages)}."
            )
            found.append(DocumentWarning("recognised_text", message, self.ocr_pages[0]))
        return found

    def _samples(self, left_out: dict[int, list[Line]]) -> dict[int, str]:
        samples = {}
        for number, lines in self.found.items():
            gone = {id(line) for line in left_out.get(number, ())}
            text = " ".join(line.text for line in lines if id(line) not in gone)
            if len(text) >= MIN_CHARS:
                samples[number] = text
        return samples


def _sample(text: str) -> str:
    return text if len(text) <= _SAMPLE_CHARS else text[:_SAMPLE_CHARS].rstrip() + "…"


def _covered(rect: Rect, grounds: Sequence[tuple[float, ...]]) -> bool:
    """Whether the middle of the line lies on one of the grounds."""
    x, y = (rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2
    return any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in grounds)


def _blank_on_paper(page: Any, lines: Sequence[Line]) -> list[Line]:
    """Those of the white lines that lie on nothing but paper or white areas."""
    log = page.get_bboxlog()
    grounds = [box for kind, box in log if "image" in kind or "img" in kind or "shade" in kind]
    fills = [box for kind, box in log if kind == "fill-path"]
    if len(fills) <= MAX_COLOURED_PATHS:
        fills = [box for drawing in page.get_cdrawings() for box in _painted(drawing)]
    grounds.extend(fills)
    return [line for line in lines if not _covered(line.rect, grounds)]


def _painted(drawing: dict[str, Any]) -> list[tuple[float, ...]]:
    """The box that one drawing colours: a coloured area, or a line so thick that it is one."""
    if _is_coloured(drawing.get("fill")):
        return [drawing["rect"]]
    width = drawing.get("width") or 0.0
    if width >= _THICK_LINE and _is_coloured(drawing.get("color")):
        x0, y0, x1, y1 = drawing["rect"]
        return [(x0 - width / 2, y0 - width / 2, x1 + width / 2, y1 + width / 2)]
    return []


def _is_coloured(colour: tuple[float, ...] | None) -> bool:
    return colour is not None and min(colour) < _WHITE


def _drawn_fonts(page: Any) -> set[str]:
    """Fonts whose letters are little drawings (Type 3): MuPDF calls their text invisible, though
    the drawings show."""
    fonts = [font for font in page.get_fonts() if font[2] == "Type3"]
    return {font[3] for font in fonts} | {f"Type3 ({font[0]} 0 R)" for font in fonts}
