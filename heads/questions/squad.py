"""The SQuAD layout: data -> paragraphs -> context and qas. Says nothing on how texts combine."""

from __future__ import annotations

from pathlib import Path

from heads.question_set import QuestionedDocument
from heads.questions.documents import make_questions, read_json
from heads.questions.errors import SourceMalformed


def articles(path: Path, name: str) -> list[list[QuestionedDocument]]:
    """The paragraphs of each article; questions marked as impossible have no answer and go.

    Raises SourceMissing, SourceMalformed
    """
    value = read_json(path)
    try:
        return [
            [
                QuestionedDocument(
                    name=f"{name}-{a:03d}-{p:03d}",
                    text=paragraph["context"].strip(),
                    questions=make_questions(
                        (qa["question"], [answer["text"] for answer in qa["answers"]])
                        for qa in paragraph["qas"]
                    ),
                )
                for p, paragraph in enumerate(article["paragraphs"])
            ]
            for a, article in enumerate(value["data"])
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceMalformed(f"{path} is not in the SQuAD layout: {error!r}.") from error
