"""The standing's own arithmetic: which documents it takes, and what it says of their questions."""

from __future__ import annotations

import pytest

from heads.question_set import Question, QuestionedDocument
from heads.results import DocumentResult, Row
from tests.bench.standing import (
    LONG,
    SETS,
    evenly,
    last_minus_first,
    row_line,
    spread,
    unread_article,
)


def document(n: int) -> QuestionedDocument:
    return QuestionedDocument(str(n), "x" * n, (Question("What?", ("That.",)),))


def row(scorer: str, nll: list[float]) -> Row:
    return Row(scorer, 0.25, None, None, nll, 1, 1.0, None, 0.0)


def test_documents_are_taken_from_the_middles_of_equal_parts() -> None:
    documents = [document(n) for n in range(10)]
    assert [d.name for d in evenly(documents, 2)] == ["2", "7"]
    assert [d.name for d in evenly(documents, 1)] == ["5"]
    assert evenly(documents[:3], 5) == documents[:3]


def test_articles_that_heads_were_trained_on_are_left_out() -> None:
    assert [n for n in range(36) if unread_article(f"covidqa-{n:03}-000")] == [19, 27, 31, 35]


def test_the_last_question_is_compared_with_the_first_of_the_same_cache_and_scorer() -> None:
    result = DocumentResult(
        "tale",
        9,
        3,
        row("full", [1.0, 9.0, 2.0]),
        [row("a", [1.5, 0.0, 4.5]), row("b", [1.0, 0.0, 2.0])],
    )
    assert last_minus_first([result], "a") == pytest.approx([2.0])
    assert last_minus_first([result, result], "b") == pytest.approx([0.0, 0.0])
    assert spread([1.0, 3.0]) == "+2.000 +- 1.000"
    assert spread([]) == "-"


def test_a_row_shows_its_goal_beside_it() -> None:
    found = {
        "scorer": "a",
        "kept": 0.0625,
        "nll_gap": 0.25,
        "nll_gap_se": None,
        "f1": 0.1,
        "f1_ratio": 0.5,
        "f1_ratio_se": 0.071,
        "bytes": 1234.0,
    }
    line = row_line(found, SETS["papers"].goals[0.0625])
    assert "+0.250" in line and "50 +- 7 %" in line and "(goal: at most 0.05, 98 %)" in line
    assert "goal" not in row_line(found, None)


def test_every_set_has_a_goal_for_every_share() -> None:
    for name, kind in SETS.items():
        assert set(kind.goals) >= set(kind.kept), name
    assert SETS["pairs"].kept == LONG
