"""The words of a document in a form that survives line breaks, hyphens, ligatures and case.

Letters are compared, not spacing: the text is reduced to one stream of folded letters and digits,
and every word remembers where it begins in the stream and in the text. Two passages match where
their streams are equal and both begin and end at word boundaries.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

# Scripts written without spaces: each character counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
_MARKS = "\u0300-\u036f\u00ad"  # combining accents, soft hyphen
_WORD = re.compile(
    rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W_])(?:(?![{_UNSPACED}])[^\W_]|[{_MARKS}]|['\u2019](?=[^\W_]))*"
)
_DROPPED = re.compile("[\u00ad'\u2019]")
_SENTENCE_END = re.compile(r"[.!?\u3002\uff01\uff1f](?:[\"'\u2019\u201d)\]]*)(?=\s|$)|\n[ \t]*\n")

_ABBREVIATED = "st mr mrs ms dr prof rev hon gen col capt lt sgt jr sr vs cf fig no vol pp art sec"
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())

# Words that carry no evidence by themselves.
_STOPWORDS = """
    a about above after again all also although am among an and another any are as at be
    because been before being below between both but by can could did do does doing done down
    during each either even ever every few for from had has have having he her here hers
    herself him himself his how however i if in into is it its itself just may me might more
    most much must my myself neither no nor not now of off often on once one only or other
    others our ours out over own per rather same shall she should since so some still such
    than that the their theirs them themselves then there these they this those though through
    thus to too under until up upon us very was we well were what when where whether which
    while who whom whose why will with within without would yes yet you your yours im ive dont
    doesnt didnt cant couldnt wont wouldnt isnt arent wasnt werent document text passage
    answer question mentioned mention mentions states stated according provided information
    says said
"""
STOPWORDS = frozenset(_STOPWORDS.split())


def fold(word: str) -> str:
    """One word as it is compared: NFKC, case folded, without apostrophes and soft hyphens."""
    if word.isascii():
        return word.lower().replace("'", "")
    folded = unicodedata.normalize("NFKC", _DROPPED.sub("", word)).casefold()
    return unicodedata.normalize("NFKC", folded)


def is_content(word: str) -> bool:
    """Whether a folded word can serve as evidence."""
    return word not in STOPWORDS and (len(word) > 1 or word.isdigit() or not word.isascii())


def word_weight(word: str) -> float:
    """What a folded word counts for in a run: a character of an unspaced script counts half."""
    return 0.5 if len(word) == 1 and re.match(f"[{_UNSPACED}]", word) else 1.0


@dataclass(frozen=True)
class Words:
    """The words of a text: folded forms, character ranges in the text, offsets in the stream."""

    folded: list[str]
    starts: list[int]
    ends: list[int]
    stream: str
    offsets: list[int]  # offsets[i] is where word i begins in the stream; one more for its end

    def __len__(self) -> int:
        return len(self.folded)

    @classmethod
    def of(cls, text: str, start: int = 0, end: int | None = None) -> Words:
        """Split text[start:end] into words; character ranges count from the beginning of text."""
        folded, starts, ends, offsets = [], [], [], [0]
        at = 0
        for match in _WORD.finditer(text, start, len(text) if end is None else end):
            word = fold(match.group())
            if not word:
                continue
            folded.append(word)
            starts.append(match.start())
            ends.append(match.end())
            at += len(word)
            offsets.append(at)
        return cls(folded, starts, ends, "".join(folded), offsets)

    def between(self, start: int, end: int) -> range:
        """Indices of the words that lie wholly inside a character range."""
        return range(bisect_left(self.starts, start), bisect_right(self.ends, end))


@dataclass(frozen=True)
class Run:
    """Words first..last-1 of one text which stand in another at words found_first..found_last-1."""

    first: int
    last: int
    found_first: int
    found_last: int


def common_run(part: Words, first: int, last: int, whole: Words, at: int) -> Run | None:
    """Longest run of part's words from `first` (before `last`) that stands in `whole` at word `at`.

    Both ends must be word boundaries in both texts; None if not even one word agrees.
    """
    a, b = part.offsets[first], whole.offsets[at]
    longest = min(part.offsets[last] - a, len(whole.stream) - b)
    n = _common_prefix(part.stream, a, whole.stream, b, longest)
    end = bisect_right(part.offsets, a + n) - 1
    while end > first:
        found_end = bisect_left(whole.offsets, b + part.offsets[end] - a)
        if whole.offsets[found_end] == b + part.offsets[end] - a:
            return Run(first, end, at, found_end)
        end -= 1
    return None


def occurrences(part: Words, first: int, last: int, whole: Words) -> Iterator[int]:
    """Word indices of `whole` at which part's words first..last-1 stand, word for boundary."""
    needle = part.stream[part.offsets[first] : part.offsets[last]]
    if not needle:
        return
    found = whole.stream.find(needle)
    while found >= 0:
        word = bisect_left(whole.offsets, found)
        end = found + len(needle)
        stop = bisect_left(whole.offsets, end)
        if whole.offsets[word] == found and whole.offsets[stop] == end and word < len(whole):
            yield word
        found = whole.stream.find(needle, found + 1)


def sentence_ranges(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Character ranges of the sentences of text[start:end], blanks at their ends left out."""
    ranges = []
    begin = start
    for match in _SENTENCE_END.finditer(text, start, end):
        if _goes_on(text, begin, match):
            continue
        ranges.append((begin, match.end()))
        begin = match.end()
    ranges.append((begin, end))
    trimmed = []
    for left, right in ranges:
        piece = text[left:right]
        if stripped := piece.strip():
            left += len(piece) - len(piece.lstrip())
            trimmed.append((left, left + len(stripped)))
    return trimmed


def _goes_on(text: str, begin: int, match: re.Match[str]) -> bool:
    """Whether a stop only ends an abbreviation or an initial: "St. Lawrence", "e.g. this"."""
    if match.group() != ".":
        return False
    following = text[match.end() : match.end() + 8].lstrip()
    if following[:1].islower():
        return True
    before = re.search(r"[^\W\d_]+$", text[max(begin, match.start() - 12) : match.start()])
    if before is None:
        return False
    word = before.group()
    return word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper())


def _common_prefix(a: str, a_start: int, b: str, b_start: int, longest: int) -> int:
    """Length of the common beginning of a[a_start:] and b[b_start:], at most `longest`."""
    low, high = 0, longest
    while low < high:
        middle = (low + high + 1) // 2
        if a[a_start : a_start + middle] == b[b_start : b_start + middle]:
            low = middle
        else:
            high = middle - 1
    return low
