"""A whole cache cut down later is the cache that was cut down at once, with and without a hook."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.cache import DocCache
from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig, prefill
from engine.pruning import pruned
from engine.scorers.accumulated import AccumulatedAttentionScorer
from engine.scorers.keydiff import KeyDiffScorer
from engine.scorers.surprisal import SurprisalScorer
from engine.scorers.uniform_random import RandomScorer
from engine.scoring import LayerStep, Scorer
from tests.fakes import tiny_model, tokens

TEXT, N = tokens(100), 100
WHOLE = EvictionConfig(None)
RULES = EvictionConfig(30, "global", head_floor=0.0, stabilizer_tokens=8, local_tokens=4)


class Given(Scorer):
    """Scores that stand in a table: {layer: [n_kv_heads, n]}."""

    name = "given"

    def __init__(self, table: dict[int, Tensor]) -> None:
        self.table = table

    def score(self, step: LayerStep) -> Tensor:
        return self.table[step.layer][:, step.positions]


TABLE = {n: torch.rand(2, N, generator=torch.Generator().manual_seed(n)) for n in range(2)}


def read(rules: EvictionConfig, scorer: Scorer, chunk: int = N, **how: Any) -> DocCache:
    model: Any = tiny_model()
    return prefill(model, TEXT, PrefillConfig(chunk, rules, "fp32"), scorer, **how)


def assert_equal(a: DocCache, b: DocCache, close: float = 0.0) -> None:
    for one, other in zip(a.layers, b.layers, strict=True):
        assert one.offsets == other.offsets and torch.equal(one.positions, other.positions)
        pairs = [(one.keys.fine, other.keys.fine), (one.values.fine, other.values.fine)]
        for pair in [*pairs, (one.scores, other.scores)]:
            torch.testing.assert_close(*pair, atol=close, rtol=close)


@pytest.mark.parametrize("allocation", ["uniform", "per_layer", "global"])
def test_pruning_a_whole_cache_is_reading_it_with_the_same_scores(allocation: Any) -> None:
    rules = replace(RULES, allocation=allocation)
    expected = read(rules, Given(TABLE))
    whole = read(WHOLE, RandomScorer(0))
    small = pruned(whole, TABLE, rules)
    assert_equal(small, expected)
    assert_equal(pruned(read(WHOLE, Given(TABLE)), None, rules), expected)
    small.check()
    assert small.kept_tokens == 30 and small.n_seen == N


def test_the_original_stays_and_the_copy_can_be_asked() -> None:
    whole = read(WHOLE, RandomScorer(0))
    whole.view()
    before = [(layer.keys.fine.clone(), layer.scores.clone()) for layer in whole.layers]
    small = pruned(whole, TABLE, RULES)
    assert small.frozen and whole.frozen and whole.kept_tokens == N
    for layer, (keys, scores) in zip(whole.layers, before, strict=True):
        assert torch.equal(layer.keys.fine, keys) and torch.equal(layer.scores, scores)
    lengths = [k.shape[1] for k in small.view().entries(0).heads()]
    assert lengths == small.layers[0].lengths, "a copy does not read the original's entries"


def test_a_pruned_cache_is_pruned_again_by_rows_of_its_heads() -> None:
    some = pruned(read(WHOLE, RandomScorer(0)), TABLE, RULES)
    ragged: dict[int, Any] = {
        n: [TABLE[n][h][layer.positions[layer.rows(h)].long()] for h in range(2)]
        for n, layer in enumerate(some.layers)
    }
    rules = replace(RULES, budget_tokens=20)
    assert_equal(pruned(some, ragged, rules), pruned(some, None, rules))
    assert pruned(some, ragged, rules).kept_tokens == 20


@pytest.mark.parametrize("last", [True, False])
def test_the_newest_are_locals_at_the_end_and_stabilizers_before(last: bool) -> None:
    table = {n: -torch.arange(N).float().expand(2, -1) for n in range(2)}
    small = pruned(read(WHOLE, RandomScorer(0)), table, RULES, last=last)
    newest = 4 if last else 8
    for layer in small.layers:
        for head in range(2):
            positions = layer.positions[layer.rows(head)].tolist()
            assert positions[-newest:] == list(range(N - newest, N))
            assert positions[-newest - 1] < N - newest - 1


SCORERS = [RandomScorer, KeyDiffScorer, AccumulatedAttentionScorer, SurprisalScorer]


@pytest.mark.parametrize("kind", SCORERS)
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_hook_changes_nothing_of_what_is_kept(kind: Any, allocation: Any) -> None:
    rules = replace(RULES, allocation=allocation)
    plain = read(rules, kind(), chunk=16)
    seen: list[DocCache] = []
    hooked = read(rules, kind(), chunk=16, see_whole=seen.append)
    assert_equal(hooked, plain)
    assert torch.equal(hooked.last_logits, plain.last_logits)  # type: ignore[arg-type]
    assert len(seen) == 7


def test_a_hook_sees_the_chunk_before_any_of_it_goes() -> None:
    table = {n: TABLE[n].clone() for n in TABLE}
    rules = replace(RULES, local_tokens=0, stabilizer_tokens=0)
    kept: list[list[list[int]]] = []

    def look(cache: DocCache) -> None:
        assert cache.frozen
        cache.view()
        cache.check()
        chunk = list(range((cache.n_seen - 1) // 16 * 16, cache.n_seen))
        rows = []
        for layer in cache.layers:
            for head in range(2):
                positions = layer.positions[layer.rows(head)].tolist()
                assert positions[-len(chunk) :] == chunk
                scores = table[len(rows) // 2][head, positions]
                assert torch.equal(layer.scores[layer.rows(head)], scores)
                rows.append(positions)
        kept.append(rows)

    final = read(rules, Given(table), chunk=16, see_whole=look)
    total = [sum(map(len, rows)) for rows in kept]
    assert total == [4 * n for n in (16, 32, 46, 46, 46, 46, 34)]
    assert final.kept_tokens == 30


def test_a_reading_goes_on_after_the_hook_with_an_open_cache() -> None:
    states: list[bool] = []
    read(
        RULES, RandomScorer(1), chunk=16, see_whole=lambda cache: None, checkpoint_every_chunks=2,
        on_checkpoint=lambda cache: states.append(cache.frozen),
    )  # fmt: skip
    assert states == [False] * 3


def test_a_hook_may_ask_the_frozen_cache_of_the_moment() -> None:
    """Its view reads keys and values of the whole chunk, not of what is kept afterwards."""
    model: Any = tiny_model()
    from engine.generate import forward

    found, texts = [], []

    def look(cache: DocCache) -> None:
        found.append(forward(model, cache.view(), tokens(4, seed=2)))
        texts.append(cache.token_ids.tolist())

    prefill(
        model, TEXT, PrefillConfig(24, EvictionConfig(30, stabilizer_tokens=24, local_tokens=4),
        "fp32"), RandomScorer(1), see_whole=look,
    )  # fmt: skip
    whole = prefill(model, texts[0], PrefillConfig(24, WHOLE, "fp32"), RandomScorer(1))
    expected = forward(model, whole.view(), tokens(4, seed=2))
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)
