"""L-Eval: one task a set. Rows about the same text are one document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from heads.question_set import QuestionedDocument
from heads.questions.documents import (
    a_text,
    check_folder,
    check_part,
    list_of_texts,
    make_questions,
    merge_same_context,
    read_json_lines,
)
from heads.questions.errors import SourceMalformed, SourceMissing

FOLDERS = ("Closed-ended-tasks", "Open-ended-tasks")
TASKS = (
    "coursera",
    "quality",
    "gsm100",
    "topic_retrieval_longchat",
    "scientific_qa",
    "multidoc_qa",
    "paper_assistant",
    "meeting_summ",
    "gov_report_summ",
)


def build(folder: Path, part: str | None = None) -> list[QuestionedDocument]:
    """The documents of a task; questions of rows with the same `input` come together.

    In gsm100 all rows share one input (worked examples), so it is one document.

    folder  with Closed-ended-tasks/TASK.jsonl and Open-ended-tasks/TASK.jsonl
    Raises  UnknownPart, SourceMissing, SourceMalformed
    """
    task = check_part("leval", part, TASKS)
    return merge_same_context(_rows(task_file(folder, task), task))


def task_file(folder: Path, task: str) -> Path:
    """The file of a task, whichever of the two folders holds it."""
    for name in FOLDERS:
        path = check_folder(folder) / name / f"{task}.jsonl"
        if path.is_file():
            return path
    raise SourceMissing(
        f"{folder} holds no {task}.jsonl in {' or '.join(FOLDERS)}.", "Check the source's path."
    )


def _rows(path: Path, task: str) -> Iterator[QuestionedDocument]:
    for number, row in enumerate(read_json_lines(path), 1):
        try:
            context = a_text(row["input"])
            asked, answers = list_of_texts(row["instructions"]), list_of_texts(row["outputs"])
            pairs = list(zip(asked, answers, strict=True))
        except (KeyError, TypeError, ValueError) as error:
            raise SourceMalformed(
                f"Row {number} of {path} lacks an input, instructions or outputs to match."
            ) from error
        yield QuestionedDocument(
            name=f"leval-{task}-{number:03d}",
            text=context.strip(),
            questions=make_questions((question, [answer]) for question, answer in pairs),
        )
