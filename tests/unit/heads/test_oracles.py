"""Oracles: each rates every entry, and finds what a question's answer was made to need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig, prefill
from engine.scorers.uniform_random import RandomScorer
from heads import oracles
from heads.labels import Labels, Probe, measure, output_grams
from heads.oracles import ORACLES
from heads.replay import replay_ids
from tests.fakes import tiny_model, tokens
from tests.unit.heads.number_layout import NumberLayout, NumberPrefix, numbers

N = 123
LAYOUT = NumberLayout()
PREFIX: NumberPrefix = LAYOUT.prefix(numbers(N - 5, 1))
ASKED = [([6, *tokens(5, seed=i), 7], tokens(3, seed=20 + i)) for i in range(2)]
WHOLE = PrefillConfig(N, EvictionConfig(None, positions="original"), "fp32")


def read(model: Any) -> Any:
    return prefill(model, PREFIX.token_ids, WHOLE, RandomScorer(0))


@pytest.mark.parametrize("name", sorted(ORACLES))
@pytest.mark.parametrize("piece", [2048, 50])
def test_every_entry_gets_a_finite_score(
    name: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracles, "PIECE_TOKENS", piece)
    model: Any = tiny_model()
    scores = ORACLES[name](model, read(model), LAYOUT, PREFIX, ASKED)
    assert list(scores) == [0, 1]
    for row in scores.values():
        assert row.shape == (2, N) and row.dtype == torch.float32
        assert bool(row.isfinite().all()) and row.std() > 0


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_only_two_of_them_know_the_questions(name: str) -> None:
    model: Any = tiny_model()
    cache = read(model)
    other = [([6, *tokens(4, seed=80 + i), 7], tokens(3, seed=90 + i)) for i in range(2)]
    one, two = (ORACLES[name](model, cache, LAYOUT, PREFIX, asked) for asked in (ASKED, other))
    assert torch.equal(one[1], two[1]) == (name not in ("answers_oracle", "cis_oracle"))


def test_a_long_document_is_repeated_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracles, "PIECE_TOKENS", 50)
    model: Any = tiny_model()
    cache = read(model)
    scores = ORACLES["kvzip_oracle"](model, cache, LAYOUT, PREFIX, ASKED)
    for first in (0, 50, 100):
        piece = PREFIX.token_ids[first : first + 50]
        labels = Labels(["kvzip"], 2, 2, len(piece))
        end = first + len(piece)
        probe = Probe(replay_ids(LAYOUT, PREFIX.token_ids, PREFIX.n_header, first, end))
        measure(model, cache, output_grams(model), [probe], labels, first=first, n_sinks=3)
        for layer, row in scores.items():
            expected = labels.finished()["kvzip"][layer]
            assert torch.equal(row[:, first : first + 50], expected)


PLANTED = [11, 40, 41, 77, 100]


@pytest.mark.parametrize("name", ["answers_oracle", "cis_oracle"])
def test_entries_that_the_reader_looks_at_are_ranked_first(name: str) -> None:
    """Keys of some entries are made to point where every later query looks."""
    model: Any = tiny_model()
    cache = read(model)
    queries: list[torch.Tensor] = []
    rotate = model.rotary.rotate
    view = cache.view()
    plain = view.attend

    def watched(layer: int, q: Any, k: Any, v: Any, scale: float) -> Any:
        at = cache.n_seen + torch.arange(q.shape[1])
        queries.append(rotate(q, at).reshape(2, -1, q.shape[-1]).mean(1))
        return plain(layer, q, k, v, scale)

    view.attend = watched
    ids = [*ASKED[0][0], *ASKED[0][1]]
    with torch.inference_mode():
        model.model.model(input_ids=torch.tensor([ids]), use_cache=False, store=view)
    # The first layer's queries do not depend on the cache: what is planted there is what is seen.
    layer = cache.layers[0]
    layer.keys = replace(layer.keys, fine=layer.keys.fine.clone())
    with torch.inference_mode():
        for head in range(2):
            for place in PLANTED:
                turned = rotate(queries[0][head][None], -torch.tensor([place]))[0]
                layer.keys.fine[layer.offsets[head] + place] = turned * 60 / turned.norm()
    cache._readable = []
    scores = ORACLES[name](model, cache, LAYOUT, PREFIX, ASKED[:1])[0]
    for head in range(2):
        assert set(scores[head].topk(len(PLANTED)).indices.tolist()) == set(PLANTED)
