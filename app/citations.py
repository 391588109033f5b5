"""Citations from the text itself: which sentences of the document contain the answer's words.

A citation is *verified* only where a run of at least MIN_RUN_WORDS words of the answer, with
content of its own (not just an echo of the question), stands in the document and the passage
around it agrees with the rest of the answer's sentence (`app/agreement.py`), or where a passage
the answer puts in quotation marks stands there word for word, with the numbers and negations
beside it. Weaker evidence gives a citation that is not verified; no evidence gives none. Pages are
those on which the text was found: no page number is ever taken from the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from app.agreement import (
    Piece,
    negations_kept,
    negations_stand,
    numbers_stand,
    words_stand,
)
from app.textindex import (
    Run,
    Words,
    common_run,
    is_content,
    occurrences,
    sentence_ranges,
    word_weight,
)

if TYPE_CHECKING:
    from ingest import Document
    from ingest.document import Page

MIN_RUN_WORDS = 4
MIN_RUN_CONTENT = 2
MAX_CITATIONS = 6
MAX_QUOTE_CHARS = 320
WEAK_SHARE = 0.5  # of an answer sentence's content words, for an unverified citation
_NEARBY_CHARS = 400
_MAX_OCCURRENCES = 200
_MAX_COMPARED = 8  # of a sentence's runs, the strongest, are compared with it as a whole
_MARKS = '"\u201c\u201d\u201e\u00ab\u00bb\u300c\u300d\u300e\u300f'
_BETWEEN_MARKS = rf"(?!\s)([^{_MARKS}]{{1,600}})(?<!\s)"  # blanks: between two quotations
# A straight mark behind a digit is one of inches.
_QUOTED = re.compile(
    rf'(?:(?<!\d)"|[\u201c\u201e\u00ab\u00bb\u300c\u300e]){_BETWEEN_MARKS}["\u201d\u201c\u00bb\u00ab\u300d\u300f]'
)

_LIST_MARK = re.compile(r"^[ \t]*(?:[-*+\u2022\u2013\u2014]|\(?\d{1,3}[.)])[ \t]+", re.MULTILINE)

# (FTS5 query, most results) -> numbers of matching pages, the best first
PageSearch = Callable[[str, int], Sequence[int]]


@dataclass(frozen=True)
class Citation:
    """Where the document says it. quote is verbatim; label is the printed page or chapter."""

    page: int
    label: str
    quote: str
    verified: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Evidence:
    """A find: where in the answer it belongs, where in the document it stands, how strong it is."""

    answer_at: int
    start: int
    end: int
    verified: bool
    strength: float


class Witness:
    """Finds the sentences of one document that an answer rests on.

    pages    first and last page that were read; nothing outside is cited
    search   full-text search over the pages, for candidates of weak matches
    """

    def __init__(
        self,
        document: Document,
        pages: tuple[int, int] | None = None,
        search: PageSearch | None = None,
    ) -> None:
        first, last = pages or (1, len(document.pages))
        self.document = document
        self.pages = document.pages[first - 1 : last]
        self.search = search
        self.words = Words.of(document.text, self.pages[0].start, self.pages[-1].end)

    def cite(self, answer: str, question: str = "") -> list[Citation]:
        """Citations for an answer, verified ones first, each in the answer's order.

        `question` guards against an answer that merely repeats it, and helps short answers.
        """
        spoken, asked = Words.of(answer), Words.of(question)
        found = list(self._quoted(answer, spoken, asked))
        for start, end in _answer_sentences(answer):
            sentence = spoken.between(start, end)
            if not len(sentence):
                continue
            evidence = self._exact(Piece(answer, spoken, sentence), asked)
            if evidence is None and not any(
                e.verified and start <= e.answer_at < end for e in found
            ):
                evidence = self._weak(spoken, sentence, asked)
            if evidence is not None:
                found.append(evidence)
        return self._citations(found)

    # Exact evidence

    def _quoted(self, answer: str, spoken: Words, asked: Words) -> Iterable[_Evidence]:
        """Passages in quotation marks that stand in the document word for word."""
        known = set(asked.folded)
        for match in _QUOTED.finditer(answer):
            inside = spoken.between(*match.span(1))
            content = [w for w in spoken.folded[inside.start : inside.stop] if is_content(w)]
            if not content:
                continue
            places = []
            for at in occurrences(spoken, inside.start, inside.stop, self.words):
                places.append(common_run(spoken, inside.start, inside.stop, self.words, at))
                if len(places) >= _MAX_OCCURRENCES:
                    break
            runs = [run for run in places if run is not None]
            if not runs:
                continue
            # One quoted word proves a page only if it stands on that page alone.
            sure = len(inside) > 1 or len({self._page_of(run) for run in runs}) == 1
            sure = sure and not known.issuperset(content)  # what the question said proves nothing
            best = max(runs, key=lambda run: self._context(run, set(spoken.folded)))
            claim = _sentences_around(answer, spoken, match.start(), match.end())
            sure = sure and self._allows(claim, best)
            yield self._evidence(match.start(), best, sure, 10.0 + len(inside))

    def _exact(self, claim: Piece, asked: Words) -> _Evidence | None:
        """The strongest run of a sentence's words whose passage agrees, else the strongest."""
        runs = sorted(self._runs(claim, asked), key=lambda ranked: ranked[0], reverse=True)
        if not runs:
            return None
        sure = (pair for pair in runs[:_MAX_COMPARED] if self._bears_out(claim, pair[1], asked))
        agreeing = next(sure, None)
        rank, run = agreeing or runs[0]
        at = claim.words.starts[run.first]
        return self._evidence(at, run, agreeing is not None, rank[0])

    def _runs(self, claim: Piece, asked: Words) -> list[tuple[tuple[float, float], Run]]:
        """Runs of a sentence's words that stand in the document, each with its rank.

        Of runs that end at one place only the longest is given.
        """
        spoken, sentence = claim.words, claim.inside
        context = set(claim.folded()) | set(asked.folded)
        runs: dict[tuple[int, int], tuple[tuple[float, float], Run]] = {}
        longest = 0
        for first in sentence:
            last = _grow(spoken, first, sentence.stop)
            if last is None or sentence.stop - first <= longest:
                break
            for n, at in enumerate(occurrences(spoken, first, last, self.words)):
                if n >= _MAX_OCCURRENCES:
                    break
                run = common_run(spoken, first, sentence.stop, self.words, at)
                if run is None or not _is_evidence(spoken, run, asked):
                    continue
                longest = max(longest, run.last - run.first)
                rank = (_content_weight(spoken, run), self._context(run, context))
                runs.setdefault((run.last, run.found_last), (rank, run))
        return list(runs.values())

    # Agreement

    def _bears_out(self, claim: Piece, run: Run, asked: Words) -> bool:
        """Whether the passage around a run says what the whole sentence says."""
        start, end = self._place(run)
        passage, nearby = self._passage(start, end), self._nearby(start, end)
        return words_stand(claim, passage, nearby, asked) and self._allows(claim, run)

    def _allows(self, claim: Piece, run: Run) -> bool:
        """Whether numbers and negations of a sentence agree with the passage around a run."""
        start, end = self._place(run)
        passage = self._passage(start, end)
        return (
            numbers_stand(claim, passage)
            and negations_stand(claim, passage)
            and negations_kept(claim, passage, start, end)
        )

    def _passage(self, start: int, end: int) -> Piece:
        """The sentence(s) around a find, over page breaks, cut as a quote is."""
        text = self.document.text
        return Piece.of(text, *self._sentence_around(start, end, *self._read()))

    def _nearby(self, start: int, end: int) -> Piece:
        """What stands around a find on the pages that it touches."""
        first, last = self.document.page_at(start), self.document.page_at(end - 1)
        left = max(first.start, start - _NEARBY_CHARS)
        return Piece.of(self.document.text, left, min(last.end, end + _NEARBY_CHARS))

    def _read(self) -> tuple[int, int]:
        """Character range of the pages that were read."""
        return self.pages[0].start, self.pages[-1].end

    def _context(self, run: Run, words: set[str]) -> float:
        """How many of these content words stand near a run: tells equal runs apart."""
        middle = self.words.starts[run.found_first]
        page = self.document.page_at(middle)
        near = self.words.between(
            max(page.start, middle - _NEARBY_CHARS), min(page.end, middle + _NEARBY_CHARS)
        )
        return len({w for w in self.words.folded[near.start : near.stop] if is_content(w)} & words)

    # Weak evidence

    def _weak(self, spoken: Words, sentence: range, asked: Words) -> _Evidence | None:
        """The document's sentence that shares most content words with the answer's sentence."""
        answer_words = {w for w in spoken.folded[sentence.start : sentence.stop] if is_content(w)}
        question_words = {w for w in asked.folded if is_content(w)}
        # Words the question did not bring along are what the answer adds.
        own = answer_words - question_words
        if not own:
            return None
        best: tuple[float, int, int] | None = None
        for page in self._candidate_pages(own | question_words, own):
            for start, end in sentence_ranges(self.document.text, page.start, page.end):
                inside = self.words.between(start, end)
                there = set(self.words.folded[inside.start : inside.stop])
                shared = len(own & there) / len(own)
                if shared < WEAK_SHARE or not _enough(own, there, question_words):
                    continue
                strength = shared + 0.3 * _share(question_words, there)
                if best is None or strength > best[0]:
                    best = (strength, start, end)
        if best is None:
            return None
        return _Evidence(spoken.starts[sentence.start], best[1], best[2], False, best[0])

    def _candidate_pages(self, words: set[str], needed: set[str]) -> list[Any]:
        """Pages that may hold the sentence: by full-text search, else all that were read."""
        if self.search is not None:
            numbers = self.search(_any_of(words), 12)
            also = self.search(_any_of(needed), 6) if needed != words else ()
            chosen = {*numbers, *also}
            pages = [page for page in self.pages if page.number in chosen]
            if pages:
                return pages
        return list(self.pages)

    # From evidence to citations

    def _page_of(self, run: Run) -> int:
        return self.document.page_at(self.words.starts[run.found_first]).number

    def _evidence(self, answer_at: int, run: Run, verified: bool, strength: float) -> _Evidence:
        return _Evidence(answer_at, *self._place(run), verified, strength)

    def _place(self, run: Run) -> tuple[int, int]:
        """Character range of a run in the document."""
        return self.words.starts[run.found_first], self.words.ends[run.found_last - 1]

    def _citations(self, found: list[_Evidence]) -> list[Citation]:
        """Widen each find to its sentence, drop repetitions, verified first."""
        citations: list[Citation] = []
        taken: list[tuple[int, int]] = []
        for evidence in sorted(found, key=lambda e: (not e.verified, e.answer_at, -e.strength)):
            page, start, end = self._largest_part(evidence.start, evidence.end)
            start, end = self._sentence_around(start, end, page.start, page.end)
            if any(start < right and left < end for left, right in taken):
                continue
            taken.append((start, end))
            quote = self.document.text[start:end]
            citations.append(Citation(page.number, page.label, quote, evidence.verified))
            if len(citations) == MAX_CITATIONS:
                break
        return citations

    def _largest_part(self, start: int, end: int) -> tuple[Page, int, int]:
        """The page that holds most of a find's content words, the first of equals, and its part."""
        parts = []
        for page in self.document.pages_between(start, end):
            left, right = max(start, page.start), min(end, page.end)
            inside = self.words.between(left, right)
            words = self.words.folded[inside.start : inside.stop]
            parts.append((_weight(filter(is_content, words)), page, left, right))
        _, page, left, right = max(parts, key=lambda part: part[0])
        piece = self.document.text[left:right]
        return page, right - len(piece.lstrip()), left + len(piece.rstrip())

    def _sentence_around(self, start: int, end: int, low: int, high: int) -> tuple[int, int]:
        """The sentence(s) in text[low:high] around a find, cut to MAX_QUOTE_CHARS about it."""
        left, right = start, end
        near = max(low, start - MAX_QUOTE_CHARS), min(high, end + MAX_QUOTE_CHARS)
        for first, last in sentence_ranges(self.document.text, *near):
            if first < end and start < last:
                left, right = min(left, first), max(right, last)
        if right - left <= MAX_QUOTE_CHARS:
            return left, right
        room = max(0, MAX_QUOTE_CHARS - (end - start)) // 2
        inside = self.words.between(max(left, start - room), min(right, end + room))
        if not len(inside):
            return start, end
        return (
            min(start, self.words.starts[inside.start]),
            max(end, self.words.ends[inside.stop - 1]),
        )


def _answer_sentences(answer: str) -> list[tuple[int, int]]:
    """Character ranges of an answer's sentences; each item of a list is one, without its mark."""
    marks = [match.span() for match in _LIST_MARK.finditer(answer)]
    starts = [0, *(end for _, end in marks)]
    ends = [*(start for start, _ in marks), len(answer)]
    return [
        sentence
        for start, end in zip(starts, ends, strict=True)
        for sentence in sentence_ranges(answer, start, end)
    ]


def _sentences_around(answer: str, spoken: Words, start: int, end: int) -> Piece:
    """The answer's sentence(s) that answer[start:end] belongs to."""
    touched = [
        (left, right) for left, right in _answer_sentences(answer) if left < end and start < right
    ]
    return Piece(answer, spoken, spoken.between(touched[0][0], touched[-1][1]))


def _grow(words: Words, first: int, stop: int) -> int | None:
    """End of the shortest run from `first` that is long enough to count, or None."""
    weight = 0.0
    for index in range(first, stop):
        weight += word_weight(words.folded[index])
        if weight >= MIN_RUN_WORDS:
            return index + 1
    return None


def _content_weight(words: Words, run: Run) -> float:
    inside = words.folded[run.first : run.last]
    return sum(word_weight(w) for w in inside if is_content(w)) + 0.01 * len(inside)


def _is_evidence(spoken: Words, run: Run, asked: Words) -> bool:
    """Long enough, with content, and not merely an echo of the question.

    Beside a single word that the question did not bring, the run must be long without the little
    words at its ends: "scarlet letter, and it" proves nothing about the letter of the question.
    """
    inside = spoken.folded[run.first : run.last]
    content = [i for i, w in enumerate(inside) if is_content(w)]
    if _weight(inside) < MIN_RUN_WORDS or _weight(inside[i] for i in content) < MIN_RUN_CONTENT:
        return False
    known = set(asked.folded)
    own = _weight(inside[i] for i in content if inside[i] not in known)
    if own == 0 or own >= MIN_RUN_CONTENT:
        return own > 0
    return _weight(inside[content[0] : content[-1] + 1]) + 1 >= MIN_RUN_WORDS


def _weight(words: Iterable[str]) -> float:
    return sum(map(word_weight, words))


def _enough(own: set[str], there: set[str], question_words: set[str]) -> bool:
    """Two shared words of the answer's own, or one with the question's words around it."""
    shared = own & there
    if len(shared) >= 2:
        return True
    return len(shared) == 1 and len(own) == 1 and bool(question_words & there)


def _share(words: set[str], there: set[str]) -> float:
    return len(words & there) / len(words) if words else 0.0


def _any_of(words: set[str]) -> str:
    """An FTS5 query for any of these folded words; quoted, so that none is read as syntax."""
    return " OR ".join(f'"{word}"' for word in sorted(words))
