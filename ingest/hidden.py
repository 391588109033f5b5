"""Text that a reader of the page cannot see, but a model would read.

Cheap by design: invisible (render mode 3, zero opacity) and tiny (under 2 pt) text is known from
the text extraction itself, on every page. White text is checked by rendering its surroundings,
for at most 40 pages of a document; further pages with white text are named as unchecked. Text
outside the page is clipped away by the extraction and never reaches the document. Text hidden
under a picture, or coloured like a coloured ground, is NOT found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ingest.clean import page_ranges
from ingest.document import DocumentWarning, Rect
from ingest.lines import Line

MAX_RENDERED_PAGES = 40
MIN_CHARS = 3
_SAMPLE_CHARS = 80
_DPI = 50
_DARKEST_WHITE = 0xE0


@dataclass
class HiddenText:
    """Collects what is hidden page by page; warnings() sums it up."""

    samples: dict[int, str] = field(default_factory=dict)
    ocr_pages: list[int] = field(default_factory=list)
    unchecked: list[int] = field(default_factory=list)
    _rendered: int = 0

    def look(self, page: Any, number: int, lines: Sequence[Line]) -> None:
        """Examine one MuPDF page's lines; renders only if some of them are white."""
        suspects = [line for line in lines if line.hidden]
        if not suspects:
            return
        hidden = [line for line in suspects if line.hidden == "tiny"]
        invisible = [line for line in suspects if line.hidden == "invisible"]
        if invisible:
            images = [tuple(info["bbox"]) for info in page.get_image_info()]
            uncovered = [line for line in invisible if not _covered(line.rect, images)]
            hidden.extend(uncovered)
            if len(uncovered) < len(invisible):
                self.ocr_pages.append(number)
        white = [line for line in suspects if line.hidden == "white"]
        if white and self._rendered >= MAX_RENDERED_PAGES:
            self.unchecked.append(number)
        elif white:
            self._rendered += 1
            hidden.extend(_blank_on_paper(page, white))
        text = " ".join(line.text for line in hidden)
        if len(text) >= MIN_CHARS:
            self.samples[number] = text

    def warnings(self) -> list[DocumentWarning]:
        """One warning a page for the first ten pages with hidden text, then one for the rest."""
        found = [
            DocumentWarning(
                "hidden_text",
                f'Page {number} has text that cannot be seen on it: "{_sample(text)}".',
                number,
            )
            for number, text in list(self.samples.items())[:10]
        ]
        rest = list(self.samples)[10:]
        if rest:
            message = f"More text that cannot be seen, on pages {page_ranges(rest)}."
            found.append(DocumentWarning("hidden_text", message, rest[0]))
        if self.unchecked:
            message = f"White text on pages {page_ranges(self.unchecked)} was not checked."
            found.append(DocumentWarning("hidden_text_unchecked", message, self.unchecked[0]))
        if self.ocr_pages:
            message = (
                f"The text of pages {page_ranges(self.ocr_pages)} comes from text recognition "
                "and may hold misread words."
            )
            found.append(DocumentWarning("recognised_text", message, self.ocr_pages[0]))
        return found


def _sample(text: str) -> str:
    return text if len(text) <= _SAMPLE_CHARS else text[:_SAMPLE_CHARS].rstrip() + "…"


def _covered(rect: Rect, images: Sequence[tuple[float, ...]]) -> bool:
    """Whether the middle of the line lies on a picture: then it is its recognised text."""
    x, y = (rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2
    return any(x0 <= x <= x1 and y0 <= y <= y1 for x0, y0, x1, y1 in images)


def _blank_on_paper(page: Any, lines: Sequence[Line]) -> list[Line]:
    """Those of the white lines around which the rendered page is white too."""
    pixmap = page.get_pixmap(dpi=_DPI, colorspace="gray", alpha=False)
    scale = _DPI / 72
    samples, stride = pixmap.samples_mv, pixmap.stride
    blank = []
    for line in lines:
        x0, x1 = (_clamp(x * scale, pixmap.width) for x in (line.rect[0], line.rect[2]))
        y0, y1 = (_clamp(y * scale, pixmap.height) for y in (line.rect[1], line.rect[3]))
        darkest = min(
            (min(samples[y * stride + x0 : y * stride + x1 + 1]) for y in range(y0, y1 + 1)),
            default=0,
        )
        if darkest >= _DARKEST_WHITE:
            blank.append(line)
    return blank


def _clamp(value: float, size: int) -> int:
    return min(max(int(value), 0), size - 1)
