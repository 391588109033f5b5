"""Estimates follow readings of the same kind; where there is none, this is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.plan import cost_line
from app.service import Reader
from app.speeds import kind_of
from engine.trunk import LONG_TEXT_TOKENS
from tests.unit.app.tiny_reader import BOOK, SETTINGS

GUESS = "a guess"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.txt"
    path.write_text(BOOK.replace("wolves", "owls"), encoding="utf-8")
    return path


def test_a_reading_with_other_chunks_says_nothing_of_the_next(
    reader: Reader, book: Path, other: Path
) -> None:
    first = reader.plan(other)
    assert GUESS in cost_line(first)
    reader.open(book, settings=replace(SETTINGS, chunk_tokens=64))
    assert reader.plan(other).seconds == first.seconds


def test_a_reading_of_the_same_kind_is_followed(reader: Reader, book: Path, other: Path) -> None:
    session = reader.open(book)
    plan = reader.plan(other)
    n_read = plan.n_tokens + session.report.prefill_tokens - session.record.n_tokens
    assert plan.seconds == pytest.approx(n_read / session.report.prefill_tok_s)
    assert GUESS not in cost_line(plan)


@pytest.mark.parametrize("packs", [True, False])
def test_where_long_texts_are_read_from_packed_weights_short_ones_do_not_tell_of_them(
    packs: bool,
) -> None:
    def kind(n_tokens: int) -> str:
        model = SimpleNamespace(name="m", weights="fp32", device="cpu", reads_packed=packs)
        prefix = SimpleNamespace(token_ids=[0] * n_tokens)
        job: Any = SimpleNamespace(model=model, settings=SETTINGS, prefix=prefix)
        return kind_of(job)

    assert (kind(LONG_TEXT_TOKENS - 1) != kind(LONG_TEXT_TOKENS)) == packs
    assert kind(LONG_TEXT_TOKENS) == kind(9 * LONG_TEXT_TOKENS)


def test_a_short_reading_tells_nothing(reader: Reader, tmp_path: Path, other: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text(BOOK[:900], encoding="utf-8")
    first = reader.plan(other)
    reader.open(short)
    assert reader.plan(other).seconds == first.seconds


def test_a_file_of_speeds_that_makes_no_sense_is_as_none(reader: Reader, other: Path) -> None:
    (reader.paths.root / "speeds.json").write_text('{"x": [], "tiny', encoding="utf-8")
    assert GUESS in cost_line(reader.plan(other))
