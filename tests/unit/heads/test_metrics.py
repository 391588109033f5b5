"""The two measures on answers whose marks can be counted by hand."""

from __future__ import annotations

import pytest

from heads.metrics import answer_recall, token_f1


@pytest.mark.parametrize(
    ("prediction", "answers", "f1", "recall"),
    [
        ("The Grey horse!", ["a grey horse"], 1.0, 1.0),
        ("grey", ["a grey horse"], 2 / 3, 1 / 2),
        ("a very old grey horse", ["grey horse"], 2 * 2 / (4 + 2), 1.0),
        ("a cow", ["grey horse"], 0.0, 0.0),
        ("", ["grey horse"], 0.0, 0.0),
        ("grey horse", ["cow", "horse"], 2 / 3, 1.0),  # the best over the answers
        ("no no yes", ["no yes yes"], 2 * 2 / 6, 2 / 3),  # a token counts as often as it stands
        ("Ann's theatre", ["anns theatre"], 1.0, 1.0),  # articles go as whole words only
        ("", ["the"], 1.0, 1.0),
        ("horse", ["the"], 0.0, 0.0),
    ],
)
def test_marks(prediction: str, answers: list[str], f1: float, recall: float) -> None:
    assert token_f1(prediction, answers) == pytest.approx(f1)
    assert answer_recall(prediction, answers) == pytest.approx(recall)
