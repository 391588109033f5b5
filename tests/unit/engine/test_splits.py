"""Where kept rows part is asked of the device once, however many heads there are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig, prefill
from engine.quantisation import QuantConfig
from engine.scorers.keydiff import KeyDiffScorer
from engine.splits import counts_below
from tests.fakes import tiny_model, tokens

READERS = ("item", "tolist", "__int__", "__bool__", "__float__", "__index__")


def test_counts_below_bounds() -> None:
    rows = [torch.tensor([0, 3, 5, 9]), torch.tensor([], dtype=torch.int64), torch.tensor([4])]
    bounds = [(0, 4, 100), (1, 2, 3), (4, 5, 0)]
    assert counts_below(rows, bounds) == [[0, 2, 4], [0, 0, 0], [0, 1, 0]]
    assert counts_below([row.int() for row in rows], bounds)[0] == [0, 2, 4]
    assert counts_below([], []) == []


def questions_of_a_chunk(monkeypatch: pytest.MonkeyPatch, n_layers: int, n_heads: int) -> int:
    """How often a reading's later chunks ask a tensor for a value, a chunk."""
    model: Any = tiny_model(
        num_hidden_layers=n_layers, num_key_value_heads=n_heads, num_attention_heads=8
    )
    eviction = EvictionConfig(
        24, "global", sink_tokens=2, stabilizer_tokens=4, local_tokens=4, positions="original"
    )
    config = PrefillConfig(16, eviction, "bf16", QuantConfig(8, 4, recent_tokens=6))
    asked: Counter[int] = Counter()
    chunk = 0

    def on_progress(done: int, total: int) -> None:
        nonlocal chunk
        chunk = done // 16

    with monkeypatch.context() as patch:
        for name in READERS:
            read = getattr(Tensor, name)

            def counted(*given: Any, read: Any = read) -> Any:
                asked[chunk] += 1
                return read(*given)

            patch.setattr(Tensor, name, counted)
        with kernels.force("reference"):  # on the CPU selection asks, where it costs nothing
            prefill(model, tokens(64), config, KeyDiffScorer(), on_progress=on_progress)
    return asked[2]


def test_a_chunk_asks_as_often_whatever_the_number_of_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, many = (questions_of_a_chunk(monkeypatch, *size) for size in ((2, 2), (6, 8)))
    assert 0 < few == many < 10, (few, many)
