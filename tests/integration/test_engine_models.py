"""Real weights: chunked and ragged reading gives the stock model's logits and text."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from engine.eviction import EvictionConfig
from engine.generate import Sampling, forward, generate
from engine.loader import LoadedModel, load_model
from engine.prefill import PrefillConfig, prefill
from engine.snapshot import load_snapshot, save_snapshot
from heads.catalog import make_scorer

pytestmark = pytest.mark.weights

TEXT = " ".join(
    f"In the year {1700 + 7 * n} the keeper of lamp number {n} wrote that the sea was "
    f"{'calm' if n % 3 else 'loud'}, and that {n * n} birds had rested on the rail."
    for n in range(40)
)
QUESTION = "\n\nWho wrote about the birds, and where did they rest? Answer:"


class Pair(NamedTuple):
    ours: LoadedModel
    stock: Any


@pytest.fixture(scope="module", params=["smollm2-135m", "qwen2.5-coder-0.5b"])
def pair(request: pytest.FixtureRequest, models_dir: Path) -> Iterator[Pair]:
    """One model twice, sharing its weights: as the library made it, and as the engine runs it."""
    from transformers import AutoModelForCausalLM

    ours = load_model(request.param, models_dir=models_dir, weights="fp32")
    config = copy.deepcopy(ours.model.config)  # the library writes the attention into it
    stock = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    stock.load_state_dict(ours.model.state_dict(), strict=True, assign=True)
    stock.tie_weights()
    yield Pair(ours, stock.eval())


def ids_of(model: LoadedModel, text: str) -> list[int]:
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize(("chunk_tokens", "n_tokens"), [(1, 40), (7, 105), (64, 300), (513, 600)])
def test_infinite_budget_gives_the_stock_logits(
    pair: Pair, chunk_tokens: int, n_tokens: int
) -> None:
    text, question = ids_of(pair.ours, TEXT)[:n_tokens], ids_of(pair.ours, QUESTION)
    config = PrefillConfig(chunk_tokens, EvictionConfig(budget_tokens=None), kv_dtype="fp32")
    cache = prefill(pair.ours, text, config, make_scorer("keydiff", pair.ours))
    with torch.inference_mode():
        expected = pair.stock(torch.tensor([text + question])).logits[0]
    assert cache.last_logits is not None
    assert float((cache.last_logits - expected[len(text) - 1]).abs().max()) < 1e-3
    found = forward(pair.ours, cache.view(), question)
    assert float((found - expected[-1]).abs().max()) < 1e-3


def test_greedy_text_equals_generate_over_64_tokens(pair: Pair) -> None:
    text, question = ids_of(pair.ours, TEXT)[:500], ids_of(pair.ours, QUESTION)
    config = PrefillConfig(128, EvictionConfig(budget_tokens=None), kv_dtype="fp32")
    cache = prefill(pair.ours, text, config, make_scorer("keydiff", pair.ours))
    answer = generate(pair.ours, cache.view(), question, Sampling(max_new_tokens=64))
    ids = torch.tensor([text + question])
    expected = pair.stock.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=64,
        do_sample=False,
        repetition_penalty=1.0,
    )[0, ids.shape[1] :].tolist()
    while expected and expected[-1] in pair.ours.stop_token_ids:
        expected.pop()
    assert answer.token_ids == expected


def test_a_pruned_session_answers_alike_after_a_restart(pair: Pair, tmp_path: Path) -> None:
    text, question = ids_of(pair.ours, TEXT), ids_of(pair.ours, QUESTION)
    config = PrefillConfig(256, EvictionConfig(budget_tokens=300, allocation="per_layer"))
    cache = prefill(pair.ours, text, config, make_scorer("keydiff", pair.ours))
    before = generate(pair.ours, cache.view(), question, Sampling(max_new_tokens=16))
    save_snapshot(tmp_path / "s", cache, model=pair.ours, scorer="keydiff", config=config, extra={})
    loaded, _ = load_snapshot(tmp_path / "s", model=pair.ours)
    after = generate(pair.ours, loaded.view(), question, Sampling(max_new_tokens=16))
    assert after.token_ids == before.token_ids
    assert after.reused_tokens == 300
