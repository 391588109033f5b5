"""COVID-QA: scientific articles in the SQuAD layout, one document each."""

from __future__ import annotations

from pathlib import Path

from heads.question_set import QuestionedDocument
from heads.questions import squad
from heads.questions.documents import merge_same_context


def build(path: Path) -> list[QuestionedDocument]:
    """Every article with its questions. Raises SourceMissing, SourceMalformed."""
    return merge_same_context(
        text for article in squad.articles(path, "covidqa") for text in article
    )
