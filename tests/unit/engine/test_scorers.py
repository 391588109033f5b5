"""Each scorer against its own formula, computed the slow way on the whole text."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig, prefill
from engine.scorers.accumulated import AccumulatedAttentionScorer
from engine.scorers.expected_attention import (
    ExpectedAttentionScorer,
    QueryStatisticsScorer,
    mean_rotation,
)
from engine.scorers.keydiff import KeyDiffScorer
from engine.scorers.surprisal import SurprisalScorer
from engine.scorers.uniform_random import RandomScorer
from engine.scoring import LayerStep, Scorer
from heads.calibration import gather
from tests.fakes import TinyModel, ready, stock_model, tiny_config, tiny_model, tokens

FULL = EvictionConfig(budget_tokens=None)


class Recorder(Scorer):
    """Holds another scorer, and everything it was shown."""

    name = "recorder"

    def __init__(self, inner: Scorer) -> None:
        self.inner, self.steps = inner, []
        self.wants_mass, self.wants_logits = inner.wants_mass, inner.wants_logits
        self.wants_hidden = inner.wants_hidden

    def score(self, step: LayerStep) -> torch.Tensor:
        self.steps.append(step)
        return self.inner.score(step)


def scores_of(model: TinyModel, scorer: Scorer, text: list[int], chunk: int) -> torch.Tensor:
    """[n_layers, n_kv_heads, n]"""
    cache = prefill(model, text, PrefillConfig(chunk, FULL, "fp32"), scorer)
    return torch.stack([layer.scores.reshape(2, -1) for layer in cache.layers])


def test_accumulated_attention_is_the_column_sum_of_the_stock_attention() -> None:
    stock = stock_model(tiny_config())
    text = tokens(70)
    with torch.inference_mode():
        maps = stock(torch.tensor([text]), output_attentions=True).attentions
    expected = torch.stack([a[0].reshape(2, 2, 70, 70).sum(2).mean(1) for a in maps])
    for chunk in (70, 16, 1):
        found = scores_of(ready(stock), AccumulatedAttentionScorer(), text, chunk)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_surprisal_rates_each_token_by_what_predicted_it() -> None:
    stock = stock_model(tiny_config())
    text = tokens(600)
    with torch.inference_mode():
        logits = stock(torch.tensor([text])).logits[0]
    ids = torch.tensor(text)
    expected = -torch.log_softmax(logits, -1)[:-1].gather(1, ids[1:, None])[:, 0]
    for chunk in (600, 300, 7):
        found = scores_of(ready(stock), SurprisalScorer(), text, chunk)
        torch.testing.assert_close(found[1, 1, 1:], expected, atol=1e-3, rtol=1e-3)
        assert torch.equal(found[0, 0], found[1, 1])


def test_keydiff_compares_with_the_mean_of_all_keys_so_far() -> None:
    model = tiny_model()
    recorder = Recorder(KeyDiffScorer())
    found = scores_of(model, recorder, tokens(40), 40)
    keys = normalize(recorder.steps[1].k, dim=-1)
    mean = normalize(keys.mean(1, keepdim=True), dim=-1)
    torch.testing.assert_close(found[1], -(keys * mean).sum(-1), atol=1e-5, rtol=1e-4)


def test_random_scores_do_not_depend_on_interruptions() -> None:
    model = tiny_model()
    a = scores_of(model, RandomScorer(3), tokens(64), 16)
    b = scores_of(model, RandomScorer(3), tokens(64), 16)
    assert torch.equal(a, b)
    assert not torch.equal(a, scores_of(model, RandomScorer(4), tokens(64), 16))
    assert a.unique().numel() > 200


def test_query_statistics_are_those_of_all_queries_but_the_sinks() -> None:
    model = tiny_model()
    recorder = Recorder(KeyDiffScorer())
    scores_of(model, recorder, tokens(50), 50)
    q = recorder.steps[1].q[:, 4:]
    statistics = gather(model, tokens(50))
    torch.testing.assert_close(statistics.mean[1], q.mean(1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        statistics.covariance[1, 2], torch.cov(q[2].T, correction=0), atol=1e-3, rtol=1e-3
    )


def test_expected_attention_predicts_the_mean_attention_of_gaussian_queries() -> None:
    """Against 200,000 drawn queries, at one position, where the formula is exact."""
    model = tiny_model()
    statistics = gather(model, tokens(300))
    scorer = ExpectedAttentionScorer(statistics, model.rotary)
    recorder = Recorder(scorer)
    found = scores_of(model, recorder, tokens(20, 5), 20)[1]
    step = recorder.steps[1]
    rotation = mean_rotation(model.rotary, torch.arange(20, 20 + 512), 12)
    draw = torch.distributions.MultivariateNormal(
        statistics.mean[1], statistics.covariance[1] + 1e-5 * torch.eye(12)
    )
    torch.manual_seed(0)
    q = draw.sample((200_000,)).transpose(0, 1) @ rotation.T
    k = model.rotary.rotate(step.k, step.positions).repeat_interleave(2, 0)
    logits = torch.einsum("hsd,hnd->hsn", q, k) * step.scale
    expected = (torch.logsumexp(logits, 1) - torch.tensor(2e5).log()).reshape(2, 2, -1).mean(1)
    expected = expected + torch.log(torch.linalg.vector_norm(step.v, dim=-1) + 1e-2)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)


def test_mean_rotation_is_the_average_of_rotated_vectors() -> None:
    model = tiny_model()
    x, positions = torch.randn(12), torch.arange(5, 25)
    expected = model.rotary.rotate(x.expand(20, 12), positions).mean(0)
    found = mean_rotation(model.rotary, positions, 12) @ x
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_statistics_scorer_forgets_on_reset() -> None:
    scorer = QueryStatisticsScorer()
    scores_of(tiny_model(), scorer, tokens(30), 30)
    scorer.reset()
    assert not scorer._sums
