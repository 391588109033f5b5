"""A layout whose texts are numbers: header, document and closing around a tiny model's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

from heads.question_set import Question, QuestionedDocument
from tests.fakes import tokens

HEADER, CLOSING = [3, 4, 5], [8, 9]


class NumberTokenizer:
    """A token is a number in the text; any other word has a number of its own."""

    def __call__(self, text: str, **how: Any) -> dict[str, list[int]]:
        words = text.split()
        return {"input_ids": [int(w) if w.isdigit() else 3 + crc32(w.encode()) % 90 for w in words]}

    def decode(self, ids: list[int], **how: Any) -> str:
        return " ".join(str(i) for i in ids)


@dataclass
class NumberPrefix:
    token_ids: list[int]
    n_header: int
    n_document: int


class NumberLayout:
    tokenizer: Any = NumberTokenizer()

    def prefix(self, text: str) -> NumberPrefix:
        ids = self.tokenizer(text)["input_ids"]
        return NumberPrefix([*HEADER, *ids, *CLOSING], len(HEADER), len(ids))

    def tail(self, question: str) -> list[int]:
        return [6, *self.tokenizer(question)["input_ids"], 7]


def numbers(n: int, seed: int) -> str:
    return NumberTokenizer().decode(tokens(n, seed))


def document(n: int, seed: int, n_questions: int = 2) -> QuestionedDocument:
    """A document of n tokens with questions and answers of a few."""
    asked = [
        Question(numbers(4 + i, seed + i), (numbers(3 + i, seed + 9 + i),))
        for i in range(n_questions)
    ]
    return QuestionedDocument(f"document {seed}", numbers(n, seed), tuple(asked))
