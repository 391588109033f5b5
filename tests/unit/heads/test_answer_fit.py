"""Fitting through answers: the gated cache is the engine's, gates keep a budget, losses fall."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from engine.batch import nll_together
from engine.errors import InvalidSetting, ScorerUnavailable
from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig, prefill
from engine.pruning import pruned
from engine.scorers.recency import RecencyScorer
from heads.answer_fit import (
    AnswerFitSettings,
    Gates,
    Step,
    distances,
    fit_through_answers,
    log_gates,
    loss_of,
    scores_of,
)
from heads.gated_cache import GatedCache, _with_gates, answer_hidden, log_probs
from heads.labels import output_grams
from heads.lessons import Lesson
from heads.recordings import RecordSettings, load_recording, record, save_recording
from heads.retaining import RetainingHead, head_digest
from heads.train import keys_values
from tests.fakes import tiny_model, tokens
from tests.unit.heads.number_layout import NumberLayout, document

LAYOUT: Any = NumberLayout()
SETTINGS = AnswerFitSettings(steps=4, questions=2, lr=1e-2, kept=(0.1, 0.4))
GATES = Gates(6.0, 0.5)
ASKED = [(tokens(6, 7), tokens(3, 8)), (tokens(9, 17), tokens(5, 18))]
FAMILIES = ("llama", "qwen2", "qwen3", "phi3")


def lesson(folder: Path, model: Any, n: int = 90, seed: int = 1) -> Lesson:
    how = RecordSettings(chunk_tokens=64, replay=False, kinds=(), max_questions=0)
    found = record(model, LAYOUT, document(n, seed), how, output_grams(model))
    path = folder / f"{seed}.safetensors"
    save_recording(path, found)
    return Lesson(path, tuple(ASKED))


def read_whole(model: Any, ids: list[int]) -> Any:
    config = PrefillConfig(64, EvictionConfig(budget_tokens=None, positions="original"))
    return prefill(model, ids, config, RecencyScorer())


def mean_nll(found: list[Tensor]) -> list[float]:
    return [
        -float(f.gather(1, torch.tensor(answer)[:, None]).mean())
        for f, (_, answer) in zip(found, ASKED, strict=True)
    ]


def floats(rows: Any) -> Tensor:
    return torch.stack([rows.floats(head, torch.float32) for head in range(2)])


def rows_of(cache: Any) -> tuple[list[Any], list[Any]]:
    return [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]


def gated(model: Any, cache: Any, gates: Tensor | None) -> list[float]:
    keys, values = ([floats(rows) for rows in part] for part in rows_of(cache))
    lengths = [len(t) + len(a) - 1 for t, a in ASKED]
    found = answer_hidden(model, GatedCache(model, keys, values, gates, lengths), ASKED)
    return mean_nll([log_probs(model, hidden) for hidden in found])


@pytest.mark.parametrize("family", FAMILIES)
def test_open_gates_are_the_full_cache_and_questions_do_not_see_each_other(family: str) -> None:
    model: Any = tiny_model(family)
    cache = read_whole(model, tokens(80))
    expected = nll_together(
        model, [cache.view() for _ in ASKED], [t for t, _ in ASKED], [a for _, a in ASKED]
    )
    assert gated(model, cache, None) == pytest.approx(expected, abs=1e-4)
    assert gated(model, cache, torch.zeros(2, 2, 80)) == pytest.approx(expected, abs=1e-4)


def test_shut_gates_are_an_evicted_cache() -> None:
    model: Any = tiny_model()
    cache = read_whole(model, tokens(80))
    scores = {layer: torch.randn(2, 80, generator=_seeded(layer)) for layer in range(2)}
    rules = EvictionConfig(30, "global")
    less = pruned(cache, scores, rules)
    gates = torch.full((2, 2, 80), -60.0)
    for number, layer in enumerate(less.layers):
        for head in range(2):
            gates[number, head, layer.positions[layer.rows(head)].long()] = 0.0
    expected = nll_together(
        model, [less.view() for _ in ASKED], [t for t, _ in ASKED], [a for _, a in ASKED]
    )
    assert gated(model, cache, gates) == pytest.approx(expected, abs=1e-4)
    assert gated(model, cache, None) != pytest.approx(expected, abs=1e-2), "something was evicted"


def test_sixteen_bits_hold_a_gate_to_a_thousandth() -> None:
    logits = -torch.rand(2, 50, generator=_seeded(1)) * 60
    q = torch.zeros(2, 4, 16, dtype=torch.bfloat16)
    k = torch.randn(2, 53, 16, generator=_seeded(2)).bfloat16()
    queries, keys, values = _with_gates(q, k, k, logits)
    found = queries.float() @ keys.float().mT
    torch.testing.assert_close(found[:, 0, :50], logits, atol=1e-3, rtol=1e-3)
    assert not found[..., 50:].any(), "what follows the document has no gate"
    assert bool((values[..., 16:] == 0).all()) and values.shape == keys.shape


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_values_of_a_recording_are_the_caches(family: str, tmp_path: Path) -> None:
    model: Any = tiny_model(family)
    found = load_recording(lesson(tmp_path, model).recording)
    keys, values = keys_values(model, found.hidden)
    ids = LAYOUT.prefix(document(90, 1).text).token_ids[: found.n_tokens]
    for found_rows, rows in zip((keys, values), rows_of(read_whole(model, ids)), strict=True):
        wanted = torch.stack([floats(r) for r in rows])
        torch.testing.assert_close(torch.stack(found_rows), wanted, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("kept", [0.03, 0.25, 0.9])
def test_gates_leave_the_wanted_share_and_what_the_rules_hold(kept: float) -> None:
    scores = torch.randn(4, 2, 900, generator=_seeded(3)) * 5 + 40
    found = log_gates(scores, kept, GATES, _seeded(4))
    assert bool((found <= 0).all()) and found.shape == scores.shape
    assert bool((found[..., :4] == 0).all()) and bool((found[..., -16:] == 0).all())
    is_open = (found[..., 4:-16].exp() > 0.5).float().mean()
    assert float(is_open) == pytest.approx(kept, abs=0.02)
    best = scores[..., 4:-16] >= scores[..., 4:-16].flatten().quantile(1 - kept / 2)
    assert float(found[..., 4:-16][best].exp().mean()) > 0.9, "the best are open"


def test_gates_harden_on_the_way() -> None:
    settings = AnswerFitSettings(steps=11, sharpness=(4.0, 16.0), temperature=(0.4, 0.1))
    found = [settings.gates(number) for number in (0, 5, 10)]
    assert [g.sharpness for g in found] == pytest.approx([4, 8, 16])
    assert [g.temperature for g in found] == pytest.approx([0.4, 0.2, 0.1])
    assert AnswerFitSettings(steps=1).gates(0) == Gates(6.0, 0.5)
    scores = torch.randn(2, 2, 400, generator=_seeded(3))
    half_open = []
    for gates in found:
        opened = log_gates(scores, 0.2, gates, _seeded(4)).exp()
        half_open.append(float(((opened > 0.01) & (opened < 0.99)).float().mean()))
    assert half_open[0] > 4 * half_open[2] and half_open[2] < 0.03


def test_raising_every_score_changes_no_gate() -> None:
    scores = torch.randn(2, 2, 200, generator=_seeded(3)).requires_grad_(True)
    found = log_gates(scores, 0.2, GATES, _seeded(4))
    higher = log_gates(scores.detach() + 7, 0.2, GATES, _seeded(4))
    torch.testing.assert_close(found.detach(), higher, atol=1e-3, rtol=1e-3)
    weights = torch.randn(found.shape, generator=_seeded(5))
    (gradient,) = torch.autograd.grad((found * weights).sum(), scores)
    assert float(gradient.abs().sum()) > 1
    assert abs(float(gradient.sum())) < 1e-3 * float(gradient.abs().sum())


def test_a_loss_counts_distance_and_what_is_lost_and_rewards_no_gain() -> None:
    full = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert float(loss_of(full, full, [0])[0]) == 0
    likelier = torch.tensor([[0.8, 0.1, 0.1]]).log()
    loss, kl, lost = loss_of(likelier, full, [0])
    assert float(loss) == pytest.approx(float(kl) / 2) and float(lost) < 0 < float(kl)
    loss, kl, lost = loss_of(likelier, full, [1])
    assert float(lost) == pytest.approx(float(torch.tensor(2.5).log()))
    assert float(loss) == pytest.approx(float(kl + lost) / 2)


def test_heads_come_nearer_to_the_full_cache(tmp_path: Path) -> None:
    model: Any = tiny_model()
    lessons = [lesson(tmp_path, model)]
    torch.manual_seed(0)
    head = RetainingHead(model.geometry, 8).requires_grad_(False)
    before = head_digest(head)
    settings = replace(SETTINGS, steps=90, kept=(0.2, 0.2001))
    found: list[Step] = []
    fitted, _ = fit_through_answers(model, head, lessons, settings, 64, on_step=found.append)
    assert head_digest(head) == before, "the heads it goes on from stay as they are"
    assert head_digest(fitted) != before and fitted.w1.dtype == head.w1.dtype
    first, last = (sum(s.kl for s in part) / 15 for part in (found[:15], found[-15:]))
    assert last < 0.8 * first
    assert [s.number for s in found] == list(range(90))


def test_what_is_said_with_everything_kept_is_asked_once_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model()
    lessons = [lesson(tmp_path, model, seed=seed) for seed in (1, 2)]
    head = RetainingHead(model.geometry, 4).requires_grad_(False)
    asked: list[tuple[bool, int]] = []

    def counted(model: Any, store: GatedCache, questions: Any) -> list[Tensor]:
        asked.append((store.log_gates is None, len(questions)))
        return answer_hidden(model, store, questions)

    monkeypatch.setattr("heads.answer_fit.answer_hidden", counted)
    fit_through_answers(model, head, lessons, replace(SETTINGS, steps=8, questions=1), 64)
    assert sum(n for whole, n in asked if whole) == 4, "two documents, two questions each"
    assert sum(n for whole, n in asked if not whole) == 8


def test_a_fit_that_was_cut_off_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heads.answer_fit._KEPT_EVERY", 2)
    model: Any = tiny_model()
    lessons = [lesson(tmp_path, model, seed=seed) for seed in (1, 2, 3)]
    head = RetainingHead(model.geometry, 4).requires_grad_(False)
    settings = replace(SETTINGS, steps=7)
    whole, _ = fit_through_answers(model, head, lessons, settings, 64)
    state = tmp_path / "state.safetensors"
    found: list[int] = []

    def stop(step: Step) -> None:
        found.append(step.number)
        if step.number == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_through_answers(model, head, lessons, settings, 64, state, stop)
    with safe_open(state, framework="pt") as file:
        before_s = float(file.metadata()["seconds"])
    again, seconds = fit_through_answers(
        model, head, lessons, settings, 64, state, lambda s: found.append(s.number)
    )
    assert found == [0, 1, 2, 3, 4, 4, 5, 6]
    assert 0 < before_s < seconds, "the steps before the cut count"
    ended, all_s = fit_through_answers(model, head, lessons, settings, 64, state, stop)
    assert len(found) == 8 and head_digest(ended) == head_digest(whole), "no step is left"
    assert all_s == pytest.approx(seconds, abs=1e-3)
    assert head_digest(again) == head_digest(whole)


def test_damaged_steps_are_refused_by_name(tmp_path: Path) -> None:
    model: Any = tiny_model()
    head = RetainingHead(model.geometry, 4).requires_grad_(False)
    state = tmp_path / "state.safetensors"
    state.write_bytes(b"cut off")
    with pytest.raises(ScorerUnavailable, match=r"state\.safetensors cannot be read"):
        fit_through_answers(model, head, [lesson(tmp_path, model)], SETTINGS, 64, state)


def test_steps_that_ran_away_are_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heads.answer_fit._KEPT_EVERY", 1)
    model: Any = tiny_model()
    head = RetainingHead(model.geometry, 4).requires_grad_(False)
    head.w2[1, 0, 0] = float("nan")
    state = tmp_path / "state.safetensors"
    with pytest.raises(InvalidSetting, match="Step 1 through answers ran away"):
        fit_through_answers(model, head, [lesson(tmp_path, model)], SETTINGS, 64, state)
    assert not state.exists()


def test_distances_are_those_of_caches_with_entries_gone(tmp_path: Path) -> None:
    model: Any = tiny_model()
    lessons = [lesson(tmp_path, model, 120, seed) for seed in (1, 2)]
    head = RetainingHead(model.geometry, 4).requires_grad_(False)
    everything, some, few = distances(model, head, lessons, (1.0, 0.3, 0.05), 64, 2)
    assert everything.kl == pytest.approx(0, abs=1e-6) and everything.lost == pytest.approx(0)
    assert few.kl > some.kl > 0
    expected = []
    for item in lessons:
        recording = load_recording(item.recording)
        scores = scores_of(model, head, recording, 64)
        keys, values = keys_values(model, recording.hidden)
        n = recording.n_tokens
        ruled = torch.zeros(n, dtype=torch.bool)
        ruled[:4] = ruled[-16:] = True
        free = scores[..., ~ruled].flatten()
        least = free.topk(round(0.3 * free.numel())).values.min()
        gates = torch.where((scores >= least) | ruled, 0.0, -60.0)
        lengths = [len(t) + len(a) - 1 for t, a in ASKED]
        whole, less = (
            mean_nll(
                [
                    log_probs(model, h)
                    for h in answer_hidden(
                        model, GatedCache(model, keys, values, g, lengths), ASKED
                    )
                ]
            )
            for g in (None, gates)
        )
        expected.append(sum(b - a for a, b in zip(whole, less, strict=True)) / 2)
    assert some.lost == pytest.approx(sum(expected) / 2, abs=2e-3)


def test_no_question_is_refused(tmp_path: Path) -> None:
    model: Any = tiny_model()
    head = RetainingHead(model.geometry, 4)
    with pytest.raises(InvalidSetting, match="comes with questions"):
        fit_through_answers(model, head, [], SETTINGS, 64)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
