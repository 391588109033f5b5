"""Made documents of any length with known answers, after RULER (arXiv 2404.06654) and others.

Every document hangs on its task, length, seed and number alone. Lengths are in tokens as `count`
gives them, `estimate_tokens` if no tokenizer is at hand.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from heads.question_set import QuestionedDocument
from heads.questions.documents import (
    Count,
    check_part,
    estimate_tokens,
    make_questions,
)
from heads.questions.errors import BadRequest
from heads.questions.filler import (
    book_sentences,
    built_in_sentences,
    facts_at_depths,
    fill,
    largest,
)
from heads.questions.lost_in_the_middle import records_document

TOKENS = 4096
DOCUMENTS = 20
MIN_TOKENS = 512
# A pair is some 65 tokens and cannot be cut; the common words alone are some 450 tokens.
MIN_TOKENS_OF = {"pairs": 2048, "common": 1024}
ONE_QUESTION = ("passkey", "single", "common")
WITHOUT_FILLER = ("pairs", "common")  # their whole text is what is asked about
N_NEEDLES = 8
N_VALUES = 4
N_HOPS = 4
N_COMMON = 10
COMMON_TIMES = 10  # a common word stands ten times as often as another one

_FIRST = [
    "amber",
    "ancient",
    "bitter",
    "brave",
    "bright",
    "calm",
    "clever",
    "cold",
    "crimson",
    "curious",
    "distant",
    "early",
    "eager",
    "empty",
    "fancy",
    "fierce",
    "gentle",
    "golden",
    "grand",
    "hidden",
    "hollow",
    "humble",
    "jolly",
    "kind",
    "late",
    "lively",
    "lonely",
    "lucky",
    "mild",
    "noble",
    "open",
    "pale",
    "proud",
    "rapid",
    "royal",
    "sharp",
    "silent",
    "silver",
    "tender",
    "young",
]
_SECOND = [
    "anchor",
    "apple",
    "arrow",
    "beacon",
    "bell",
    "bottle",
    "branch",
    "button",
    "candle",
    "castle",
    "circle",
    "cloud",
    "copper",
    "corner",
    "desert",
    "dragon",
    "drum",
    "engine",
    "falcon",
    "feather",
    "flower",
    "forest",
    "harbor",
    "hammer",
    "island",
    "jacket",
    "kitten",
    "letter",
    "marble",
    "meadow",
    "mirror",
    "mountain",
    "needle",
    "ocean",
    "orange",
    "palace",
    "pencil",
    "pepper",
    "pillow",
    "planet",
    "pocket",
    "rabbit",
    "saddle",
    "shadow",
    "spoon",
    "statue",
    "summer",
    "temple",
    "tunnel",
    "violin",
]
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class _Frame:
    """What a task makes one document of."""

    name: str
    number: int
    tokens: int
    n_asked: int | None
    draw: random.Random
    sentences: Iterator[str]
    count: Count

    def depth(self) -> float:
        """Depths that cover 0..1 evenly over the documents, however many there are."""
        return (0.5 + self.number * _GOLDEN) % 1

    def hide(self, facts: list[tuple[float, str]]) -> str:
        """Filler of the asked length with the facts in it."""
        room = self.tokens - self.count(" ".join(fact for _, fact in facts))
        if room < self.tokens // 4:
            raise BadRequest(
                f"tokens {self.tokens} leave no room for {len(facts)} facts.",
                "Ask for more tokens or fewer questions per document.",
            )
        return facts_at_depths(fill(self.sentences, room, self.count), facts)


def build(
    task: str | None = None,
    tokens: int | None = None,
    n_documents: int | None = None,
    per_document: int | None = None,
    seed: int = 0,
    book: str | None = None,
    count: Count = estimate_tokens,
) -> list[QuestionedDocument]:
    """Documents of one task.

    task          one of TASKS, the first if None
    tokens        length of each, met within 5 %
    per_document  questions, None for the task's own number; not for ONE_QUESTION
    book          text to hide facts in, plain built-in sentences if None; not for WITHOUT_FILLER
    Raises        UnknownPart, BadRequest
    """
    task = check_part("synthetic", task, TASKS)
    tokens = TOKENS if tokens is None else tokens
    n_documents = DOCUMENTS if n_documents is None else n_documents
    least = MIN_TOKENS_OF.get(task, MIN_TOKENS)
    if tokens < least:
        raise BadRequest(f"tokens {tokens} is below {least}, the least for {task}.")
    for name, value in (("documents", n_documents), ("per-document", per_document)):
        if value is not None and value < 1:
            raise BadRequest(f"{name} {value} is below 1.")
    if per_document is not None and task in ONE_QUESTION:
        raise BadRequest(f"{task} has one question a document.", "Leave out --per-document.")
    if book is not None and task in WITHOUT_FILLER:
        raise BadRequest(f"{task} hides nothing in a text.", "Leave out --source.")
    made = []
    for number in range(n_documents):
        name = f"{task}-{tokens}-{seed}-{number:03d}"
        draw = random.Random(name)
        sentences = built_in_sentences(draw) if book is None else book_sentences(book, draw)
        made.append(
            _MAKERS[task](_Frame(name, number, tokens, per_document, draw, sentences, count))
        )
    return made


def _pairs(frame: _Frame) -> QuestionedDocument:
    """Key-value retrieval: a JSON object of random UUIDs, asked at every depth."""
    records: list[tuple[str, str]] = []
    n_asked = frame.n_asked or 5

    def document(n: int) -> QuestionedDocument:
        while len(records) < n:
            records.append((_uuid(frame.draw), _uuid(frame.draw)))
        return records_document(frame.name, records[:n], n_asked, random.Random(frame.name))

    n_records = largest(lambda n: frame.count(document(n).text) <= frame.tokens)
    if n_records < n_asked:
        raise BadRequest(f"{n_asked} questions per document, but only {n_records} pairs fit.")
    return document(n_records)


def _passkey(frame: _Frame) -> QuestionedDocument:
    """A number to remember (arXiv 2305.16300)."""
    key = _number(frame.draw, 5)
    fact = f"The pass key is {key}. Remember it. {key} is the pass key."
    return _document(
        frame, [(frame.depth(), fact)], [("What is the pass key mentioned in the text?", [key])]
    )


def _single(frame: _Frame) -> QuestionedDocument:
    """One needle."""
    (name,) = _names(frame.draw, 1)
    value = _number(frame.draw, 7)
    return _document(
        frame, [(frame.depth(), _magic(name, value))], [(_magic_question(name), [value])]
    )


def _multikey(frame: _Frame) -> QuestionedDocument:
    """Several needles with keys of their own; some are asked for, the others mislead."""
    n_asked = frame.n_asked or 4
    names = _names(frame.draw, max(N_NEEDLES, n_asked))
    values = _numbers(frame.draw, len(names))
    facts = [
        (frame.draw.random(), _magic(name, value))
        for name, value in zip(names, values, strict=True)
    ]
    asked = zip(names[:n_asked], values[:n_asked], strict=True)
    return _document(frame, facts, [(_magic_question(name), [value]) for name, value in asked])


def _multivalue(frame: _Frame) -> QuestionedDocument:
    """Keys with several values each, spread over the text; the answer is all of them."""
    names = _names(frame.draw, frame.n_asked or 2)
    facts: list[tuple[float, str]] = []
    asked: list[tuple[str, list[str]]] = []
    values = iter(_numbers(frame.draw, len(names) * N_VALUES))
    for name in names:
        mine = [next(values) for _ in range(N_VALUES)]
        depths = sorted(frame.draw.random() for _ in mine)
        facts += [
            (depth, f"One of the special magic numbers for {name} is: {value}.")
            for depth, value in zip(depths, mine, strict=True)
        ]
        question = f"What are all the special magic numbers for {name} mentioned in the text?"
        asked.append((question, [", ".join(mine)]))
    return _document(frame, facts, asked)


def _tracking(frame: _Frame) -> QuestionedDocument:
    """Chains of assignments in the order of the text; the answer is all variables of a chain."""
    n_chains = frame.n_asked or 2
    variables = iter(_variables(frame.draw, n_chains * (N_HOPS + 1)))
    facts: list[tuple[float, str]] = []
    asked: list[tuple[str, list[str]]] = []
    for value in _numbers(frame.draw, n_chains):
        chain = [next(variables) for _ in range(N_HOPS + 1)]
        sources = [value, *(f"VAR {name}" for name in chain)]
        depths = sorted(frame.draw.random() for _ in chain)
        facts += [
            (depth, f"VAR {name} = {source}.")
            for depth, name, source in zip(depths, chain, sources, strict=False)
        ]
        question = f"Which variables are assigned the value {value}, directly or through others?"
        asked.append((question, [", ".join(chain)]))
    return _document(frame, facts, asked)


def _common(frame: _Frame) -> QuestionedDocument:
    """A numbered list in which ten words stand ten times as often as all others."""
    pool = _names(frame.draw, len(_FIRST) * len(_SECOND))
    common, others = pool[:N_COMMON], pool[N_COMMON:]

    def listed(n_others: int, times: int) -> str:
        words = common * (COMMON_TIMES * times) + others[:n_others] * times
        random.Random(frame.name).shuffle(words)
        return "\n".join(f"{i}. {word}" for i, word in enumerate(words, 1))

    def fits(n_others: int, times: int) -> bool:
        return frame.count(listed(n_others, times)) <= frame.tokens

    # The fewest repeats with which the pool of words reaches the length.
    times = 1
    while fits(len(others), times):
        times += 1
    n_others = largest(lambda n: fits(n, times), len(others))
    if n_others < N_COMMON:
        raise BadRequest(f"tokens {frame.tokens} are too few for a list of common words.")
    question = f"What are the {N_COMMON} most common words in the list?"
    return QuestionedDocument(
        name=frame.name,
        text=listed(n_others, times),
        questions=make_questions([(question, [", ".join(common)])]),
    )


_MAKERS: dict[str, Callable[[_Frame], QuestionedDocument]] = {
    "pairs": _pairs,
    "passkey": _passkey,
    "single": _single,
    "multikey": _multikey,
    "multivalue": _multivalue,
    "tracking": _tracking,
    "common": _common,
}
TASKS = tuple(_MAKERS)


def _document(
    frame: _Frame, facts: list[tuple[float, str]], asked: list[tuple[str, list[str]]]
) -> QuestionedDocument:
    return QuestionedDocument(
        name=frame.name, text=frame.hide(facts), questions=make_questions(asked)
    )


def _magic(name: str, value: str) -> str:
    return f"The special magic number for {name} is: {value}."


def _magic_question(name: str) -> str:
    return f"What is the special magic number for {name} mentioned in the text?"


def _uuid(draw: random.Random) -> str:
    return str(uuid.UUID(int=draw.getrandbits(128), version=4))


def _number(draw: random.Random, digits: int) -> str:
    return str(draw.randrange(10 ** (digits - 1), 10**digits))


def _numbers(draw: random.Random, n: int) -> list[str]:
    return [str(value) for value in draw.sample(range(10**6, 10**7), n)]


def _names(draw: random.Random, n: int) -> list[str]:
    possible = len(_FIRST) * len(_SECOND)
    if n > possible:
        raise BadRequest(f"per-document {n} is above {possible}.")
    numbers = draw.sample(range(possible), n)
    return [f"{_FIRST[i // len(_SECOND)]}-{_SECOND[i % len(_SECOND)]}" for i in numbers]


def _variables(draw: random.Random, n: int) -> list[str]:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    found: dict[str, None] = {}
    while len(found) < n:
        found["".join(draw.choices(letters, k=5))] = None
    return list(found)
