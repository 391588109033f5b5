"""What builders share: reading sources, choosing documents, writing the one format of all sets.

One line is {"id": str, "context": str, "questions": [{"question": str, "answers": [str, ...]}]}.
The answers of a question are alternatives; where all of several things are asked for, they stand
in one answer, joined by commas.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from heads.question_set import Question, QuestionedDocument
from heads.questions.errors import (
    BadRequest,
    NothingLeft,
    OutputUnwritable,
    SourceMalformed,
    SourceMissing,
    UnknownPart,
)

CHARS_PER_TOKEN = 4
Count = Callable[[str], int]
_T = TypeVar("_T")


def approx_tokens(document: QuestionedDocument) -> int:
    """Characters / 4: good enough to choose documents by length."""
    return len(document.text) // CHARS_PER_TOKEN


def as_json(document: QuestionedDocument) -> dict[str, Any]:
    """The document as one line of a set."""
    return {
        "id": document.name,
        "context": document.text,
        "questions": [{"question": q.text, "answers": list(q.answers)} for q in document.questions],
    }


def estimate_tokens(text: str) -> int:
    """Tokens of a text without a tokenizer: 1.35 a word, 0.85 a character where digits are in it.

    Tokenizers of our models take digits one by one, so a key of 36 hexadecimal characters is no
    word of 1.35 tokens. A hyphen parts words. Measured with Qwen2.5's tokenizer, the estimate is
    within 11 % on tales, meetings, papers and key-value records.
    """
    total = 0.0
    for word in text.split():
        has_digits = any(map(str.isdigit, word))
        total += 0.85 * len(word) if has_digits else 1.35 * (1 + word.count("-"))
    return round(total)


def words_of(text: str) -> list[str]:
    """The words without case and punctuation: what two copies of a text have in common."""
    return re.findall(r"\w+", text.lower())


def make_questions(pairs: Iterable[tuple[str, Iterable[str]]]) -> tuple[Question, ...]:
    """Questions from (question, answers); empty ones go, a question asked twice joins its answers.

    The order is that of the first occurrence.
    """
    answers_of: dict[str, dict[str, None]] = {}
    for question, answers in pairs:
        kept = [answer.strip() for answer in answers if answer.strip()]
        if question.strip() and kept:
            answers_of.setdefault(question.strip(), {}).update(dict.fromkeys(kept))
    return tuple(Question(question, tuple(answers)) for question, answers in answers_of.items())


def merge_same_context(documents: Iterable[QuestionedDocument]) -> list[QuestionedDocument]:
    """One document per text; texts that differ in case, spaces or punctuation alone are one.

    Documents without a question or a text go.
    """
    merged: dict[str, QuestionedDocument] = {}
    for document in documents:
        key = " ".join(words_of(document.text))
        if not key or not document.questions:
            continue
        first = merged.get(key)
        if first is None:
            merged[key] = document
        else:
            both = [(q.text, q.answers) for q in (*first.questions, *document.questions)]
            merged[key] = replace(first, questions=make_questions(both))
    return list(merged.values())


def choose(
    documents: Sequence[QuestionedDocument],
    *,
    n_documents: int | None = None,
    min_tokens: int | None = None,
    max_tokens: int | None = None,
    per_document: int | None = None,
    seed: int = 0,
) -> list[QuestionedDocument]:
    """Documents of the lengths asked for, then a seeded sample of them and of their questions.

    min_tokens, max_tokens  in characters / 4, both included
    Returns                 in the order given, also after sampling
    Raises                  BadRequest for a number below 1, a bound below 0 or bounds that cross;
                            NothingLeft if no document remains
    """
    for name, value in (("documents", n_documents), ("per-document", per_document)):
        if value is not None and value < 1:
            raise BadRequest(f"{name} {value} is below 1.")
    for name, bound in (("min-tokens", min_tokens), ("max-tokens", max_tokens)):
        if bound is not None and bound < 0:
            raise BadRequest(f"{name} {bound} is below 0.")
    low, high = min_tokens or 0, float("inf") if max_tokens is None else max_tokens
    if low > high:
        raise BadRequest(f"min-tokens {low} is above max-tokens {high}.")
    fitting = [document for document in documents if low <= approx_tokens(document) <= high]
    if not fitting:
        raise NothingLeft(
            f"None of {len(documents)} documents has {low} to {high} tokens.",
            "Choose other bounds.",
        )
    chosen = _sample(fitting, n_documents, f"documents:{seed}")
    return [
        replace(
            document,
            questions=tuple(
                _sample(document.questions, per_document, f"questions:{seed}:{document.name}")
            ),
        )
        for document in chosen
    ]


def write_set(documents: Iterable[QuestionedDocument], path: Path) -> None:
    """Write a set, whole or not at all; raises OutputUnwritable, or SourceMalformed for a text
    that is none.
    """
    if path.is_dir():
        raise OutputUnwritable(f"{path} is a folder.", "Name a file with --out.")
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            for document in documents:
                file.write(_line(document))
        aside.replace(path)
    except OSError as error:
        raise OutputUnwritable(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        with suppress(OSError):  # after a success it is gone
            aside.unlink()


def _line(document: QuestionedDocument) -> bytes:
    try:
        return (json.dumps(as_json(document), ensure_ascii=False) + "\n").encode("utf-8")
    except UnicodeEncodeError as error:
        raise SourceMalformed(
            f"{document.name} holds half a surrogate pair, which is no character."
        ) from error


def check_part(name: str, part: str | None, parts: Sequence[str]) -> str:
    """The part, the first one if none is named; raises UnknownPart with those there are."""
    if part is None:
        return parts[0]
    if part not in parts:
        raise UnknownPart(f"{name} has no part {part!r}.", f"Choose one of {', '.join(parts)}.")
    return part


def check_folder(folder: Path) -> Path:
    """The folder; raises SourceMissing if it is not there."""
    if not folder.is_dir():
        raise SourceMissing(f"There is no folder {folder}.", "Check the source's path.")
    return folder


def read_text(path: Path) -> str:
    """A UTF-8 file; raises SourceMissing or SourceMalformed."""
    if path.is_dir():
        raise SourceMissing(f"{path} is a folder.", "Name the file inside it that is meant.")
    if not path.is_file():
        raise SourceMissing(f"There is no file {path}.", "Check the source's path.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceMalformed(f"{path} is not UTF-8 text: {error.reason}.") from error


def read_json(path: Path) -> Any:
    """A JSON file; raises SourceMissing or SourceMalformed."""
    try:
        return json.loads(read_text(path))
    except RecursionError as error:
        raise SourceMalformed(f"{path} is nested too deeply to be read.") from error
    except ValueError as error:
        raise SourceMalformed(f"{path} is not JSON: {error}.") from error


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; raises SourceMissing or SourceMalformed with the line."""
    # str.splitlines would also cut at U+2028, which JSON strings may hold.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except RecursionError as error:
            raise SourceMalformed(f"Line {number} of {path} is nested too deeply.") from error
        except ValueError as error:
            raise SourceMalformed(f"Line {number} of {path} is not JSON: {error}.") from error
        if not isinstance(value, dict):
            raise SourceMalformed(f"Line {number} of {path} is not an object.")
        yield value


def a_text(value: Any) -> str:
    """The value if it is a text; raises TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where a text belongs")
    return value


def list_of_texts(value: Any) -> list[str]:
    """The value if it is a list of texts, which a text alone is not; raises TypeError."""
    if not isinstance(value, list):
        raise TypeError(f"{type(value).__name__} where a list of texts belongs")
    return [a_text(item) for item in value]


def _sample(items: Sequence[_T], n: int | None, seed: str) -> Sequence[_T]:
    """`n` items drawn with the seed, in their first order; all of them if n is None or larger."""
    if n is None or n >= len(items):
        return items
    return [items[i] for i in sorted(random.Random(seed).sample(range(len(items)), n))]
