"""What heads are taught through answers: documents recorded whole, and questions about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import InvalidSetting
from heads.layout import Layout, plain_ids
from heads.question_set import QuestionedDocument

HELD_EVERY = 8  # every eighth document is only looked at
ANSWER_TOKENS = 48  # of a long answer, the beginning: what a step's memory has room for


@dataclass(frozen=True)
class Lesson:
    """A document that was recorded with everything kept, and questions about it.

    asked  per question the tokens after the recorded ones, up to where the answer begins, and
           those of the answer
    """

    recording: Path
    asked: tuple[tuple[list[int], list[int]], ...]


@dataclass(frozen=True)
class Lessons:
    """Documents that teach, and those that are only looked at."""

    taught: list[Lesson]
    held_out: list[Lesson]


def is_held_out(number: int) -> bool:
    """Whether a training only looks at its document of this number, from 0."""
    return number % HELD_EVERY == HELD_EVERY - 1


def lessons_of(
    layout: Layout,
    documents: Sequence[QuestionedDocument],
    paths: Sequence[Path],
    max_tokens: int,
) -> Lessons:
    """The questions of every document that is recorded whole, with the path of its recording."""
    found = Lessons([], [])
    for number, (document, path) in enumerate(zip(documents, paths, strict=True)):
        prefix = layout.prefix(document.text)
        n_whole = prefix.n_header + prefix.n_document
        if n_whole > max_tokens:
            continue
        closing = prefix.token_ids[n_whole:]
        pairs = [
            ([*closing, *layout.tail(q.text)], _answer_ids(layout, q.answers[0]))
            for q in document.questions
        ]
        asked = tuple((tail, answer) for tail, answer in pairs if answer)
        if asked:
            place = found.held_out if is_held_out(number) else found.taught
            place.append(Lesson(path, asked))
    return found


def _answer_ids(layout: Layout, answer: str) -> list[int]:
    return plain_ids(layout.tokenizer, answer)[:ANSWER_TOKENS]


def check_lessons(lessons: Sequence[Lesson]) -> None:
    """Raises InvalidSetting if there is nothing to learn from."""
    if not lessons:
        raise InvalidSetting(
            "No document that is read whole comes with questions to answer.",
            "Give question sets, a larger --max-tokens, or leave out --answer-steps.",
        )
