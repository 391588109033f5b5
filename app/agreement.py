"""Whether a passage of the document says what a sentence of an answer says, as far as words tell.

A run of common words does not make two sentences say the same: one number or one "not" turns the
sense around. So the sentence's numbers must stand in the passage, negations must agree both ways,
and nearly all that the sentence adds to the question must stand there too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

from app.textindex import Words, is_content, occurrences

MIN_OWN_SHARE = 0.75  # of the words that the question did not bring, in the passage itself

_NUMBER_WORDS = """
    zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    hundred hundreds thousand thousands million millions billion billions dozen half twice thrice
"""
NUMBER_WORDS = frozenset(_NUMBER_WORDS.split())

# Of what an answer is about, and not what it says: "The topic is", "According to the passage".
_ABOUT_TEXTS = """
    according article author book chapter context describe described describes discuss
    discusses document main mention mentioned mentions page paper paragraph passage
    section sentence stated states story summary text title topic
"""
ABOUT_TEXTS = frozenset(_ABOUT_TEXTS.split())

_CONTRACTED = """
    aint arent cannot cant couldnt darent didnt doesnt dont hadnt hasnt havent isnt mightnt mustnt
    neednt oughtnt shant shouldnt wasnt werent wont wouldnt
"""
CONTRACTED = frozenset(_CONTRACTED.split())

# English, German, French, Spanish, Italian, Portuguese, Dutch, Russian, Arabic, Hebrew, Hindi,
# Chinese; without words that mean something else in another of these.
_NEGATIONS = """
    not no never none nor neither nobody nothing nowhere without
    nicht nichts nie niemals niemand kein keine keinen keinem keiner keines ohne weder
    ne pas jamais rien aucun aucune sans nunca jam\u00e1s nadie ning\u00fan ninguno ninguna
    non nessuno nessuna niente senza n\u00e3o ningu\u00e9m nenhum nenhuma sem niet geen nooit zonder
    \u043d\u0435 \u043d\u0435\u0442 \u043d\u0438
    \u043d\u0438\u043a\u0442\u043e \u0431\u0435\u0437 \u043d\u0438\u043a\u043e\u0433\u0434\u0430
    \u0644\u0627 \u0644\u0645 \u0644\u0646
    \u0644\u064a\u0633 \u05dc\u05d0 \u05d0\u05d9\u05df
    \u0928\u0939\u0940\u0902 \u4e0d \u6ca1
    \u6c92 \u672a \u65e0
    \u7121
"""
NEGATIONS = CONTRACTED | frozenset(_NEGATIONS.split())

_ANSWERS_NO = re.compile(r"\s*[,.!;]")  # "No, he came": a word by itself, which negates nothing
_PART_END = re.compile("[;:\uff1b\uff1a]")
_CLAUSE_END = re.compile(r"[;:\uff1b\uff1a\uff0c]|,(?!\d)")


@dataclass(frozen=True)
class Piece:
    """Some of the words of a text, with the text that they stand in."""

    text: str
    words: Words
    inside: range

    @classmethod
    def of(cls, text: str, start: int, end: int) -> Piece:
        """All words of text[start:end]."""
        words = Words.of(text, start, end)
        return cls(text, words, range(len(words)))

    def folded(self) -> list[str]:
        """The words as they are compared."""
        return self.words.folded[self.inside.start : self.inside.stop]

    def count(self, other: Words, index: int) -> int:
        """How often a word of another text stands here; only for pieces of all their words."""
        return sum(1 for _ in occurrences(other, index, index + 1, self.words))

    def holds(self, other: Words, index: int) -> bool:
        """Whether a word of another text stands here; only for pieces of all their words."""
        return self.count(other, index) > 0


def is_number(word: str) -> bool:
    """Whether a folded word says how many: it has a digit, or is an English number word."""
    return word in NUMBER_WORDS or any(map(str.isdigit, word))


def numbers_stand(claim: Piece, passage: Piece) -> bool:
    """Whether every number of the claim stands in the passage, at least as often."""
    folded = claim.words.folded
    numbers = [index for index in claim.inside if is_number(folded[index])]
    said = Counter(folded[index] for index in numbers)
    return all(passage.count(claim.words, index) >= said[folded[index]] for index in numbers)


def words_stand(claim: Piece, passage: Piece, nearby: Piece, asked: Words) -> bool:
    """Whether the claim's words stand in the passage, or beside it as names for its "he".

    nearby   the passage and what is around it: every content word of the claim must stand there,
             but for those that speak of the text itself
    asked    the question: of the other words a share of MIN_OWN_SHARE must be in the passage
    """
    folded = claim.words.folded
    content = {
        folded[index]: index
        for index in claim.inside
        if is_content(folded[index]) and folded[index] not in ABOUT_TEXTS
    }
    if not all(nearby.holds(claim.words, index) for index in content.values()):
        return False
    known = set(asked.folded)
    own = [index for word, index in content.items() if word not in known]
    found = sum(passage.holds(claim.words, index) for index in own)
    return found >= MIN_OWN_SHARE * len(own)


def negations_stand(claim: Piece, passage: Piece) -> bool:
    """Whether every negation of the claim stands in the passage, among the same words."""
    aligned = {a for a, _ in _aligned(claim, passage)}
    return aligned.issuperset(_negations(claim))


def negations_kept(claim: Piece, passage: Piece, start: int, end: int) -> bool:
    """Whether the claim has every negation that bears on what it takes from the passage.

    start, end   character range of the find in the passage

    Before the find a negation bears on it up to a semicolon or colon ("It is not true, he said,
    that ..."), behind the last word in common up to a comma.
    """
    pairs = list(_aligned(claim, passage))
    shared = [b for _, b in pairs if is_content(passage.words.folded[b])]
    end = max([end, *(passage.words.ends[b] for b in shared)])
    inside = passage.words.between(*_part_around(passage, start, end))
    return {b for _, b in pairs}.issuperset(n for n in _negations(passage) if n in inside)


def _aligned(claim: Piece, passage: Piece) -> Iterator[tuple[int, int]]:
    """Pairs of word indices, in order, at which both have the same words."""
    matcher = SequenceMatcher(None, _uncontracted(claim), _uncontracted(passage), autojunk=False)
    for a, b, size in matcher.get_matching_blocks():
        for n in range(size):
            yield claim.inside[a + n], passage.inside[b + n]


def _uncontracted(piece: Piece) -> list[str]:
    """The folded words; "didn't" counts as "not"."""
    return ["not" if word in CONTRACTED else word for word in piece.folded()]


def _negations(piece: Piece) -> Iterator[int]:
    """Indices of the words that negate."""
    for index in piece.inside:
        word = piece.words.folded[index]
        if word not in NEGATIONS:
            continue
        if word == "no" and _ANSWERS_NO.match(piece.text, piece.words.ends[index]):
            continue
        yield index


def _part_around(passage: Piece, start: int, end: int) -> tuple[int, int]:
    """Character range from the semicolon or colon before a find to the next stop behind it."""
    left, right = passage.words.starts[0], passage.words.ends[-1]
    for match in _PART_END.finditer(passage.text, left, start):
        left = match.end()
    behind = _CLAUSE_END.search(passage.text, end, right)
    return left, behind.start() if behind else right
