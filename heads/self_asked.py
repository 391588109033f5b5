"""Questions and answers that the model thinks of itself, for documents that come without any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.batch import generate_together

if TYPE_CHECKING:
    from engine.cache import DocCache
    from engine.loader import LoadedModel

REQUEST = "Write one short question about {part} of the document that a reader might ask."
PARTS = ("the beginning", "the middle", "the end")
# Given openings make greedy answers differ, and repeatable.
OPENINGS = ("Who", "What", "Where", "When", "Why", "How")
_QUESTION_TOKENS = 32
_ANSWER_TOKENS = 32


def self_asked(
    model: LoadedModel, layout: Any, cache: DocCache, closing: Sequence[int]
) -> list[tuple[str, str]]:
    """Different (question, answer) pairs about a document in a frozen cache.

    layout   see heads.layout.Layout
    closing  tokens between the document and a question that the cache does not hold
    """
    plain = layout.tokenizer

    def answered(prompts: list[list[int]], n_tokens: int) -> list[str]:
        views = [cache.view() for _ in prompts]
        ids = generate_together(model, views, prompts, n_tokens)
        return [plain.decode(one, skip_special_tokens=True).strip() for one in ids]

    begun = []
    for part in PARTS:
        asked = [*closing, *layout.tail(REQUEST.format(part=part))]
        begun += [(o, [*asked, *_ids(plain, f"Question: {o}")]) for o in OPENINGS]
    endings = answered([prompt for _, prompt in begun], _QUESTION_TOKENS)
    questions = list(
        dict.fromkeys(
            one_question(f"{opening} {ending}")
            for (opening, _), ending in zip(begun, endings, strict=True)
        )
    )
    answers = answered([[*closing, *layout.tail(q)] for q in questions], _ANSWER_TOKENS)
    return list(zip(questions, answers, strict=True))


def one_question(text: str) -> str:
    """The first question of a generated text: its first line, up to the question mark."""
    line = text.strip().splitlines()[0]
    question, mark, _ = line.partition("?")
    return question + mark


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
