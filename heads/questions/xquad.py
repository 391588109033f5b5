"""XQuAD: short paragraphs in the SQuAD layout, packed into documents of any length."""

from __future__ import annotations

import random
from pathlib import Path

from heads.question_set import QuestionedDocument
from heads.questions import squad
from heads.questions.documents import (
    Count,
    estimate_tokens,
    make_questions,
    merge_same_context,
)
from heads.questions.errors import BadRequest


def build(
    path: Path, tokens: int | None = None, seed: int = 0, count: Count = estimate_tokens
) -> list[QuestionedDocument]:
    """One document an article; with `tokens`, paragraphs of all articles in seeded order.

    tokens  a document is closed before the paragraph that would pass it; each paragraph is used
            once, so the last document is shorter
    Raises  SourceMissing, SourceMalformed, BadRequest
    """
    articles = squad.articles(path, "xquad")
    if tokens is None:
        joined = [
            _join(paragraphs, f"xquad-{i:03d}")
            for i, paragraphs in enumerate(articles)
            if paragraphs
        ]
        return merge_same_context(joined)
    if tokens < 1:
        raise BadRequest(f"tokens {tokens} is below 1.")
    paragraphs = merge_same_context(text for article in articles for text in article)
    random.Random(f"xquad:{seed}").shuffle(paragraphs)
    packs: list[list[QuestionedDocument]] = []
    room = 0
    for paragraph in paragraphs:
        size = count(paragraph.text)
        if size > room:
            packs.append([])
            room = tokens
        packs[-1].append(paragraph)
        room -= size
    return [_join(pack, f"xquad-{tokens}-{seed}-{i:03d}") for i, pack in enumerate(packs)]


def _join(paragraphs: list[QuestionedDocument], name: str) -> QuestionedDocument:
    return QuestionedDocument(
        name=name,
        text="\n\n".join(paragraph.text for paragraph in paragraphs),
        questions=make_questions((q.text, q.answers) for p in paragraphs for q in p.questions),
    )
