"""Text to hide facts in: sentences without end, and facts put between them."""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import pairwise

from heads.questions.documents import Count
from heads.questions.errors import BadRequest

_PEOPLE = [
    "baker",
    "miller",
    "teacher",
    "gardener",
    "sailor",
    "tailor",
    "painter",
    "farmer",
    "doctor",
    "weaver",
]
_DEEDS = [
    "watched",
    "repaired",
    "carried",
    "painted",
    "measured",
    "described",
    "cleaned",
    "found",
    "sold",
    "drew",
]
_KINDS = ["old", "small", "heavy", "quiet", "broken", "yellow", "wooden", "narrow", "plain", "grey"]
_THINGS = [
    "bridge",
    "lantern",
    "basket",
    "window",
    "garden",
    "wagon",
    "ladder",
    "kettle",
    "bench",
    "fence",
]
_TIMES = [
    "before sunrise",
    "after supper",
    "in early spring",
    "on market day",
    "during the storm",
    "late in the evening",
    "without a word",
    "near the river",
    "behind the chapel",
    "at the crossroads",
]

# A full stop, question or exclamation mark, closing quotes, then space: the end of a sentence,
# unless the stop belongs to a title or an initial or the next word is not capitalised.
_END = re.compile(r"[.!?][\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-Z0-9])")
_NOT_AN_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Prof|Rev|Capt)|\b[A-Z])\.\s+$")


def sentence_ends(text: str) -> list[int]:
    """Offsets where a new sentence may begin, ascending: 0 and the text's length among them."""
    ends = [
        match.end()
        for match in _END.finditer(text)
        if not _NOT_AN_END.search(text, max(0, match.end() - 12), match.end())
    ]
    return sorted({0, *ends, len(text)})


def facts_at_depths(text: str, facts: list[tuple[float, str]]) -> str:
    """The text with facts put between its sentences, as near as can be to shares of its length.

    facts   (depth, fact): 0 = before the first sentence, 1 = after the last, by characters of the
            text without them; facts that meet at one place stand in the order given
    Raises  BadRequest if a depth is outside 0..1
    """
    ends = sentence_ends(text)
    placed: list[tuple[int, str]] = []
    for depth, fact in facts:
        if not 0 <= depth <= 1:
            raise BadRequest(f"depth {depth} is outside 0..1.")
        placed.append((_nearest(ends, depth * len(text)), fact.strip()))
    parts: list[str] = []
    start = 0
    for place, fact in sorted(placed, key=lambda item: item[0]):
        before = text[start:place]
        parts.append(before if not before or before[-1].isspace() else before + " ")
        parts.append(fact + " ")
        start = place
    return ("".join(parts) + text[start:]).rstrip()


def built_in_sentences(draw: random.Random) -> Iterator[str]:
    """Plain sentences without end, of some ten words, hardly ever the same twice."""
    while True:
        yield (
            f"The {draw.choice(_KINDS)} {draw.choice(_PEOPLE)} {draw.choice(_DEEDS)} "
            f"the {draw.choice(_KINDS)} {draw.choice(_THINGS)} {draw.choice(_TIMES)}. "
        )


def book_sentences(book: str, draw: random.Random) -> Iterator[str]:
    """A book's sentences with the spaces after them, from a drawn one on, around and around."""
    if not book.strip():
        raise BadRequest("The text to fill up with is empty.", "Name another file.")
    text = book.strip() + "\n\n"
    ends = sentence_ends(text)
    sentences = [text[a:b] for a, b in pairwise(ends)]
    start = draw.randrange(len(sentences))
    yield from sentences[start:]
    while True:
        yield from sentences


def fill(sentences: Iterator[str], tokens: int, count: Count) -> str:
    """Sentences up to a length; the last is cut between two words so that the length is met."""
    taken: list[str] = []

    def first(n: int) -> str:
        while len(taken) < n:
            taken.append(next(sentences))
        return "".join(taken[:n])

    n = largest(lambda n: count(first(n)) <= tokens)
    body = first(n)
    words = first(n + 1)[len(body) :].split()
    n_words = largest(lambda n: count(_ended(body, words[:n])) <= tokens, len(words))
    return _ended(body, words[:n_words]).rstrip()


def largest(fits: Callable[[int], bool], most: int | None = None) -> int:
    """The largest n up to `most` that fits, where everything below one that fits does too."""
    high = 1
    while (most is None or high <= most) and fits(high):
        high *= 2
    low = high // 2
    high = high if most is None else min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _ended(text: str, words: list[str]) -> str:
    return f"{text}{' '.join(words).rstrip('.,;:!?-')}." if words else text


def _nearest(ends: list[int], offset: float) -> int:
    i = bisect_left(ends, offset)
    return min(ends[max(0, i - 1) : i + 1], key=lambda end: abs(end - offset))
