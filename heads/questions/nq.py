"""NQ-open from lost in the middle: gold passages among gold passages of other questions."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from heads.question_set import QuestionedDocument
from heads.questions.documents import (
    Count,
    a_text,
    estimate_tokens,
    list_of_texts,
    make_questions,
    read_json_lines,
    words_of,
)
from heads.questions.errors import BadRequest, NothingLeft, SourceMalformed

TOKENS = 4096
QUESTIONS = 8


@dataclass(frozen=True)
class _Row:
    question: str
    answers: tuple[str, ...]
    title: str
    passage: str


def build(
    path: Path,
    tokens: int | None = None,
    n_documents: int | None = None,
    per_document: int | None = None,
    seed: int = 0,
    count: Count = estimate_tokens,
) -> list[QuestionedDocument]:
    """Documents of numbered passages; each asks about `per_document` of them, none asked twice.

    tokens       length of a document; passages are added while they fit
    n_documents  at most; no more than the rows allow without asking a question twice
    Raises       SourceMissing, SourceMalformed, BadRequest, NothingLeft
    """
    tokens = TOKENS if tokens is None else tokens
    n_asked = QUESTIONS if per_document is None else per_document
    if n_asked < 1:
        raise BadRequest(f"per-document {n_asked} is below 1.")
    rows = _rows(path)
    random.Random(f"nq:{seed}").shuffle(rows)
    possible = len(rows) // n_asked
    if possible == 0:
        raise NothingLeft(f"{path} has {len(rows)} usable rows, {n_asked} are asked for.")
    return [
        _document(rows, i * n_asked, n_asked, tokens, count, f"nq-{tokens}-{seed}-{i:03d}")
        for i in range(min(possible, n_documents or possible))
    ]


def _document(
    rows: list[_Row], first: int, n_asked: int, tokens: int, count: Count, name: str
) -> QuestionedDocument:
    draw = random.Random(name)
    asked = rows[first : first + n_asked]
    others = rows[:first] + rows[first + n_asked :]
    draw.shuffle(others)
    chosen = list(asked)
    room = tokens - sum(count(_passage(0, row)) for row in asked)
    if room < 0:
        raise BadRequest(
            f"tokens {tokens} is below the {tokens - room} of {n_asked} passages.",
            "Ask for more tokens or fewer questions per document.",
        )
    for row in others:
        size = count(_passage(0, row))
        if size <= room:
            chosen.append(row)
            room -= size
    draw.shuffle(chosen)
    return QuestionedDocument(
        name=name,
        text="\n\n".join(_passage(i, row) for i, row in enumerate(chosen, 1)),
        questions=make_questions((f"{row.question}?", row.answers) for row in asked),
    )


def _passage(number: int, row: _Row) -> str:
    return f"Document [{number}] (Title: {row.title}) {row.passage}"


def _rows(path: Path) -> list[_Row]:
    """Rows whose passage holds an answer; of several with one passage, the first."""
    found: dict[str, _Row] = {}
    for number, raw in enumerate(read_json_lines(path), 1):
        try:
            gold = next(passage for passage in raw["ctxs"] if passage.get("isgold", True))
            row = _Row(
                question=raw["question"].strip().rstrip("?"),
                answers=tuple(list_of_texts(raw["answers"])),
                title=a_text(gold["title"]),
                passage=gold["text"].strip(),
            )
        except (KeyError, TypeError, AttributeError, StopIteration) as error:
            raise SourceMalformed(f"Row {number} of {path} is not NQ's: {error!r}.") from error
        words = f" {' '.join(words_of(row.passage))} "
        if any(f" {' '.join(words_of(answer))} " in words for answer in row.answers):
            found.setdefault(words, row)
    return list(found.values())
