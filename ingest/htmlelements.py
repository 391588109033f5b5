"""The elements open at a place in an HTML page, with the end tags that a page may leave out.

Follows the tree construction of the HTML standard (html.spec.whatwg.org, "in body", "in table")
as far as the nesting of text needs it; misnested formatting is not mended.
"""

from __future__ import annotations

from collections import Counter

HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
VOID = frozenset(
    """area base br col embed hr img input link meta param
    source track wbr""".split()  # noqa: SIM905
)
_ENDS_P = HEADINGS | frozenset(
    """address article aside blockquote center dd details dialog dir div dl dt fieldset figcaption
    figure footer form header hgroup hr li main menu nav ol p pre search section summary table
    ul""".split()  # noqa: SIM905
)
_SECTIONS = frozenset({"caption", "colgroup", "tbody", "tfoot", "thead"})
_CELLS = frozenset({"td", "th"})
_TABLE = frozenset({"html", "table", "template"})
_SCOPE = _TABLE | _CELLS | {"applet", "caption", "marquee", "object"}
_SPECIAL = _ENDS_P | _SCOPE | _SECTIONS | {"body", "button", "iframe", "select", "tr"}
_LOOSE = frozenset({"address", "div", "p"})  # an item may end inside these
_ITEMS = frozenset({"dd", "dt"})
_OPTIONS = frozenset({"optgroup", "option"})

_Rule = tuple[frozenset[str], frozenset[str]]  # which elements end, and where to stop looking
_P_RULE: _Rule = (frozenset({"p"}), _SCOPE | {"button"})
_STARTS: dict[str, _Rule] = {
    "li": (frozenset({"li"}), _SPECIAL - _LOOSE - {"li"}),
    "option": (frozenset({"option"}), _SPECIAL | {"optgroup"}),
    "optgroup": (_OPTIONS, _SPECIAL),
    "tr": (_CELLS | {"tr", "caption", "colgroup"}, _TABLE | {"tbody", "tfoot", "thead"}),
    **dict.fromkeys(_ITEMS, (_ITEMS, _SPECIAL - _LOOSE - _ITEMS)),
    **dict.fromkeys(_CELLS, (_CELLS | {"caption", "colgroup"}, _TABLE | {"tr"})),
    **dict.fromkeys(_SECTIONS, (_SECTIONS | _CELLS | {"tr"}, _TABLE)),
}
_LISTS = frozenset({"menu", "ol", "ul"})
_UNBOUNDED = frozenset({"body", "html", "iframe", "noscript", "object", "svg", "template"})


class OpenElements:
    """A stack of tags. ended_by_start and ended_by_end give the depth that stays open."""

    def __init__(self) -> None:
        self._tags: list[str] = []
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._tags)

    def __contains__(self, tag: str) -> bool:
        return self._counts.get(tag, 0) > 0

    @property
    def innermost(self) -> str:
        """The tag opened last of those still open."""
        return self._tags[-1]

    def push(self, tag: str) -> None:
        """Open an element."""
        self._tags.append(tag)
        self._counts[tag] += 1

    def pop(self) -> None:
        """Close the innermost element."""
        self._counts[self._tags.pop()] -= 1

    def ignores(self, tag: str) -> bool:
        """Whether a start tag means nothing here: a part of a table outside of all tables."""
        return "table" not in self and (tag in _CELLS or tag in _SECTIONS or tag == "tr")

    def ended_by_start(self, tag: str) -> int:
        """The depth left open when `tag` starts: "<li>one<li>two" ends the first item."""
        depth = len(self._tags)
        if tag in _STARTS:
            depth = self._outermost(*_STARTS[tag])
        if tag in _ENDS_P:
            depth = min(depth, self._outermost(*_P_RULE))
        return depth

    def ended_by_end(self, tag: str) -> int:
        """The depth left open after the end tag: what it closes and all inside that. An end tag
        that closes nothing, or reaches over a table's cell, leaves everything open."""
        names = HEADINGS if tag in HEADINGS else frozenset({tag})
        if not any(name in self for name in names):
            return len(self._tags)
        barriers = _barriers(tag)
        for depth in range(len(self._tags) - 1, -1, -1):
            if self._tags[depth] in names:
                return depth
            if self._tags[depth] in barriers:
                break
        return len(self._tags)

    def _outermost(self, names: frozenset[str], barriers: frozenset[str]) -> int:
        """Depth of the outermost of `names` above the nearest barrier, or the whole depth."""
        found = len(self._tags)
        left = sum(self._counts.get(name, 0) for name in names)
        for depth in range(len(self._tags) - 1, -1, -1):
            if not left or self._tags[depth] in barriers:
                break
            if self._tags[depth] in names:
                found = depth
                left -= 1
        return found


def _barriers(tag: str) -> frozenset[str]:
    """What an end tag does not reach over."""
    if tag == "p":
        return _P_RULE[1]
    if tag == "li":
        return _SCOPE | _LISTS
    if tag in _CELLS or tag in _SECTIONS or tag in ("table", "tr"):
        return _TABLE
    if tag in _UNBOUNDED:
        return frozenset()
    return _SCOPE if tag in _SPECIAL else _SPECIAL
