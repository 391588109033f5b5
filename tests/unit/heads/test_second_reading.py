"""Second reading: its scores are the slow way's, and its choice corrects the first pass."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean, pstdev
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.attention import decoder_of
from engine.cache import DocCache
from engine.errors import InvalidSetting, PrefillStopped
from engine.eviction import EvictionConfig, Positions
from engine.places import Places
from engine.prefill import ChunkStore, PrefillConfig, prefill
from engine.pruning import pruned
from engine.scorers.uniform_random import RandomScorer
from engine.view import CacheView
from heads.replay import replay_ids
from heads.second_reading import (
    FIRST_PASS_FACTOR,
    REPLAY_SHARE,
    check_room,
    first_pass,
    read_again,
)
from tests.fakes import tiny_model, tokens

N, N_HEADER, PIECE, CHUNK = 300, 5, 70, 64
TEXT = tokens(N)
FINAL = EvictionConfig(40, "global", sink_tokens=2, stabilizer_tokens=8, local_tokens=4)


class Letters:
    """A token is a letter; decoding gives back something to be read."""

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i + 30) for i in ids)


class FakeLayout:
    tokenizer: Any = Letters()

    def tail(self, question: str) -> list[int]:
        return [3, *(3 + ord(c) % 90 for c in question[-40:]), 4]


LAYOUT = FakeLayout()


def config(positions: Positions = "original", **changes: Any) -> PrefillConfig:
    return PrefillConfig(CHUNK, replace(FINAL, positions=positions, **changes), "fp32")


def first_read(model: Any, rules: PrefillConfig) -> DocCache:
    return prefill(model, TEXT, first_pass(rules), RandomScorer(1))


def again(model: Any, cache: DocCache, rules: PrefillConfig, **how: Any) -> DocCache:
    how = {"piece_tokens": PIECE, **how}
    return read_again(model, cache, LAYOUT, N_HEADER, rules.eviction, **how)


class Dense:
    """A `Store` that attends with whole matrices and measures as it goes."""

    wants_hidden = True

    def __init__(self, model: Any, cache: DocCache, first: int, end: int) -> None:
        self.model, self.cache, self.first, self.end = model, cache, first, end
        self.norm = torch.empty(0)
        self.found: dict[tuple[int, int, int], float] = {}  # (layer, head, position)

    def see_hidden(self, layer: int, hidden: Tensor) -> None:
        self.norm = hidden.norm(dim=-1)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        turn, entries = self.model.rotary.rotate, self.cache.layers[layer]
        places_now = Places(self.cache)
        weight = decoder_of(self.model.model).layers[layer].self_attn.o_proj.weight
        n, dim = k.shape[1], k.shape[2]
        group = len(q) // len(k)
        out = torch.empty_like(q)
        for number in range(len(q)):
            head = number // group
            at = entries.positions[entries.rows(head)]
            places = int(places_now.starts(entries)[head]) + torch.arange(n)
            rows = entries.rows(head)
            keys = turn(entries.keys.fine[rows], places_now.of_head(entries, head))
            values = entries.values.fine[rows]
            own_q, own_k = turn(q[number], places), turn(k[head], places)
            far = own_q @ keys.T * scale
            near = (own_q @ own_k.T * scale).masked_fill(torch.ones(n, n).triu(1) > 0, -torch.inf)
            out[number] = torch.cat([far, near], -1).softmax(-1) @ torch.cat([values, v[head]])
            inside = (at >= self.first) & (at < self.end)
            seen = inside | (at < min(N_HEADER, self.first))
            a = torch.cat([far.masked_fill(~seen, -torch.inf), near], -1).softmax(-1)
            size = (values @ weight[:, number * dim : (number + 1) * dim].T).norm(dim=-1)
            worth = (a[:, : len(at)] * size / self.norm[:, None]).amax(0).log()
            for place, value in zip(at[inside].tolist(), worth[inside].tolist(), strict=True):
                where = (layer, head, place)
                self.found[where] = max(value, self.found.get(where, -torch.inf))
        return out


def dense_scores(model: Any, cache: DocCache) -> dict[tuple[int, int, int], float]:
    scores = {}
    for first in range(0, N, PIECE):
        end = min(first + PIECE, N)
        store = Dense(model, cache, first, end)
        ids = torch.tensor([replay_ids(LAYOUT, TEXT, N_HEADER, first, end)])
        with torch.inference_mode():
            decoder_of(model.model)(input_ids=ids, use_cache=False, store=store)
        scores.update(store.found)
    return scores


def blend(worth: dict[Any, float], expected: dict[Any, float]) -> dict[Any, float]:
    """Both scores standardised over all entries, by REPLAY_SHARE."""
    parts = []
    for scores in (worth, expected):
        finite = [s for s in scores.values() if s > -torch.inf]
        parts.append({k: (s - mean(finite)) / pstdev(finite) for k, s in scores.items()})
    return {k: REPLAY_SHARE * s + (1 - REPLAY_SHARE) * parts[1][k] for k, s in parts[0].items()}


def scores_of(cache: DocCache) -> dict[tuple[int, int, int], float]:
    """(layer, head, position) -> score of everything kept."""
    return {
        (number, head, place): score
        for number, layer in enumerate(cache.layers)
        for head in range(len(layer.lengths))
        for place, score in zip(
            layer.positions[layer.rows(head)].tolist(),
            layer.scores[layer.rows(head)].tolist(),
            strict=True,
        )
    }


@pytest.mark.parametrize("positions", ["original", "compact", "shared"])
def test_the_scores_are_those_of_whole_matrices(positions: Positions) -> None:
    model: Any = tiny_model()
    rules = config(positions)
    cache = first_read(model, rules)
    expected = dense_scores(model, cache)
    assert expected.keys() == scores_of(cache).keys()
    expected = blend(expected, scores_of(cache))
    kept = again(model, cache, config(positions, budget_tokens=100))
    found = scores_of(kept)
    assert len(found) == cache.n_entries
    assert [found[k] for k in expected] == pytest.approx(list(expected.values()), abs=1e-3)


@pytest.mark.parametrize("allocation", ["uniform", "per_layer", "global"])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_the_budget_is_kept_exactly_and_the_cache_is_sound(
    positions: Positions, allocation: Any
) -> None:
    model: Any = tiny_model()
    rules = config(positions, allocation=allocation)
    cache = first_read(model, rules)
    assert cache.kept_tokens == FIRST_PASS_FACTOR * 40
    before = scores_of(cache)
    kept = again(model, cache, rules)
    kept.check()
    assert kept.frozen and kept.kept_tokens == 40 and kept.positions_mode == positions
    assert scores_of(cache) == before, "the first pass's cache is left as it was"
    for layer in kept.layers:
        for head in range(len(layer.lengths)):
            places = layer.positions[layer.rows(head)].tolist()
            assert places[:2] == [0, 1] and places[-4:] == list(range(N - 4, N))


def test_both_readings_have_a_say() -> None:
    model: Any = tiny_model()
    rules = config()
    cache = first_read(model, rules)
    once = scores_of(pruned(cache, None, rules.eviction)).keys()
    twice = scores_of(again(model, cache, rules)).keys()
    worth, expected = dense_scores(model, cache), scores_of(cache)
    # What came in is worth more to the replay, and what stayed more to the scorer, than the rest.
    came, went = twice - once, once - twice
    assert came and mean(worth[k] for k in came) > mean(worth[k] for k in went)
    gone = expected.keys() - once - twice
    assert mean(expected[k] for k in once & twice) > mean(expected[k] for k in gone)


def test_a_scorer_without_an_opinion_leaves_it_to_the_replay() -> None:
    model: Any = tiny_model()
    cache = first_read(model, config())
    for layer in cache.layers:
        layer.scores = torch.zeros_like(layer.scores)
    kept = scores_of(again(model, cache, config())).keys()
    worth = dense_scores(model, cache)
    assert mean(worth[k] for k in kept) > mean(worth[k] for k in worth.keys() - kept)


def test_memory_never_exceeds_the_larger_budget_and_a_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[float] = []
    evict, attend = ChunkStore.evict, CacheView.attend

    def evicting(self: ChunkStore, *arguments: Any, **how: Any) -> None:
        held.append(self.cache.kept_tokens + len(self.positions))
        evict(self, *arguments, **how)

    def attending(self: CacheView, *arguments: Any) -> Tensor:
        out = attend(self, *arguments)
        request = len(LAYOUT.tail("x" * 99))
        held.append(self.cache.kept_tokens + max(self.n_tail - request, 0))
        return out

    monkeypatch.setattr(ChunkStore, "evict", evicting)
    monkeypatch.setattr(CacheView, "attend", attending)
    model: Any = tiny_model()
    again(model, first_read(model, config()), config(), piece_tokens=CHUNK)
    assert len(held) > 10 and max(held) <= FIRST_PASS_FACTOR * 40 + CHUNK


def test_a_stop_between_pieces_loses_nothing_of_the_first_pass() -> None:
    model: Any = tiny_model()
    cache = first_read(model, config())
    told: list[tuple[int, int]] = []
    with pytest.raises(PrefillStopped) as stopped:
        again(
            model, cache, config(),
            on_progress=lambda done, total: told.append((done, total)),
            stop=lambda: len(told) == 2,
        )  # fmt: skip
    assert told == [(PIECE, N), (2 * PIECE, N)]
    assert stopped.value.cache is cache and stopped.value.n_seen == 2 * PIECE
    whole = again(model, first_read(model, config()), config())
    assert scores_of(again(model, cache, config())) == scores_of(whole)


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_a_piece_is_made_to_fit_the_window_or_refused(
    positions: Positions, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model()
    rules = config(positions)
    cache = first_read(model, rules)
    used = N if positions == "original" else max(n for x in cache.layers for n in x.lengths)
    longest: list[int] = []
    attend = CacheView.attend

    def attending(self: CacheView, *arguments: Any) -> Tensor:
        out = attend(self, *arguments)
        longest.append(self.n_tail)
        return out

    monkeypatch.setattr(CacheView, "attend", attending)
    window = used + 42 + 80
    cache.geometry = replace(cache.geometry, window=window)
    assert again(model, cache, rules, piece_tokens=1024).kept_tokens == 40
    assert used + max(longest) <= window
    cache.geometry = replace(cache.geometry, window=used + 60)
    with pytest.raises(InvalidSetting, match="no room to repeat"):
        again(model, cache, rules, piece_tokens=1024)


def test_the_lack_of_room_is_said_before_the_first_pass() -> None:
    check_room(4096, LAYOUT, 3500, config("original"))
    check_room(4096, LAYOUT, 9000, config("auto"))
    with pytest.raises(InvalidSetting, match="no room"):
        check_room(4096, LAYOUT, 4000, config("original"))


def test_what_passes_before_the_first_pass_passes_after_it() -> None:
    """The first piece's request is the shortest: later ones quote what came before."""
    model: Any = tiny_model()
    rules = config("original")
    for n in range(3900, 4020, 4):
        try:
            check_room(4096, LAYOUT, n, rules)
        except InvalidSetting:
            return
        cache = first_read(model, rules)
        cache.geometry = replace(cache.geometry, window=N + 4096 - n)
        again(model, cache, rules, piece_tokens=64)
    pytest.fail("nothing was refused")


def test_with_everything_kept_there_is_nothing_to_choose() -> None:
    model: Any = tiny_model()
    rules = config(budget_tokens=None)
    cache = first_read(model, rules)
    assert first_pass(rules) == rules and again(model, cache, rules) is cache


class Heard:
    """A `Store` that keeps what the first layer answers: its input is the text alone."""

    wants_hidden = False

    def __init__(self, cache: DocCache) -> None:
        self.view, self.out = cache.view(), torch.empty(0)

    def see_hidden(self, layer: int, hidden: Tensor) -> None:
        """Store protocol; there is no use for it."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        out = self.view.attend(layer, q, k, v, scale)
        if layer == 0:
            self.out = out
        return out


def replayed_answers(model: Any, cache: DocCache) -> Tensor:
    found = []
    for first in range(0, N, PIECE):
        ids = replay_ids(LAYOUT, TEXT, N_HEADER, first, min(first + PIECE, N))
        heard = Heard(cache)
        with torch.inference_mode():
            decoder_of(model.model)(input_ids=torch.tensor([ids]), use_cache=False, store=heard)
        found.append(heard.out)
    return torch.cat(found, dim=1)


def test_after_a_refit_fewer_entries_answer_a_replay_more_like_the_larger_cache() -> None:
    model: Any = tiny_model()
    rules = config()
    large = first_read(model, rules)
    plain = again(model, large, rules)
    moved = again(model, large, config(refit=True))
    moved.check()
    for a, b in zip(plain.layers, moved.layers, strict=True):
        assert torch.equal(a.positions, b.positions) and torch.equal(a.keys.fine, b.keys.fine)
        assert a.offsets == b.offsets and not torch.equal(a.values.fine, b.values.fine)
    wanted = replayed_answers(model, large)
    before, after = (
        float((replayed_answers(model, cache) - wanted).square().mean()) for cache in (plain, moved)
    )
    assert after < 0.8 * before


def test_a_refit_in_compact_positions_finds_its_keys() -> None:
    model: Any = tiny_model()
    rules = config("compact", refit=True, allocation="uniform")
    large = first_read(model, rules)
    # As many stay as there are: what is refitted to its own answers does not move.
    same = replace(rules.eviction, budget_tokens=int(large.kept_tokens))
    whole = read_again(model, large, LAYOUT, N_HEADER, same, piece_tokens=PIECE)
    for a, b in zip(large.layers, whole.layers, strict=True):
        torch.testing.assert_close(a.values.fine, b.values.fine, atol=1e-4, rtol=0)


def test_the_first_pass_leaves_values_alone() -> None:
    assert not first_pass(config(refit=True)).eviction.refit
