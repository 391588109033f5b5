"""The words of a document in a form that survives line breaks, hyphens, ligatures and case.

Letters are compared, not spacing: the text is reduced to one stream of folded letters and digits,
and every word remembers where it stands in the stream and in the text. Two passages match where
their streams are equal and both begin and end at word boundaries.

Numbers are compared as they are written: sign, decimal point and decimal comma count, the marks
between thousands do not, and two numbers beside each other never make a third.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

# Scripts written without spaces: each character counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f"


def _marks() -> str:
    """Accents, vowel signs and points of all scripts that part words by blanks."""
    blocks = chain(range(0x0300, 0x2100), range(0xA000, 0xAC00), range(0xFE20, 0xFE30))
    marks = (char for char in map(chr, blocks) if unicodedata.category(char) in ("Mn", "Mc"))
    return "".join(char for char in marks if not re.match(f"[{_UNSPACED}]", char))


_JOINERS = "\u00ad\u200c\u200d"  # soft hyphen; joiner and non-joiner of Arabic and Indic letters
_MARKS = _marks() + _JOINERS
# Points that a text may leave out: Hebrew vowels and accents, Arabic vowels, long strokes.
_POINTS = (
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    "\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0640"
)
_LETTER = rf"(?![{_UNSPACED}])[^\W_]"
_CURRENCY = "$\u00a3\u20ac\u00a5"
_MINUS = "-\u2212\u2013"
_THOUSANDS = "'\u2019\u00a0\u2009\u202f"  # between groups of three digits, and nowhere else
_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074-\u2079"
_POWER = rf"[\u207a\u207b]?[{_RAISED}]+|\^[{_MINUS}]?\d+"
# A dash is a sign and a point a decimal point only where nothing goes before them.
_SIGN = rf"(?<![\w.,%)\]{_MINUS}\u2014])[{_MINUS}](?=[{_CURRENCY}]?\.?\d)[{_CURRENCY}]?"
_POINT = r"(?<![\w.,;:!?%)\]\"'\u2019\u201d])\.(?=\d)"
_DIGITS = rf"\d+(?:[.,]\d+|[{_THOUSANDS}]\d{{3}}(?!\d))*"
_WORD = re.compile(
    rf"[{_UNSPACED}]"
    rf"|(?:(?:{_SIGN})?(?:{_POINT})?{_DIGITS}(?:{_POWER})?|{_LETTER})"
    rf"(?:[A-Za-z]+|{_LETTER}|[{_MARKS}]|(?<!\d)['\u2019](?=[^\W_])|['\u2019](?=[^\W\d_]))*"
)
_NUMBER = re.compile(rf"([{_MINUS}]?)[{_CURRENCY}]?(\.?{_DIGITS})({_POWER})?")
_GROUPED = re.compile(
    rf"[1-9]\d{{0,2}}(?:(?:(?:,\d{{3}})+|(?:[{_THOUSANDS}]\d{{3}})+)(?:\.\d+)?|(?:\.\d{{3}}){{2,}})"
)
_DROPPED = re.compile(f"['\u2019{_JOINERS}{_POINTS}]")
_BETWEEN_NUMBERS = "\x1f"  # in the stream, so that 5-7 is not 57
_CLOSING = "\"'\u2019\u201d)\\]\u300d\u300f\u00bb"
# Stops of Chinese and Japanese, Hindi, Arabic and Urdu, Khmer: a blank need not follow.
_FULL_STOPS = "\u3002\uff01\uff1f\u0964\u0965\u061f\u06d4\u17d4"
_SENTENCE_END = re.compile(rf"[.!?][{_CLOSING}]*(?=\s|$)|[{_FULL_STOPS}]+[{_CLOSING}]*|\n[ \t]*\n")

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
    """One word as it is compared: NFKC, case folded, without apostrophes, joiners and points."""
    if not word[:1].isalpha() and (number := _NUMBER.match(word)):
        sign, digits, power = number.groups()
        rest = _fold_letters(word[number.end() :])
        return _fold_number(sign, digits) + _fold_power(power or "") + rest
    return _fold_letters(word)


def _fold_letters(word: str) -> str:
    if word.isascii():
        return word.lower().replace("'", "")
    folded = unicodedata.normalize("NFKC", _DROPPED.sub("", word)).casefold()
    return unicodedata.normalize("NFKC", folded)


def _fold_number(sign: str, digits: str) -> str:
    """A number as it is compared: "-" for any minus, a digit before the point, no thousands."""
    if _GROUPED.fullmatch(digits):
        digits = _ungrouped(digits)
    elif digits.startswith("."):
        digits = "0" + digits
    return ("-" if sign else "") + unicodedata.normalize("NFKC", digits)


def _fold_power(power: str) -> str:
    """A power as it is compared, raised or not: "^5", "^-5"."""
    plain = unicodedata.normalize("NFKC", power).lstrip("^+")
    return "^" + re.sub(f"^[{_MINUS}]", "-", plain) if plain else ""


def _ungrouped(digits: str) -> str:
    """Digits without the marks between thousands; "1.200.000" has points for them."""
    marks = "." if digits.count(".") > 1 else "," + _THOUSANDS
    return "".join(char for char in digits if char not in marks)


def is_content(word: str) -> bool:
    """Whether a folded word can serve as evidence."""
    return word not in STOPWORDS and (len(word) > 1 or word.isdigit() or not word.isascii())


def word_weight(word: str) -> float:
    """What a folded word counts for in a run: a character of an unspaced script counts half."""
    return 0.5 if len(word) == 1 and re.match(f"[{_UNSPACED}]", word) else 1.0


@dataclass(frozen=True)
class Words:
    """The words of a text: folded forms, character ranges in the text, ranges in the stream."""

    folded: list[str]
    starts: list[int]
    ends: list[int]
    stream: str
    offsets: list[int]  # where each word begins in the stream
    stops: list[int]  # where it ends there

    def __len__(self) -> int:
        return len(self.folded)

    @classmethod
    def of(cls, text: str, start: int = 0, end: int | None = None) -> Words:
        """Split text[start:end] into words; character ranges count from the beginning of text."""
        folded: list[str] = []
        stream: list[str] = []
        starts, ends, offsets, stops = [], [], [], []
        at = 0
        for match in _WORD.finditer(text, start, len(text) if end is None else end):
            word = fold(match.group())
            if not word:
                continue
            if folded and word[0].isdigit() and folded[-1][-1].isdigit():
                stream.append(_BETWEEN_NUMBERS)
                at += len(_BETWEEN_NUMBERS)
            folded.append(word)
            stream.append(word)
            starts.append(match.start())
            ends.append(match.end())
            offsets.append(at)
            at += len(word)
            stops.append(at)
        return cls(folded, starts, ends, "".join(stream), offsets, stops)

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
    longest = min(part.stops[last - 1] - a, len(whole.stream) - b)
    n = _common_prefix(part.stream, a, whole.stream, b, longest)
    end = bisect_right(part.stops, a + n)
    while end > first:
        stop = b + part.stops[end - 1] - a
        found_last = bisect_left(whole.stops, stop)
        if whole.stops[found_last] == stop:
            return Run(first, end, at, found_last + 1)
        end -= 1
    return None


def occurrences(part: Words, first: int, last: int, whole: Words) -> Iterator[int]:
    """Word indices of `whole` at which part's words first..last-1 stand, word for boundary."""
    if last <= first:
        return
    needle = part.stream[part.offsets[first] : part.stops[last - 1]]
    found = whole.stream.find(needle)
    while found >= 0:
        word = bisect_left(whole.offsets, found)
        end = found + len(needle)
        begins = word < len(whole) and whole.offsets[word] == found
        if begins and whole.stops[bisect_left(whole.stops, end)] == end:
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
