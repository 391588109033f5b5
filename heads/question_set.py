"""A question set: documents with questions and their true answers, one JSON object a line.

{"context": str, "questions": [{"question": str, "answers": [str, ...]}, ...]}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import QuestionSetBad


@dataclass(frozen=True)
class Question:
    """A question and its true answers; likelihoods are those of the first."""

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class QuestionedDocument:
    """A text and what is asked of it.

    name  what it is called in its source; read from a file, where it stands there, for messages
    """

    name: str
    text: str
    questions: tuple[Question, ...]


def read_question_set(
    path: Path, max_documents: int | None = None, max_questions: int | None = None
) -> list[QuestionedDocument]:
    """The first documents of a file, with the first questions of each.

    Raises QuestionSetBad, naming the line and what is wrong with it; lines beyond max_documents
    are not looked at.
    """
    documents: list[QuestionedDocument] = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if max_documents is not None and len(documents) >= max_documents:
                    break
                if line.strip():
                    documents.append(_document(f"{path.name}, line {number}", line, max_questions))
    except OSError as problem:
        raise QuestionSetBad(f"{path} cannot be read: {problem.strerror}.") from problem
    except UnicodeDecodeError as problem:
        raise QuestionSetBad(f"{path} is not UTF-8 text.") from problem
    if not documents:
        raise QuestionSetBad(f"{path} holds no documents.")
    return documents


def _document(name: str, line: str, max_questions: int | None) -> QuestionedDocument:
    try:
        value = json.loads(line)
    except ValueError as problem:
        raise QuestionSetBad(f"{name} is not JSON: {problem}.") from problem
    except RecursionError as problem:
        raise QuestionSetBad(f"{name} is nested too deeply to be read.") from problem
    text = _text(value, "context", name)
    asked = value.get("questions")
    if not isinstance(asked, list) or not asked:
        raise QuestionSetBad(f"{name}: 'questions' is not a list of at least one question.")
    questions = [_question(item, name) for item in asked]
    return QuestionedDocument(name, text, tuple(questions[:max_questions]))


def _question(value: Any, name: str) -> Question:
    text = _text(value, "question", name)
    answers = value.get("answers")
    usable = isinstance(answers, list) and all(isinstance(a, str) and a.strip() for a in answers)
    if not usable or not answers:
        raise QuestionSetBad(f"{name}: 'answers' of '{text}' is not a list of texts.")
    for answer in answers:
        _check_letters(answer, f"{name}: 'answers' of '{text}'")
    return Question(text, tuple(answers))


def _text(value: Any, key: str, name: str) -> str:
    if not isinstance(value, dict):
        raise QuestionSetBad(f"{name}: there is {type(value).__name__} where an object belongs.")
    text = value.get(key)
    if not isinstance(text, str) or not text.strip():
        raise QuestionSetBad(f"{name}: '{key}' is missing or not a text.")
    _check_letters(text, f"{name}: '{key}'")
    return text


def _check_letters(text: str, where: str) -> None:
    """JSON can name half of a character, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise QuestionSetBad(
            f"{where} holds half a surrogate pair, which is no character."
        ) from problem
