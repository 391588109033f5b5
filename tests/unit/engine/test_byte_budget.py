"""Megabytes become entries and bits: the finest that hold all, else the best at equal bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.byte_budget import cache_nbytes_of, holding
from engine.errors import InvalidSetting
from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig, prefill
from engine.quantisation import QuantConfig, parse_kv_bits
from engine.scorers.uniform_random import RandomScorer
from tests.fakes import tiny_model, tokens

GEOMETRY = tiny_model().geometry


LONG = 100_000


def nbytes(n_entries: int, quant: QuantConfig) -> float:
    return cache_nbytes_of(n_entries, LONG, GEOMETRY, quant)


@pytest.mark.parametrize(
    ("n_tokens", "bits"),
    [(1500, "16"), (2100, "8"), (3600, "k8v4"), (9000, "k8v4"), (18_000, "k4v4")],
)
def test_bits_are_as_fine_as_what_is_kept_allows(n_tokens: int, bits: str) -> None:
    room = int(nbytes(2000, QuantConfig()))
    found = holding(room, n_tokens, GEOMETRY)
    assert found.quant.name == bits
    kept = found.budget_tokens / n_tokens
    assert kept >= (1 if bits in ("16", "8") else 0.25) or bits == "k4v4"


@given(room=st.integers(200_000, 50_000_000), n_tokens=st.integers(1, 131_072))
def test_no_more_bytes_than_allowed_and_not_an_entry_less(room: int, n_tokens: int) -> None:
    found = holding(room, n_tokens, GEOMETRY)
    less, more = (
        cache_nbytes_of(found.budget_tokens + n, n_tokens, GEOMETRY, found.quant) for n in (0, 2)
    )
    assert less <= room < more


@pytest.mark.parametrize("bits", ["16", "8", "k8v4", "k4v4", "k4v2", "k2v2"])
@pytest.mark.parametrize("n_tokens", [100, 600])
def test_a_cache_that_was_read_is_as_large_as_was_allowed(bits: str, n_tokens: int) -> None:
    model: Any = tiny_model()
    room = 15_000 if n_tokens == 100 else 50_000
    found = holding(room, n_tokens, GEOMETRY, kv_bits=bits)
    rules = EvictionConfig(min(found.budget_tokens, n_tokens), "global")
    how = PrefillConfig(64, rules, quant=found.quant)
    text = tokens(n_tokens)
    cache = prefill(model, text, how, RandomScorer(1))
    assert found.budget_tokens < n_tokens and 0.96 * room < cache.nbytes <= room


def test_what_no_head_can_hold_is_no_reason_for_fewer_bits() -> None:
    """Beyond the window a head holds a ceiling of entries, so that more bytes go to finer bits."""
    room, ceiling = int(nbytes(2000, QuantConfig())), 1500
    assert holding(room, LONG, GEOMETRY).quant.name == "k4v4"
    found = holding(room, LONG, GEOMETRY, ceiling=ceiling)
    assert (found.budget_tokens, found.quant.name) == (ceiling, "16")
    found = holding(room, LONG, GEOMETRY, ceiling=10 * ceiling)
    assert found.quant.name == "k4v4" and found.budget_tokens < 10 * ceiling


def test_bits_that_were_asked_for_are_kept() -> None:
    for bits in ("16", "8", "4"):
        found = holding(1_000_000, 10, GEOMETRY, kv_bits=bits)
        assert found.quant == parse_kv_bits(bits, GEOMETRY)


def test_too_few_megabytes_are_refused_with_the_least_that_would_do() -> None:
    big = replace(GEOMETRY, n_layers=4000)
    with pytest.raises(InvalidSetting, match="entries a head") as refused:
        holding(1_000_000, 5000, big)
    least = int("".join(c for c in refused.value.next_step if c.isdigit()))
    assert holding(least * 1_000_000, 5000, big).budget_tokens >= 64
    with pytest.raises(InvalidSetting):
        holding((least - 1) * 1_000_000, 5000, big)
