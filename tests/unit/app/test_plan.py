"""A plan says what will be kept, also where the model's window holds less than the budget."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

from app.desk.cards import plan_card
from app.service import Reader
from tests.unit.app.tiny_reader import SETTINGS

COMPACT = replace(SETTINGS, positions="compact", budget_tokens=2500)


def test_a_budget_beyond_the_window_is_lowered_aloud(
    reader: Reader, book: Path, announced: list[str]
) -> None:
    plan = reader.plan(book, settings=COMPACT)
    assert plan.n_tokens > 2500
    found = reader.open(book, settings=COMPACT)
    assert plan.kept_tokens == round(found.cache.kept_tokens) < 2500
    assert str(plan.kept_tokens) in plan.lowered and "2500" in plan.lowered
    assert plan.lowered in announced and html.escape(plan.lowered) in plan_card(plan.to_dict())


def test_a_budget_that_the_window_holds_is_planned_as_it_is(reader: Reader, book: Path) -> None:
    for settings in (replace(COMPACT, budget_tokens=2000), replace(COMPACT, positions="original")):
        plan = reader.plan(book, settings=settings)
        assert plan.kept_tokens == settings.budget_tokens and plan.lowered == ""
