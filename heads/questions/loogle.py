"""LooGLE: long articles with short dependency questions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from heads.question_set import QuestionedDocument
from heads.questions.documents import (
    make_questions,
    merge_same_context,
    read_json_lines,
)
from heads.questions.errors import SourceMalformed


def build(path: Path) -> list[QuestionedDocument]:
    """Every article of the file with its questions. Raises SourceMissing, SourceMalformed."""
    return merge_same_context(_articles(path))


def _articles(path: Path) -> Iterator[QuestionedDocument]:
    for number, row in enumerate(read_json_lines(path), 1):
        try:
            # The file holds the list as Python source in a string.
            pairs = ast.literal_eval(row["qa_pairs"])
            yield QuestionedDocument(
                name=f"loogle-{number:03d}",
                text=row["input"].strip(),
                questions=make_questions((pair["Q"], [pair["A"]]) for pair in pairs),
            )
        except (KeyError, TypeError, ValueError, SyntaxError, AttributeError) as error:
            raise SourceMalformed(f"Row {number} of {path} is not LooGLE's: {error!r}.") from error
