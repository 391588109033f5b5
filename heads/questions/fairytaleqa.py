"""FairytaleQA: whole tales, their questions, and every distinct answer of the annotators."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from heads.question_set import QuestionedDocument
from heads.questions.documents import (
    check_folder,
    check_part,
    make_questions,
    merge_same_context,
    read_text,
)
from heads.questions.errors import SourceMalformed

PARTS = ("train", "val")
_STORY = "-story.csv"
_ANSWERS = tuple(f"answer{number}" for number in range(1, 7))


def build(folder: Path, part: str | None = None) -> list[QuestionedDocument]:
    """The tales of a part, in the order of their names.

    folder  with section-stories/PART/NAME-story.csv and questions/PART/NAME-questions.csv
    Raises  UnknownPart, SourceMissing, SourceMalformed
    """
    part = check_part("fairytaleqa", part, PARTS)
    stories = check_folder(folder / "section-stories" / part)
    return merge_same_context(
        _tale(folder, part, path.name.removesuffix(_STORY))
        for path in sorted(stories.glob(f"*{_STORY}"))
    )


def _tale(folder: Path, part: str, name: str) -> QuestionedDocument:
    sections = _rows(folder / "section-stories" / part / f"{name}{_STORY}", ("text",))
    questions = _rows(folder / "questions" / part / f"{name}-questions.csv", ("question",))
    return QuestionedDocument(
        name=f"fairytaleqa-{part}-{name}",
        text="\n\n".join(row["text"].strip() for row in sections if row["text"].strip()),
        questions=make_questions(
            (row["question"], [row.get(column) or "" for column in _ANSWERS]) for row in questions
        ),
    )


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    reader = csv.DictReader(read_text(path).splitlines(keepends=True))
    try:
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise SourceMalformed(f"{path} has no column {missing[0]!r}.")
        return [{key: value or "" for key, value in row.items() if key} for row in reader]
    except csv.Error as error:
        raise SourceMalformed(f"{path} is not a table: {error}.") from error
