"""Kept values take over what evicted entries gave: by least squares, from queries set aside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.cache import DocCache
from engine.errors import InvalidSetting
from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig, prefill
from engine.refit import NEAR_TOKENS, References, reference_rows, refitted, set_aside
from engine.scorers.uniform_random import RandomScorer
from tests.fakes import tiny_model, tokens

N, D, GROUP, HEADS = 160, 8, 3, 2
SCALE = D**-0.5


def chunk(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v of a chunk, and causal attention over it written out in full."""
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(HEADS * GROUP, N, D, generator=draw)
    k, v = (torch.randn(HEADS, N, D, generator=draw) for _ in range(2))
    logits = q @ k.repeat_interleave(GROUP, 0).transpose(1, 2) * SCALE
    logits = logits.masked_fill(torch.ones(N, N).triu(1).bool(), -torch.inf)
    return q, k, v, logits.softmax(-1) @ v.repeat_interleave(GROUP, 0)


def references(seed: int = 0) -> tuple[References, Tensor, Tensor]:
    q, k, v, out = chunk(seed)
    found = set_aside(q, k, v, out, SCALE, HEADS)
    assert found is not None
    return found, k, v


def miss(found: References, head: int, k: Tensor, v: Tensor, places: Tensor) -> float:
    """How far the kept entries' answers are from the whole cache's, in plain words."""
    total = 0.0
    for i, row in enumerate(found.rows.tolist()):
        seen = places <= row - NEAR_TOKENS
        logits = torch.cat([k[seen] @ found.queries[head, i], found.near_lse[head, i : i + 1]])
        answer = logits.softmax(0) @ torch.cat([v[seen], found.near[head, i : i + 1]])
        total += float((answer - found.answers[head, i]).square().sum())
    return total


@pytest.mark.parametrize("n", [1, NEAR_TOKENS, NEAR_TOKENS + 1, 100, 1024])
def test_references_have_what_is_near_before_them(n: int) -> None:
    rows = reference_rows(n)
    assert len(rows) == min(128, max(n - NEAR_TOKENS, 0))
    assert len(rows.unique()) == len(rows)
    assert not len(rows) or (int(rows.min()) == NEAR_TOKENS and int(rows.max()) < n)


def test_where_nothing_was_evicted_nothing_moves() -> None:
    found, k, v = references()
    for head in range(HEADS):
        after = refitted(found, head, k[head], v[head], torch.arange(N))
        torch.testing.assert_close(after, v[head], atol=1e-4, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n_kept=st.integers(1, N - 1))
def test_the_kept_entries_answer_more_like_the_whole(seed: int, n_kept: int) -> None:
    found, k, v = references(seed)
    draw = torch.Generator().manual_seed(seed)
    places = torch.randperm(N, generator=draw)[:n_kept].sort().values
    keys, values = k[0, places], v[0, places]
    before = miss(found, 0, keys, values, places)
    after = miss(found, 0, keys, refitted(found, 0, keys, values, places), places)
    assert after <= before * (1 + 1e-4) + 1e-6
    if n_kept < N // 2 and int((places < N - NEAR_TOKENS).sum()) > 4:
        assert after < before


def test_entries_that_no_reference_sees_stay_as_they_are() -> None:
    found, k, v = references()
    places = torch.arange(0, N, 2)
    after = refitted(found, 0, k[0, places], v[0, places], places)
    unseen = places > int(found.rows.max()) - NEAR_TOKENS
    torch.testing.assert_close(after[unseen], v[0, places][unseen], atol=1e-6, rtol=0)
    assert not torch.allclose(after[~unseen], v[0, places][~unseen], atol=1e-3)


def test_no_value_goes_far_however_little_its_key_is_attended_to() -> None:
    found, k, v = references()
    found = replace(found, near_lse=found.near_lse + 8)  # hardly any mass is left to what is kept
    places = torch.arange(0, N, 8)
    after = refitted(found, 0, k[0, places], v[0, places], places)
    assert float((after - v[0, places]).abs().max()) <= float(v[0, places].abs().max()) * 1.0001


def test_few_references_are_believed_less() -> None:
    found, k, v = references()
    places = torch.arange(0, N, 8)
    moves = [
        (refitted(replace(found, n_tokens=n), 0, k[0, places], v[0, places], places) - v[0, places])
        for n in (128, 8, 1)
    ]
    assert moves[0].norm() > moves[1].norm() > moves[2].norm() > 0


def test_a_reading_that_is_looked_at_whole_is_not_refitted_in_silence() -> None:
    model: Any = tiny_model()
    config = PrefillConfig(128, replace(RULES, refit=True))
    with pytest.raises(InvalidSetting, match="does not refit"):
        prefill(model, tokens(300), config, RandomScorer(0), see_whole=lambda cache: None)


def read(rules: EvictionConfig, chunk_tokens: int = 128) -> DocCache:
    model: Any = tiny_model()
    return prefill(model, tokens(300), PrefillConfig(chunk_tokens, rules, "fp32"), RandomScorer(0))


RULES = EvictionConfig(40, "global", head_floor=0.0, stabilizer_tokens=8, local_tokens=4)


@pytest.mark.parametrize("positions", ["original", "compact", "shared"])
def test_reading_with_a_refit_keeps_the_same_number_of_entries(positions: Any) -> None:
    rules = replace(RULES, positions=positions)
    plain, other = read(rules), read(replace(rules, refit=True))
    other.check()
    assert [x.offsets for x in plain.layers] == [x.offsets for x in other.layers]
    # In the first layer nothing but values can differ: its input is the text.
    assert torch.equal(plain.layers[0].keys.fine, other.layers[0].keys.fine)
    assert torch.equal(plain.layers[0].positions, other.layers[0].positions)
    assert not torch.allclose(plain.layers[0].values.fine, other.layers[0].values.fine, atol=1e-4)


def test_a_full_cache_is_not_touched() -> None:
    whole = EvictionConfig(None)
    plain, other = read(whole), read(replace(whole, refit=True))
    for a, b in zip(plain.layers, other.layers, strict=True):
        assert torch.equal(a.values.fine, b.values.fine)


def test_chunks_too_short_for_references_are_read_as_without() -> None:
    plain, other = read(RULES, 32), read(replace(RULES, refit=True), 32)
    for a, b in zip(plain.layers, other.layers, strict=True):
        assert torch.equal(a.values.fine, b.values.fine)
