"""Megabytes become entries and bits: the finest that hold all, else the best at equal bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.byte_budget import LADDER, entry_nbytes, holding
from engine.errors import InvalidSetting
from engine.quantisation import QuantConfig, parse_kv_bits
from tests.fakes import tiny_model

GEOMETRY = tiny_model().geometry


def nbytes(n_entries: int, quant: QuantConfig) -> float:
    """Bytes of a finished cache, its newest tokens in 16 bits."""
    n_fine = min(n_entries, quant.recent_tokens) if quant.on else n_entries
    settled = (n_entries - n_fine) * entry_nbytes(GEOMETRY, quant)
    return n_fine * entry_nbytes(GEOMETRY, QuantConfig()) + settled


def test_a_short_document_stays_in_16_bits_a_longer_one_in_8() -> None:
    room = int(nbytes(2000, QuantConfig()))
    assert holding(room, 1500, GEOMETRY).quant.name == "16"
    assert holding(room, 2100, GEOMETRY).quant.name == "8"
    found = holding(room, 100_000, GEOMETRY)
    assert found.quant.name == LADDER[-1] and found.budget_tokens > 3000


@given(room=st.integers(200_000, 50_000_000), n_tokens=st.integers(1, 131_072))
def test_no_more_bytes_than_allowed_and_not_an_entry_less(room: int, n_tokens: int) -> None:
    found = holding(room, n_tokens, GEOMETRY)
    assert nbytes(found.budget_tokens, found.quant) <= room
    assert nbytes(found.budget_tokens + 2, found.quant) > room


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
