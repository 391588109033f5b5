"""Fitting finds a function that was planted, and folds its scaling into the weights exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import InvalidSetting
from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig, prefill
from engine.scoring import LayerStep, Scorer
from heads import train
from heads.losses import BY_NAME, keep_bce, locret_loss, log_mse, pair_rank
from heads.recordings import Recording
from heads.retaining import LocretHead, flat_qkv
from heads.train import PROFILE_KEPT, FitSettings, edges_of, fit, has_label, profile_of, target
from tests.fakes import tiny_model, tokens

SETTINGS = FitSettings(width=16, epochs=60.0, batch_tokens=128, lr=1e-2)


def planted(n: int, seed: int, name: str = "questions") -> Recording:
    """Hidden states of odd scale and offset, and a label linear in them."""
    fixed = torch.Generator().manual_seed(99)
    own = torch.Generator().manual_seed(seed)
    scale = torch.rand(48, generator=fixed) * 3 + 0.1
    offset = torch.randn(48, generator=fixed) * 2
    hidden = (torch.randn(2, n, 48, generator=own) * scale + offset).half()
    labels = []
    for layer in range(2):
        w = torch.randn(48, 2, generator=fixed) / 7
        labels.append((hidden[layer].float() @ w - 8).T)
    return Recording(hidden, {name: torch.stack(labels)}, 3)


def planted_for_locret(model: Any, n: int, seed: int) -> Recording:
    """The same states, and a label linear in the projections that Locret's head sees."""
    found = planted(n, seed)
    labels = []
    for layer in range(2):
        x = train._input(model, found.hidden[layer], layer, "locret")
        w = torch.randn(x.shape[1], 2, generator=torch.Generator().manual_seed(layer))
        labels.append((x @ w / x.std()).T / 5)
    return replace(found, labels={"cis": torch.stack(labels)})


def fitted(settings: FitSettings, start: Any = None) -> tuple[Any, Any]:
    model: Any = tiny_model()
    return fit(model, [planted(1000, 1)], [planted(400, 2)], settings, start)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's of two rows, worked out apart from the code under test."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


@pytest.mark.parametrize("loss", [name for name in tuple(BY_NAME) if name != "locret"])
def test_a_planted_function_is_found(loss: str) -> None:
    head, report = fitted(replace(SETTINGS, loss=loss))
    assert len(report.curves) == len(report.held_rank) == len(report.held_loss) == 2
    held = planted(400, 2)
    for layer in range(2):
        found, label = head(held.hidden[layer].float(), layer), held.labels["questions"][layer]
        ranks = [rank_correlation(found[:, h], label[h]) for h in range(2)]
        assert min(ranks) > 0.9
        assert report.held_rank[layer] == pytest.approx(sum(ranks) / 2, abs=1e-3)
    assert not any(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_locret_head_finds_what_projections_tell(family: str) -> None:
    model: Any = tiny_model(family)
    settings = FitSettings("locret", "cis", "locret", 48, 40.0, 1e-2, 0.0, 128)
    head, report = fit(
        model, [planted_for_locret(model, 800, 1)], [planted_for_locret(model, 300, 2)], settings
    )
    assert isinstance(head, LocretHead) and head.fc1.shape == (2, 48, 96)
    assert min(report.held_rank) > 0.9


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
def test_locrets_input_is_what_it_sees_in_a_reading(family: str) -> None:
    model: Any = tiny_model(family)
    seen: list[tuple[Tensor, Tensor]] = []

    class Watching(Scorer):
        wants_hidden = True

        def score(self, step: LayerStep) -> Tensor:
            assert step.hidden is not None
            seen.append((step.hidden, flat_qkv(step)))
            return torch.zeros(step.k.shape[:2])

    prefill(model, tokens(20), PrefillConfig(20, EvictionConfig(None), "fp32"), Watching())
    for layer, (hidden, expected) in enumerate(seen):
        found = train._input(model, hidden, layer, "locret")
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_folded_head_is_the_standardised_net() -> None:
    head, _ = fitted(replace(SETTINGS, epochs=1.0))
    found = planted(300, 3)
    x, y = found.hidden[1].float(), found.labels["questions"][1].T
    before = head(x, 1)
    net = train._Standardised.of(head, 1, train._LayerData(x, y, torch.zeros(300, 4)))
    torch.testing.assert_close(net(x).detach(), before, atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    net.fold(head, 1)
    torch.testing.assert_close(head(x, 1), net(x).detach(), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(head(x, 1), before, atol=1e-2)


def test_going_on_from_heads_does_not_begin_anew() -> None:
    head, first = fitted(SETTINGS)
    _, begun = fitted(replace(SETTINGS, epochs=0.1))
    _, more = fitted(replace(SETTINGS, epochs=1.0, lr=1e-4), start=head)
    assert max(more.held_loss) < max(first.held_loss) * 1.05
    assert more.curves[0][0][1] < begun.curves[0][0][1] / 10
    assert min(more.held_rank) > min(first.held_rank) - 0.01


def test_heads_that_are_gone_on_from_stay_as_they_are() -> None:
    head, _ = fitted(replace(SETTINGS, epochs=0.1))
    before = [p.clone() for p in head.parameters()]
    after, _ = fitted(replace(SETTINGS, epochs=0.1), start=head)
    assert all(map(torch.equal, before, head.parameters()))
    assert not any(map(torch.equal, before, after.parameters()))


@pytest.mark.parametrize("steps", range(1, 13))
def test_a_fit_may_have_any_number_of_steps(steps: int) -> None:
    _, report = fitted(replace(SETTINGS, batch_tokens=100, epochs=steps / 10))
    assert [len(curve) for curve in report.curves] == [steps, steps]


def test_one_seed_gives_one_head() -> None:
    short = replace(SETTINGS, epochs=1.0, loss="rank")
    (a, _), (b, _), (c, _) = fitted(short), fitted(short), fitted(replace(short, seed=1))
    for one, same, other in zip(a.parameters(), b.parameters(), c.parameters(), strict=True):
        assert torch.equal(one, same) and not torch.equal(one, other)


def test_layers_are_reported_as_they_are_done() -> None:
    model: Any = tiny_model()
    said: list[tuple[int, int]] = []
    fit(
        model, [planted(100, 1)], [], replace(SETTINGS, epochs=1.0),
        on_layer=lambda done, total, rank: said.append((done, total)),
    )  # fmt: skip
    assert said == [(1, 2), (2, 2)]


def test_documents_without_the_label_are_left_out() -> None:
    model: Any = tiny_model()
    good, other = planted(300, 1), planted(300, 2, "kvzip")
    short = replace(SETTINGS, epochs=1.0, label="questions")
    alone, _ = fit(model, [good], [], short)
    both, _ = fit(model, [good, other], [other], short)
    pairs = zip(alone.parameters(), both.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(InvalidSetting, match="No document has the label 'questions'"):
        fit(model, [other], [good], short)


def test_a_blend_weighs_the_labels_brought_to_one_scale() -> None:
    a, b = torch.randn(2, 2, 5), torch.randn(2, 2, 5)
    both = Recording(torch.empty(0), {"questions": a, "kvzip_plus": b, "kvzip": b * 9}, 0)
    blended = target(both, "blend")
    mostly = (3 * (b - b.mean()) / b.std() + (a - a.mean()) / a.std()) / 4
    torch.testing.assert_close(blended, mostly)
    half = ((a - a.mean()) / a.std() + (b - b.mean()) / b.std()) / 2
    torch.testing.assert_close(target(both, "blend", 0.5), half)
    louder = replace(both, labels={"questions": 20 * a + 7, "kvzip_plus": b})
    torch.testing.assert_close(target(louder, "blend"), blended)
    one = replace(both, labels={"kvzip_plus": b})
    torch.testing.assert_close(target(one, "blend"), (b - b.mean()) / b.std())
    assert torch.equal(target(both, "kvzip"), b * 9)
    assert has_label(one, "blend") and not has_label(one, "questions")
    assert not has_label(replace(both, labels={"cis": a}), "blend")


def test_edges_are_the_labels_of_the_last_entries_kept() -> None:
    labels = torch.randperm(800).reshape(2, 4, 100).float()
    assert edges_of(labels).tolist() == [599, 699, 749, 774]


def test_a_profile_counts_the_best_entries_of_each_head() -> None:
    labels = torch.full((2, 2, 100), -9.0)
    labels[0, 0, :50] = 2.0
    labels[1, 1, 50:] = 1.0
    profile = profile_of([labels, labels])
    assert profile.kept == PROFILE_KEPT
    for kept in (*PROFILE_KEPT, 0.2):
        shares = profile.at(kept)
        assert shares.shape == (2, 2) and bool((shares > 0).all())
        assert float(shares.sum()) == pytest.approx(1)
    eighth, quarter = profile.at(0.125), profile.at(0.25)
    assert float(eighth[0, 0]) > 0.98, "the 50 best of 400 all lie in one head"
    assert float(quarter[0, 0]) == pytest.approx(0.5, abs=0.01)
    assert float(quarter[1, 1]) == pytest.approx(0.5, abs=0.01)


# Losses on numbers worked out by hand.


def test_losses_of_a_perfect_prediction() -> None:
    torch.manual_seed(0)
    y, edges = torch.randn(50, 2), torch.tensor([0.5, 1.0])
    assert float(log_mse(y, y, edges)) == 0
    smooth = float((y[1:] - y[:-1]).square().mean())
    assert float(locret_loss(y, y, edges)) == pytest.approx(0.0025 * smooth)
    assert float(locret_loss(y[:1], y[:1] + 3, edges)) == pytest.approx(2.5)


def test_the_keep_loss_is_the_mean_cross_entropy_of_each_edge() -> None:
    p, y = torch.tensor([[0.2], [-1.0]]), torch.tensor([[0.7], [-2.0]])
    edges = torch.tensor([[0.5, -3.0], [0.0, -1.0]])
    terms = [(0.2 - 0.5, 1), (0.2 + 3.0, 1), (-1.0 - 0.0, 0), (-1.0 + 1.0, 0)]
    logs = [torch.nn.functional.softplus(torch.tensor(-x if keep else x)) for x, keep in terms]
    assert float(keep_bce(p, y, edges)) == pytest.approx(float(torch.stack(logs).mean()))
    shared = keep_bce(p, y, edges[0])
    assert float(shared) == pytest.approx(float(keep_bce(p, y, edges[:1].expand(2, -1))))


def test_the_rank_loss_prefers_the_right_order() -> None:
    torch.manual_seed(0)
    y = torch.randn(64, 2)
    losses = []
    for sign in (1, -1):
        torch.manual_seed(1)
        losses.append(float(pair_rank(sign * y, y, y)) - 0.1 * float(log_mse(sign * y, y, y)))
    assert losses[0] < 0.5 < losses[1]
