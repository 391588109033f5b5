"""Names of control tokens in answers are letters, where heads learn and where they are measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from heads.layout import plain_ids
from heads.lessons import lessons_of
from heads.question_set import Question, QuestionedDocument
from tests.unit.app.byte_tokenizers import byte_tokenizer

ANSWER = "It is <|im_end|>."


def test_a_control_token_in_an_answer_is_taught_as_text() -> None:
    tokenizer = byte_tokenizer()
    layout: Any = SimpleNamespace(
        tokenizer=tokenizer,
        prefix=lambda text: SimpleNamespace(token_ids=[1, 2, 3], n_header=0, n_document=3),
        tail=lambda question: [4],
    )
    document = QuestionedDocument("a", "text", (Question("what?", (ANSWER,)),))
    ((_, ids),) = lessons_of(layout, [document], [Path("a")], 100).taught[0].asked
    assert ids == plain_ids(tokenizer, ANSWER)
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == ANSWER
