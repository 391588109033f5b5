"""An infinite budget must give the stock model's logits, however the text is cut."""

from __future__ import annotations

import pytest
import torch

from engine.eviction import EvictionConfig
from engine.generate import Sampling, forward, generate
from engine.geometry import SERVED_FAMILIES
from engine.prefill import PrefillConfig, prefill
from engine.scorers.recency import RecencyScorer
from tests.fakes import ready, stock_model, tiny_config, tokens

VARIANTS = [(family, {}) for family in SERVED_FAMILIES] + [
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"num_key_value_heads": 1, "head_dim": 16}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    ("phi3", {"partial_rotary_factor": 0.5}),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 4.0,
                "original_max_position_embeddings": 1024,
            }
        },
    ),
]


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
@pytest.mark.parametrize("chunk_tokens", [1, 7, 63, 1000])
def test_infinite_budget_gives_the_stock_logits(
    family: str, changes: dict[str, object], chunk_tokens: int
) -> None:
    stock = stock_model(tiny_config(family, **changes))
    model = ready(stock)
    text, question = tokens(130), tokens(9, seed=1)
    config = PrefillConfig(chunk_tokens, EvictionConfig(budget_tokens=None), kv_dtype="fp32")
    cache = prefill(model, text, config, RecencyScorer())
    with torch.inference_mode():
        expected = stock(torch.tensor([text + question])).logits[0]
    assert cache.last_logits is not None
    torch.testing.assert_close(cache.last_logits, expected[len(text) - 1], atol=2e-4, rtol=1e-4)
    view = cache.view()
    torch.testing.assert_close(forward(model, view, question), expected[-1], atol=2e-4, rtol=1e-4)
    assert cache.kept_tokens == len(text)


def test_greedy_text_equals_generate() -> None:
    stock = stock_model(tiny_config("qwen2"))
    model = ready(stock)
    text, question = tokens(90), tokens(5, seed=2)
    config = PrefillConfig(32, EvictionConfig(budget_tokens=None), kv_dtype="fp32")
    answer = generate(
        model,
        prefill(model, text, config, RecencyScorer()).view(),
        question,
        Sampling(max_new_tokens=40),
    )
    ids = torch.tensor([text + question])
    expected = stock.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False
    )[0, ids.shape[1] :].tolist()
    if expected[-1] == 2:
        expected = expected[:-1]
    assert answer.token_ids == expected
    assert answer.prefilled_tokens == 5
    assert answer.reused_tokens == 90


def test_a_budget_above_the_text_changes_nothing() -> None:
    stock = stock_model(tiny_config())
    model = ready(stock)
    text = tokens(100)
    config = PrefillConfig(16, EvictionConfig(budget_tokens=101), kv_dtype="fp32")
    cache = prefill(model, text, config, RecencyScorer())
    with torch.inference_mode():
        expected = stock(torch.tensor([text])).logits[0, -1]
    torch.testing.assert_close(cache.last_logits, expected, atol=2e-4, rtol=1e-4)
