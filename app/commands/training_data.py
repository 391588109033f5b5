"""What heads are trained on: question sets as they are, documents of any kind, folders of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands.common import CommandFailed, say
from app.desk.words import count

if TYPE_CHECKING:
    from heads.question_set import QuestionedDocument


def training_documents(
    paths: Sequence[Path], max_documents: int | None = None
) -> list[QuestionedDocument]:
    """All documents of files and folders, of each question set the first max_documents.

    What cannot be read in a folder is said and left out; a file that was named itself, or a folder
    without anything, ends the command. Copies of one text become one document: else what teaches
    could be held out as well.
    """
    found: list[QuestionedDocument] = []
    for path in paths:
        if path.is_dir():
            found += _of_folder(path, max_documents)
        else:
            found += _of_file(path, max_documents, named=True)
    return _each_text_once(found)


def _each_text_once(documents: Sequence[QuestionedDocument]) -> list[QuestionedDocument]:
    """The first document of every text, with the questions of its copies; says how many went.

    Texts that differ in their blanks and line ends alone are the same.
    """
    from heads.training import is_first_process

    once: dict[str, QuestionedDocument] = {}
    for document in documents:
        text = " ".join(document.text.split())
        first = once.setdefault(text, document)
        new = tuple(q for q in document.questions if q not in first.questions)
        once[text] = replace(first, questions=first.questions + new)
    n_copies = len(documents) - len(once)
    if n_copies and is_first_process():
        say(
            f"{count(n_copies, 'document')} left out: copies of others, which have their questions."
        )
    return list(once.values())


def _of_folder(folder: Path, max_documents: int | None) -> list[QuestionedDocument]:
    from app.messages import EXIT_DOCUMENT

    inside = sorted(path for path in folder.rglob("*") if path.is_file())
    found = [read for file in inside for read in _of_file(file, max_documents, named=False)]
    if not found:
        say(f"longread: {folder}: no document in it can be read.")
        raise CommandFailed(EXIT_DOCUMENT)
    return found


def _of_file(file: Path, max_documents: int | None, *, named: bool) -> list[QuestionedDocument]:
    from app.messages import explain
    from heads.training import is_first_process

    try:
        return list(_read(file, max_documents))
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        if named:
            say(f"longread: {file}: {message}")
            raise CommandFailed(message.exit_code) from error
        if is_first_process():
            say(f"Left out: {file}: {message.cause}")
        return []


def _read(file: Path, max_documents: int | None) -> Iterator[QuestionedDocument]:
    from heads.question_set import QuestionedDocument, read_question_set
    from ingest import open_document

    if file.suffix == ".jsonl":
        yield from read_question_set(file, max_documents)
    else:
        yield QuestionedDocument(file.name, open_document(file).text, ())
