"""Where kept entries stand: counted by hand, and one place in all heads for a token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache import DocCache
from engine.errors import PrefillStopped
from engine.eviction import EvictionConfig
from engine.generate import Sampling, generate
from engine.places import Places
from engine.prefill import PrefillConfig, prefill
from engine.scorers.keydiff import KeyDiffScorer
from engine.scorers.uniform_random import RandomScorer
from tests.fakes import tiny_model, tokens
from tests.unit.engine.test_cache import forward

QUESTION = tokens(6, 3)


def read(n: int, budget: int | None, mode: Any, **model: Any) -> DocCache:
    rules = EvictionConfig(
        budget, "global", sink_tokens=2, stabilizer_tokens=4, local_tokens=3, positions=mode
    )
    return prefill(tiny_model(**model), tokens(n), PrefillConfig(32, rules), KeyDiffScorer())


def by_counting(cache: DocCache) -> dict[int, int]:
    """The place of each position that is kept anywhere."""
    all_kept = sorted(p for layer in cache.layers for p in layer.positions.tolist())
    slots = len(cache.layers) * cache.geometry.n_kv_heads
    return {p: sum(q < p for q in all_kept) // slots for p in set(all_kept)}


@settings(deadline=None, max_examples=20)
@given(n=st.integers(1, 150), budget=st.integers(8, 90))
def test_a_token_stands_where_a_head_on_average_has_come_to(n: int, budget: int) -> None:
    cache = read(n, budget, "shared")
    expected, places = by_counting(cache), Places(cache)
    for layer in cache.layers:
        for head, positions in enumerate(layer.head_positions):
            found = places.of_head(layer, head).tolist()
            assert found == [expected[p] for p in positions.tolist()]
            assert found == sorted(found) and all(0 <= p < places.end for p in found)
    assert places.end - 1 < cache.kept_tokens <= places.end
    assert places.starts(cache.layers[0]).tolist() == [[places.end]] * cache.geometry.n_kv_heads


def test_with_everything_kept_tokens_stand_where_the_document_has_them() -> None:
    shared, original = (read(100, 400, mode) for mode in ("shared", "original"))
    model = tiny_model()
    assert torch.equal(
        forward(model, shared.view(), QUESTION), forward(model, original.view(), QUESTION)
    )


def test_what_was_begun_with_compact_positions_goes_on_so() -> None:
    model = tiny_model(max_position_embeddings=2560)
    text = tokens(2000)

    def reading(mode: Any, **how: Any) -> DocCache:
        rules = EvictionConfig(budget_tokens=100, allocation="global", positions=mode)
        return prefill(model, text, PrefillConfig(256, rules), KeyDiffScorer(), **how)

    begun: list[int] = []
    how = {"stop": lambda: len(begun) > 2, "on_progress": lambda done, _: begun.append(done)}
    with pytest.raises(PrefillStopped) as stopped:
        reading("compact", **how)
    found, whole = reading("auto", resume=stopped.value.cache), reading("compact")
    assert found.positions_mode == "compact"
    assert torch.equal(
        forward(model, found.view(), QUESTION), forward(model, whole.view(), QUESTION)
    )


@pytest.mark.parametrize("mode", ["original", "compact", "shared"])
def test_keys_are_turned_to_their_places(mode: str) -> None:
    cache = read(120, 30, mode)
    places = Places(cache)
    entries: Any = cache.view().entries(1)
    layer = cache.layers[1]
    for head, turned in enumerate(entries.heads()):
        keys = layer.keys.floats(head, cache.compute_dtype)
        at = places.of_head(layer, head)
        torch.testing.assert_close(turned[0], cache.rotary.rotate(keys, at))


def test_a_text_beyond_the_window_is_read_and_asked_inside_it() -> None:
    model = tiny_model(max_position_embeddings=2560)
    rules = EvictionConfig(budget_tokens=100, allocation="global")
    cache = prefill(model, tokens(6000), PrefillConfig(256, rules), RandomScorer())
    assert cache.positions_mode == "shared" and Places(cache).end == 100
    answer = generate(model, cache.view(), tokens(5, 1), Sampling(max_new_tokens=4))
    assert answer.reused_tokens == 100
