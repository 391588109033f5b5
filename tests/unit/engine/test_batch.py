"""Questions answered side by side get what each would have got alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from engine.attention import decoder_of
from engine.batch import SideBySide, generate_together, nll_together
from engine.cache import DocCache
from engine.errors import InvalidSetting
from engine.eviction import EvictionConfig
from engine.generate import Sampling, generate
from engine.prefill import PrefillConfig, prefill
from engine.scorers.keydiff import KeyDiffScorer
from engine.view import CacheView
from tests.fakes import TinyModel, tiny_model, tokens

PROMPTS = [tokens(n, seed=n) for n in (5, 1, 17, 8, 30, 2)]
ANSWERS = [tokens(n, seed=100 + n) for n in (3, 1, 9, 4, 1, 6)]


def read(model: TinyModel, n: int, seed: int, budget: int | None = None) -> DocCache:
    rules = EvictionConfig(budget, "global", stabilizer_tokens=8, local_tokens=4)
    return prefill(model, tokens(n, seed), PrefillConfig(64, rules, "fp32"), KeyDiffScorer())


def caches(model: TinyModel, kind: str) -> list[DocCache]:
    """One cache for each prompt: whole, pruned to ragged heads, or of different documents."""
    if kind == "whole":
        return [read(model, 150, 0)] * 6
    if kind == "pruned":
        return [read(model, 150, 0, 30)] * 6
    return [read(model, 40 + 31 * n, n, None if n % 2 else 30) for n in range(6)]


def views(of: list[DocCache]) -> list[CacheView]:
    return [cache.view() for cache in of]


def nll_alone(model: TinyModel, cache: DocCache, prompt: list[int], answer: list[int]) -> float:
    with torch.inference_mode():
        hidden = decoder_of(model.model)(
            input_ids=torch.tensor([prompt + answer]), use_cache=False, store=cache.view()
        ).last_hidden_state[0]
        logits = model.model.lm_head(hidden[len(prompt) - 1 : -1]).float()
    return float(cross_entropy(logits, torch.tensor(answer)))


@pytest.mark.parametrize("kind", ["whole", "pruned", "different"])
@pytest.mark.parametrize("limits", [(1024, 16), (20, 16), (1024, 2), (1, 1)])
def test_answers_equal_those_given_one_by_one(kind: str, limits: tuple[int, int]) -> None:
    model = tiny_model()
    docs = caches(model, kind)
    alone = [
        generate(model, cache.view(), prompt, Sampling(max_new_tokens=12)).token_ids
        for cache, prompt in zip(docs, PROMPTS, strict=True)
    ]
    together = generate_together(
        model, views(docs), PROMPTS, 12, max_batch_tokens=limits[0], max_batch=limits[1]
    )
    assert together == alone


def test_a_sequence_that_stops_leaves_the_others_going() -> None:
    model = tiny_model()
    docs = caches(model, "pruned")
    free = generate_together(model, views(docs), PROMPTS, 12)
    model.stop_token_ids = frozenset({free[0][4], free[2][0]})
    alone = [
        generate(model, cache.view(), prompt, Sampling(max_new_tokens=12)).token_ids
        for cache, prompt in zip(docs, PROMPTS, strict=True)
    ]
    asked = views(docs)
    together = generate_together(model, asked, PROMPTS, 12)
    assert together == alone
    assert together[2] == [] and len({len(a) for a in together}) > 1
    assert asked[2].n_tail == len(PROMPTS[2]), "an ended sequence is not run any further"


@pytest.mark.parametrize("kind", ["whole", "pruned", "different"])
@pytest.mark.parametrize("max_batch_tokens", [1024, 25, 1])
def test_likelihoods_equal_those_found_one_by_one(kind: str, max_batch_tokens: int) -> None:
    model = tiny_model()
    docs = caches(model, kind)
    alone = [nll_alone(model, c, p, a) for c, p, a in zip(docs, PROMPTS, ANSWERS, strict=True)]
    together = nll_together(model, views(docs), PROMPTS, ANSWERS, max_batch_tokens=max_batch_tokens)
    assert together == pytest.approx(alone, abs=1e-4)


def test_a_slice_sees_nothing_of_its_neighbours() -> None:
    model = tiny_model()
    cache = read(model, 60, 0)
    found = []
    for neighbour in (tokens(9, 1), tokens(9, 2)):
        store = SideBySide([cache.view(), cache.view()], [9, 4])
        with torch.inference_mode():
            ids = torch.tensor([[*neighbour, *tokens(4, 3)]])
            out = decoder_of(model.model)(input_ids=ids, use_cache=False, store=store)
        found.append(out.last_hidden_state[0, 9:])
    assert torch.equal(*found)


def test_what_cannot_be_asked_is_refused() -> None:
    model = tiny_model()
    cache = read(model, 60, 0)
    with pytest.raises(InvalidSetting, match="at least one token"):
        generate_together(model, [cache.view()], [[]], 4)
    for prompt, answer in (([5], []), ([], [5])):
        with pytest.raises(InvalidSetting, match="with tokens"):
            nll_together(model, [cache.view()], [prompt], [answer])
    with pytest.raises(InvalidSetting, match="below 1"):
        generate_together(model, [cache.view()], [[5]], 0)
    with pytest.raises(InvalidSetting, match="window"):
        generate_together(model, [cache.view()], [[5]], 5000)
    assert generate_together(model, [], [], 4) == [] == nll_together(model, [], [], [])
