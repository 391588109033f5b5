"""Lost in the middle: its key-value records, each file row one document."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from heads.question_set import QuestionedDocument
from heads.questions.documents import (
    list_of_texts,
    make_questions,
    merge_same_context,
    read_json_lines,
)
from heads.questions.errors import BadRequest, SourceMalformed

KEYS_ASKED = 5


def build(path: Path, per_document: int | None = None, seed: int = 0) -> list[QuestionedDocument]:
    """Each row's records as one JSON object, asked for seeded keys of it.

    per_document  keys asked for, KEYS_ASKED if None; one from each equal stretch of the records,
                  so that every depth is asked about
    Raises        SourceMissing, SourceMalformed, BadRequest
    """
    n_keys = KEYS_ASKED if per_document is None else per_document
    if n_keys < 1:
        raise BadRequest(f"per-document {n_keys} is below 1.")
    return merge_same_context(_documents(path, n_keys, seed))


def records_document(
    name: str, records: list[tuple[str, str]], n_keys: int, draw: random.Random
) -> QuestionedDocument:
    """Records as a JSON object with one pair a line, and questions for keys from all its depths."""
    lines = ",\n ".join(f'"{key}": "{value}"' for key, value in records)
    asked = [records[i] for i in spread(len(records), n_keys, draw)]
    draw.shuffle(asked)  # who takes the first question only must not always get a shallow one
    return QuestionedDocument(
        name=name,
        text=f"JSON data:\n{{{lines}}}",
        questions=make_questions(
            (f'What is the value of the key "{key}" in the JSON data?', [value])
            for key, value in asked
        ),
    )


def spread(n_items: int, n: int, draw: random.Random) -> list[int]:
    """`n` indices, one from each of n equal stretches of `n_items`; all if there are fewer."""
    if n >= n_items:
        return list(range(n_items))
    bounds = [i * n_items // n for i in range(n + 1)]
    return [draw.randrange(low, high) for low, high in pairwise(bounds)]


def _documents(path: Path, n_keys: int, seed: int) -> Iterator[QuestionedDocument]:
    for number, row in enumerate(read_json_lines(path), 1):
        try:
            pairs = [list_of_texts(pair) for pair in row["ordered_kv_records"]]
            records = [(key, value) for key, value in pairs]
        except (KeyError, TypeError, ValueError) as error:
            raise SourceMalformed(f"Row {number} of {path} has no ordered_kv_records.") from error
        draw = random.Random(f"kv:{seed}:{number}")
        yield records_document(f"kv{len(records)}-{number:03d}", records, n_keys, draw)
