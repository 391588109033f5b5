"""A budget that nobody named: the model's own, and a sixteenth of a long document."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.preparing import own_budget
from app.service import Reader
from app.settings import LEAST_KEPT, ReadSettings, default_budget
from engine.errors import PrefillStopped
from tests.unit.app.tiny_reader import SETTINGS, use_tiny_model

UNNAMED = replace(SETTINGS, budget_tokens=None)
OWN = 60


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiny_model(monkeypatch)
    for place in ("app.preparing", "app.service"):
        monkeypatch.setattr(f"{place}.own_budget", lambda settings, model: OWN)


@pytest.mark.parametrize(
    ("own", "n_tokens", "window", "budget"),
    [(4096, 20_000, 32_768, 4096), (4096, 131_072, 32_768, 8192), (2048, 131_072, 8192, 2048)],
)
def test_a_long_document_has_a_sixteenth(own: int, n_tokens: int, window: int, budget: int) -> None:
    assert default_budget(own, n_tokens, window) == budget


@given(own=st.integers(1, 20_000), n=st.integers(1, 200_000), window=st.integers(64, 200_000))
def test_never_less_than_the_models_own_and_never_beyond_the_window(
    own: int, n: int, window: int
) -> None:
    budget = default_budget(own, n, window)
    assert budget == own or own < budget <= window // 4
    assert budget >= min(own, n) and (budget >= LEAST_KEPT * n or budget >= window // 4)


def test_it_is_what_a_document_is_read_with(reader: Reader, book: Path) -> None:
    found = reader.open(book, settings=UNNAMED)
    n_read = found.cache.n_seen
    assert n_read > OWN / LEAST_KEPT
    assert found.cache.kept_tokens == pytest.approx(LEAST_KEPT * n_read, abs=1)
    plan = reader.plan(book, settings=UNNAMED)
    assert plan.already_read and plan.budget_tokens == ceil(LEAST_KEPT * n_read)


def test_what_was_read_with_the_models_own_budget_serves_on(reader: Reader, book: Path) -> None:
    old = reader.open(book, settings=replace(SETTINGS, budget_tokens=OWN))
    reader.forget(old.record.id)
    assert reader.open(book, settings=UNNAMED).record.id == old.record.id
    other = reader.open(book, settings=replace(SETTINGS, budget_tokens=OWN + 1))
    assert other.record.id != old.record.id
    anew = reader.open(book, settings=UNNAMED, reread=True)
    assert anew.record.id not in (old.record.id, other.record.id)


def test_what_was_begun_with_the_models_own_budget_goes_on(reader: Reader, book: Path) -> None:
    begun: list[int] = []
    with pytest.raises(PrefillStopped):
        reader.open(
            book,
            settings=replace(SETTINGS, budget_tokens=OWN),
            on_progress=lambda kind, done, _: begun.append(done) if kind == "read" else None,
            stop=lambda: len(begun) > 3,
        )
    found = reader.open(book, settings=UNNAMED)
    assert found.record.kept_tokens == pytest.approx(OWN, abs=1)
    assert not list(reader.paths.snapshots.glob("*.partial"))


def test_the_models_own_budget_is_the_registrys_or_the_engines() -> None:
    for name, budget in (("smollm2-135m", 2048), ("somebody/else", 4096)):
        model: Any = SimpleNamespace(name=name)
        assert own_budget(ReadSettings(), model) == budget


def test_a_named_budget_or_size_does_not_take_it_instead(reader: Reader, book: Path) -> None:
    old = reader.open(book, settings=replace(SETTINGS, budget_tokens=OWN, kv_bits="16"))
    sized = replace(UNNAMED, cache_mb=1)
    assert reader.open(book, settings=sized).record.id != old.record.id
    named = replace(UNNAMED, budget_tokens=OWN + 9)
    assert reader.open(book, settings=named).record.id != old.record.id
