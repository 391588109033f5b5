"""Questions and answers that the model thinks of itself, for documents that come without any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.batch import generate_together

if TYPE_CHECKING:
    from engine.cache import DocCache
    from engine.loader import LoadedModel

REQUEST = (
    "Write one question about {part} of the document that a reader might ask, "
    "and its short answer, in two lines."
)
PARTS = ("the beginning", "the middle", "the end")
# Given openings make greedy answers differ, and repeatable.
OPENINGS = ("Who", "What", "Where", "When", "Why", "How")
_NEW_TOKENS = 48


def self_asked(
    model: LoadedModel, layout: Any, cache: DocCache, closing: Sequence[int]
) -> list[tuple[str, str]]:
    """(question, answer) pairs about a document in a frozen cache.

    layout   see heads.recordings.Layout
    closing  tokens between the document and a question that the cache does not hold
    """
    plain = layout.tokenizer
    prompts, openings = [], []
    for part in PARTS:
        for opening in OPENINGS:
            asked = layout.tail(REQUEST.format(part=part))
            begun = plain(f"Question: {opening}", add_special_tokens=False)["input_ids"]
            prompts.append([*closing, *asked, *begun])
            openings.append(opening)
    views = [cache.view() for _ in prompts]
    answers = generate_together(model, views, prompts, _NEW_TOKENS)
    return [
        split(opening + plain.decode(ids, skip_special_tokens=True))
        for opening, ids in zip(openings, answers, strict=True)
    ]


def split(text: str) -> tuple[str, str]:
    """A generated "question? Answer: answer" as a pair; the answer may be missing."""
    question, _, rest = text.partition("\n")
    if "?" in question:
        question, _, behind = question.partition("?")
        question, rest = question + "?", behind + "\n" + rest
    rest = rest.strip().removeprefix("Answer:").strip()
    return question.strip(), rest.split("\n\n")[0].strip()
