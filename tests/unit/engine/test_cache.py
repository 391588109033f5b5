"""Pruned attention is what it claims to be, views share and never write, bytes stay bounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.errors import InvalidSetting
from engine.eviction import EvictionConfig
from engine.generate import Sampling, forward, generate
from engine.prefill import PrefillConfig, prefill
from engine.scorers.accumulated import AccumulatedAttentionScorer
from engine.scorers.key_norm import KeyNormScorer
from engine.scorers.keydiff import KeyDiffScorer
from engine.scorers.recency import RecencyScorer
from engine.scorers.uniform_random import RandomScorer
from engine.scoring import Scorer
from tests.fakes import TinyModel, ready, stock_model, tiny_config, tiny_model, tokens


def pruned(allocation: str = "global", **changes: Any) -> EvictionConfig:
    base = {"budget_tokens": 30, "stabilizer_tokens": 8, "local_tokens": 4}
    return EvictionConfig(allocation=allocation, **{**base, **changes})


def masked_reference(stock: Any, text: list[int], question: list[int], kept: list[Any]) -> Any:
    """The stock model over the whole text, with evicted entries masked away for the question."""
    n, total = len(text), len(text) + len(question)
    seen = {}
    for layer, block in enumerate(stock.model.layers):
        mask = torch.full((4, total, total), float("-inf")).triu(1)
        for head in range(2):
            gone = torch.ones(n, dtype=torch.bool)
            gone[kept[layer][head]] = False
            mask[head * 2 : head * 2 + 2, n:, :n].masked_fill_(gone, float("-inf"))
        seen[layer] = mask[None]

        def replace(_: Any, args: Any, kwargs: Any, layer: int = layer) -> Any:
            return args, {**kwargs, "attention_mask": seen[layer]}

        block.self_attn.register_forward_pre_hook(replace, with_kwargs=True)
    with torch.inference_mode():
        return stock(torch.tensor([text + question])).logits[0, -1]


def test_a_pruned_cache_equals_the_masked_full_one() -> None:
    """One chunk, so that what was kept was computed with everything in sight."""
    stock = stock_model(tiny_config())
    model = ready(stock)
    text, question = tokens(120), tokens(7, 3)
    config = PrefillConfig(120, pruned(), kv_dtype="fp32")
    cache = prefill(model, text, config, KeyDiffScorer())
    assert len({n for layer in cache.layers for n in layer.lengths}) > 1, "heads are ragged"
    kept = [[c.positions[c.rows(h)].long() for h in range(2)] for c in cache.layers]
    expected = masked_reference(stock, text, question, kept)
    torch.testing.assert_close(
        forward(model, cache.view(), question), expected, atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize("chunk_tokens", [1, 3, 64])
def test_a_question_may_be_cut_anywhere(chunk_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    cache = prefill(model, tokens(200), PrefillConfig(32, pruned()), KeyDiffScorer())
    question = tokens(50, 4)
    whole = forward(model, cache.view(), question)
    monkeypatch.setattr("engine.generate._PROMPT_CHUNK_TOKENS", chunk_tokens)
    torch.testing.assert_close(forward(model, cache.view(), question), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["original", "compact", "shared"])
def test_views_share_the_cache_and_never_change_it(mode: str) -> None:
    model = tiny_model()
    config = PrefillConfig(32, pruned(positions=mode))
    cache = prefill(model, tokens(200), config, KeyDiffScorer())
    before = [layer.keys.fine.clone() for layer in cache.layers]
    questions = [tokens(6, seed) for seed in range(10)]
    ask = lambda q: generate(model, cache.view(), q, Sampling(max_new_tokens=8)).token_ids  # noqa: E731
    first = [ask(q) for q in questions]
    again = [ask(q) for q in reversed(questions)][::-1]
    assert first == again, "the order of questions does not matter"
    assert all(torch.equal(a, b.keys.fine) for a, b in zip(before, cache.layers, strict=True))
    assert cache.view().n_tail == 0


def test_a_fork_and_a_crop_go_their_own_ways() -> None:
    model = tiny_model()
    cache = prefill(model, tokens(100), PrefillConfig(32, pruned()), KeyDiffScorer())
    view = cache.view()
    forward(model, view, tokens(5, 1))
    twin = view.fork()
    a = forward(model, view, tokens(4, 2))
    b = forward(model, twin, tokens(4, 3))
    assert not torch.equal(a, b)
    view.crop(5)
    torch.testing.assert_close(forward(model, view, tokens(4, 3)), b)


def test_compact_positions_equal_a_shorter_text_when_nothing_else_differs() -> None:
    """With recency alone in one chunk, layer 0 reads the kept entries as a text of their own."""
    model = tiny_model(num_hidden_layers=1)
    rules = EvictionConfig(
        budget_tokens=30,
        sink_tokens=0,
        stabilizer_tokens=0,
        local_tokens=0,
        allocation="uniform",
        positions="compact",
    )
    text = tokens(100)
    long = prefill(model, text, PrefillConfig(100, rules, "fp32"), RecencyScorer())
    short = prefill(model, text[-30:], PrefillConfig(100, rules, "fp32"), RecencyScorer())
    question = tokens(5, 1)
    torch.testing.assert_close(
        forward(model, long.view(), question),
        forward(model, short.view(), question),
        atol=1e-4,
        rtol=1e-4,
    )


def test_moved_positions_read_far_beyond_the_window() -> None:
    model = tiny_model(max_position_embeddings=2560)
    rules = pruned(budget_tokens=100)
    cache = prefill(model, tokens(6000), PrefillConfig(256, rules), RandomScorer())
    assert cache.positions_mode == "shared"
    assert max(max(layer.lengths) for layer in cache.layers) <= 2560 - 2048
    cache.check()
    answer = generate(model, cache.view(), tokens(5, 1), Sampling(max_new_tokens=4))
    assert answer.reused_tokens == 100 and answer.prefilled_tokens == 5


def test_original_positions_beyond_the_window_are_refused() -> None:
    model = tiny_model(max_position_embeddings=256)
    with pytest.raises(InvalidSetting, match="window of 256"):
        prefill(model, tokens(300), PrefillConfig(32, pruned(positions="original")), RandomScorer())


def test_compact_positions_without_a_budget_are_refused() -> None:
    rules = EvictionConfig(budget_tokens=None, positions="compact")
    with pytest.raises(InvalidSetting, match="need a budget"):
        prefill(tiny_model(), tokens(50), PrefillConfig(32, rules), RandomScorer())


def test_a_window_without_room_for_what_is_protected_is_refused() -> None:
    model = tiny_model(max_position_embeddings=2060)
    with pytest.raises(InvalidSetting, match="window of 2060"):
        prefill(model, tokens(50), PrefillConfig(2055, pruned(positions="compact")), RandomScorer())


def test_an_answer_that_would_leave_the_window_is_refused() -> None:
    model = tiny_model(max_position_embeddings=256)
    config = PrefillConfig(32, pruned(positions="original"))
    cache = prefill(model, tokens(200), config, RandomScorer())
    with pytest.raises(InvalidSetting, match="room for 56"):
        generate(model, cache.view(), tokens(10), Sampling(max_new_tokens=50))


SCORERS: list[type[Scorer]] = [RecencyScorer, RandomScorer, KeyNormScorer, KeyDiffScorer]


@pytest.mark.parametrize("allocation", ["uniform", "per_layer", "global"])
@pytest.mark.parametrize("scorer", [*SCORERS, AccumulatedAttentionScorer])
def test_bytes_do_not_grow_with_the_text(scorer: type[Scorer], allocation: str) -> None:
    model: TinyModel = tiny_model()
    sizes = []
    for n in (200, 1200):
        cache = prefill(model, tokens(n), PrefillConfig(50, pruned(allocation)), scorer())
        cache.check()
        sizes.append(cache.nbytes)
    assert sizes[0] == sizes[1]
    per_entry = 12 * 2 * 2 + 4 + 4  # head_dim 12, keys and values in fp16, position, score
    assert sizes[0] == 30 * 4 * per_entry


def test_what_16_bits_cannot_hold_is_refused_not_clipped() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.model.layers[1].self_attn.v_proj.weight.mul_(1e6)
    with pytest.raises(InvalidSetting, match="range of 16-bit"):
        prefill(model, tokens(20), PrefillConfig(32, pruned()), RandomScorer())
