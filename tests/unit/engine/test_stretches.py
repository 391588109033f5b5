"""Kept entries read a stretch at a time are those of the whole layer, however stretches are cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

import kernels
from engine import stretches
from engine.cache import DocCache
from engine.eviction import EvictionConfig
from engine.places import Places
from engine.prefill import ChunkStore, PrefillConfig, prefill
from engine.quantisation import QuantConfig
from engine.read_layer import ReadLayer
from engine.scorers.accumulated import AccumulatedAttentionScorer
from engine.scorers.keydiff import KeyDiffScorer
from engine.stretches import Stretches
from tests.fakes import tiny_model, tokens

N = 300
QUANTS = {"16": QuantConfig(), "k8v4": QuantConfig(8, 4, 24), "k4v4": QuantConfig(4, 4, 24)}


def read(quant: str, positions: Any = "shared", scorer: Any = KeyDiffScorer) -> DocCache:
    rules = EvictionConfig(
        90, "global", sink_tokens=2, stabilizer_tokens=4, local_tokens=3, positions=positions
    )
    config = PrefillConfig(32, rules, "fp16", QUANTS[quant])
    return prefill(tiny_model(), tokens(N), config, scorer())


@pytest.mark.parametrize("rows", [1, 7, 24, 1000])
@pytest.mark.parametrize("quant", QUANTS)
def test_a_stretch_is_the_same_rows_decoded(quant: str, rows: int) -> None:
    for layer in read(quant).layers:
        for side in (layer.keys, layer.values):
            for head, length in enumerate(layer.lengths):
                whole = side.floats(head, torch.float32)
                cuts = [range(a, min(a + rows, length)) for a in range(0, length, rows)]
                parts = [side.stretch(head, cut, torch.float32) for cut in cuts]
                assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("rows", [1, 7, 24, 1000])
@pytest.mark.parametrize("positions", ["original", "compact", "shared"])
def test_stretches_joined_are_the_attention_to_the_whole_layer(
    rows: int, positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretches, "STRETCH_ROWS", rows)
    cache = read("k8v4", positions)
    n_heads, dim = cache.geometry.n_kv_heads, cache.geometry.head_dim
    torch.manual_seed(0)
    q, before_k, before_v = torch.randn(3, n_heads, 5, dim).unbind()
    for layer in cache.layers:
        before = kernels.attend(q, before_k, before_v, 0.3)
        history = ReadLayer.of(cache, layer).attend(q, 0.3)
        assert history is not None
        wanted, wanted_lse = kernels.merge(*history, *before)
        out, lse = (part.clone() for part in before)
        Stretches(cache, layer, Places(cache)).join(q, out, lse, 0.3)
        torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lse, wanted_lse, atol=1e-5, rtol=1e-5)


def test_what_stays_does_not_hang_on_the_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """By attention received, which is what entries far apart are compared by."""
    kept = []
    for rows in (1000, 7):
        monkeypatch.setattr(stretches, "STRETCH_ROWS", rows)
        cache = read("16", scorer=AccumulatedAttentionScorer)
        kept.append([layer.positions for layer in cache.layers])
    assert all(torch.equal(*pair) for pair in zip(*kept, strict=True))


def test_no_more_than_a_stretch_of_a_head_is_decoded_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stretches, "STRETCH_ROWS", 16)
    seen: list[int] = []
    right = kernels.attend

    def attend(q: Any, k: Any, v: Any, scale: float) -> Any:
        seen.append(k.shape[1])
        return right(q, k, v, scale)

    monkeypatch.setattr(kernels, "attend", attend)
    cache = read("k8v4")
    assert max(layer.lengths[0] for layer in cache.layers) > 16
    assert max(seen) == 16


@pytest.mark.parametrize(("chunk", "given_back"), [(300, True), (64, False)])
def test_before_an_eviction_what_the_layers_left_is_given_back(
    chunk: int, given_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long chunk: short ones leave little, and asking takes milliseconds."""
    seen: list[str] = []
    evict = ChunkStore.evict
    monkeypatch.setattr("engine.prefill.give_back_freed", lambda: seen.append("given back"))
    monkeypatch.setattr(
        ChunkStore,
        "evict",
        lambda self, *given, **named: (seen.append("evict"), evict(self, *given, **named))[1],
    )
    prefill(tiny_model(), tokens(N), PrefillConfig(chunk), KeyDiffScorer())
    before = {a for a, b in pairwise(["nothing", *seen]) if b == "evict"}
    assert before == ({"given back"} if given_back else {"nothing", "evict"})
