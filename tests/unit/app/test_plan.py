"""A plan says what will be kept, also where the model's window holds less than the budget."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

import pytest

from app.desk.cards import plan_card
from app.plan import cost_line
from app.service import Reader
from engine.errors import PrefillStopped
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


def test_what_a_reading_takes_is_said_before_it_begins_and_not_at_a_return(
    reader: Reader, book: Path, announced: list[str]
) -> None:
    plan = reader.plan(book)
    reader.open(book)
    said = [text for text in announced if text.startswith("To be read: ")]
    assert said == [cost_line(plan)] and announced[0] == said[0]
    assert (
        f"{plan.n_tokens:,} tokens" in said[0] and "B kept in memory and on the disk (" in said[0]
    )
    announced.clear()
    assert reader.open(book).reused and not announced


def test_of_a_reading_that_was_cut_off_only_the_rest_is_announced(
    reader: Reader, book: Path, announced: list[str]
) -> None:
    whole = reader.plan(book)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 5

    with pytest.raises(PrefillStopped):
        reader.open(book, stop=stop)
    rest = reader.plan(book)
    assert whole.begun_tokens == 0
    assert rest.seconds is not None and whole.seconds is not None
    assert rest.seconds < whole.seconds
    announced.clear()
    session = reader.open(book)
    n_header = session.layout.prefix_of(session.document, (1, rest.n_pages)).n_header
    assert n_header > 0 and rest.begun_tokens == 5 * SETTINGS.chunk_tokens - n_header
    left = whole.n_tokens - rest.begun_tokens
    assert announced[0] == cost_line(rest)
    assert announced[0].startswith(f"To be read: the last {left:,} of {whole.n_tokens:,} tokens")
    assert f"{rest.begun_tokens:,} read before" in plan_card(rest.to_dict())
    assert "read before" not in plan_card(whole.to_dict())


def test_a_checkpoint_that_cannot_be_trusted_is_not_counted(reader: Reader, book: Path) -> None:
    partial = reader.paths.partial(reader.plan(book).session_id)
    partial.mkdir(parents=True)
    (partial / "manifest.json").write_text("{", encoding="utf-8")
    assert reader.plan(book).begun_tokens == 0


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.2, "1 s"), (61, "61 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_seconds_are_told_as_an_estimate(
    seconds: float, told: str, reader: Reader, book: Path
) -> None:
    plan = reader.plan(book)
    assert cost_line(replace(plan, seconds=seconds, guessed=False)).endswith(f", about {told}.")
    assert "None" not in cost_line(replace(plan, seconds=None))


def test_the_desk_says_that_a_guess_is_one(reader: Reader, book: Path) -> None:
    plan = reader.plan(book)
    guess, known = (replace(plan, seconds=60, guessed=guessed) for guessed in (True, False))
    assert "a guess" in plan_card(guess.to_dict()) and "a guess" not in plan_card(known.to_dict())
    assert "a guess" not in plan_card(replace(guess, seconds=None).to_dict())
