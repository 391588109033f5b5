"""Selection over all heads, entry for entry as the rules spell it out, and rows in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kernels
from engine.eviction import EvictionConfig, HeadEntries, protected, select
from kernels import cpu_selection, selection
from kernels.quantise import Codes, quantise
from kernels.selection import (
    LayerRows,
    compact,
    counts_of,
    kept_indices,
    offsets_after,
    row_of,
)

SINKS, STABILIZERS, LOCALS = 2, 4, 3
KeepMask = Callable[..., Tensor]
both = pytest.mark.parametrize("keep_mask", [selection.keep_mask, cpu_selection.keep_mask])


@dataclass(frozen=True)
class Case:
    """Entries of some layers with two heads each, and the rules."""

    entries: list[list[HeadEntries]]
    config: EvictionConfig
    n_seen: int
    last: bool
    ceiling: int | None

    @property
    def heads(self) -> list[HeadEntries]:
        return [head for layer in self.entries for head in layer]

    def engine(self) -> list[list[int]]:
        """What engine.eviction keeps of each head."""
        chosen = select(
            self.entries, self.config, self.n_seen, last=self.last, ceiling=self.ceiling
        )
        return [kept.tolist() for layer in chosen for kept in layer]


@st.composite
def cases(draw: Any, allocation: str = "global") -> Case:
    n_layers = draw(st.integers(1, 3))
    n_seen = draw(st.integers(12, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    kind = draw(st.sampled_from(["rand", "ties", "few", "masked", "zeros"]))
    entries = []
    for _ in range(n_layers):
        layer = []
        for _ in range(2):
            n = draw(st.integers(1, n_seen))
            positions = torch.randperm(n_seen, generator=generator)[:n].sort().values
            layer.append(HeadEntries(scores_of(kind, n, generator), positions))
        entries.append(layer)
    budget = draw(st.integers(SINKS + STABILIZERS + 1, n_seen + 5))
    config = EvictionConfig(
        budget_tokens=budget,
        allocation=allocation,  # type: ignore[arg-type]
        head_floor=draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        sink_tokens=SINKS,
        stabilizer_tokens=STABILIZERS,
        local_tokens=LOCALS,
    )
    ceiling = draw(st.none() | st.integers(1, n_seen))
    return Case(entries, config, n_seen, draw(st.booleans()), ceiling)


def scores_of(kind: str, n: int, generator: torch.Generator) -> Tensor:
    """[n] fp32: all different, many alike, all alike, some minus infinity, or both zeros."""
    scores = torch.randn(n, generator=generator)
    if kind == "ties":
        return (scores * 2).round()
    if kind == "few":
        return torch.full((n,), -1.5)
    if kind == "masked":
        return torch.where(scores < 0, -torch.inf, scores)
    if kind == "zeros":
        return torch.where(scores < 0, -0.0, 0.0)
    return scores


def flat(heads: list[HeadEntries], case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, positions, offsets and the protected, as `keep_mask` takes them."""
    lengths = torch.tensor([0] + [len(h.scores) for h in heads])
    scores = torch.cat([h.scores for h in heads])
    positions = torch.cat([h.positions for h in heads])
    ruled = protected(positions, case.config, case.n_seen, last=case.last)
    return scores, positions.int(), lengths.cumsum(0).int(), ruled


def spelled_out(heads: list[HeadEntries], case: Case, floor: int, budget: int) -> list[list[int]]:
    """The rules again, in words of Python: protected, floors, then the best of all rows."""
    rows, kept, pool = [], [], []
    for row, head in enumerate(heads):
        ruled = protected(head.positions, case.config, case.n_seen, last=case.last).tolist()
        order = sorted(
            zip(
                ruled, head.scores.tolist(), head.positions.tolist(), range(len(ruled)), strict=True
            ),
            reverse=True,
        )
        capped = min(len(order), len(order) if case.ceiling is None else case.ceiling)
        sure = max(sum(ruled), min(floor, capped))
        kept.append([index for _, _, _, index in order[:sure]])
        pool += [(s, p, -row, index) for _, s, p, index in order[sure : max(sure, capped)]]
        rows.append(sure)
    for _, _, row, index in sorted(pool, reverse=True)[: max(budget - sum(rows), 0)]:
        kept[-row].append(index)
    return [sorted(row) for row in kept]


def chosen(
    keep_mask: KeepMask, heads: list[HeadEntries], case: Case, floor: int, budget: int
) -> list[list[int]]:
    """What `keep_mask` keeps of each head, as indices inside the head."""
    scores, positions, offsets, ruled = flat(heads, case)
    floors = torch.full((len(heads),), floor, dtype=torch.int32)
    keep = keep_mask(scores, positions, offsets, ruled, floors, budget, case.ceiling)
    assert keep.dtype == torch.bool and keep.shape == scores.shape
    return [keep[a:b].nonzero()[:, 0].tolist() for a, b in pairwise(offsets.tolist())]


@both
@given(cases())
@settings(max_examples=150, deadline=None)
def test_one_budget_over_all_heads_is_the_engines_global_allocation(
    keep_mask: KeepMask, case: Case
) -> None:
    budget = case.config.budget_tokens
    assert budget is not None
    floor = int(case.config.head_floor * budget)
    expected = spelled_out(case.heads, case, floor, budget * len(case.heads))
    found = chosen(keep_mask, case.heads, case, floor, budget * len(case.heads))
    assert found == expected == case.engine()


@given(cases("per_layer"))
@settings(max_examples=40, deadline=None)
def test_layer_by_layer_it_is_the_engines_per_layer_allocation(case: Case) -> None:
    budget = case.config.budget_tokens
    assert budget is not None
    floor = int(case.config.head_floor * budget)
    parts = [spelled_out(layer, case, floor, budget * len(layer)) for layer in case.entries]
    assert [row for part in parts for row in part] == case.engine()


@given(cases("uniform"))
@settings(max_examples=40, deadline=None)
def test_with_floors_alone_it_is_the_engines_uniform_allocation(case: Case) -> None:
    budget = case.config.budget_tokens
    assert budget is not None
    assert spelled_out(case.heads, case, budget, 0) == case.engine()


@both
def test_ties_go_to_the_later_position_then_to_the_earlier_row(keep_mask: KeepMask) -> None:
    scores = torch.zeros(6)
    positions = torch.tensor([1, 5, 9, 1, 5, 9], dtype=torch.int32)
    offsets = torch.tensor([0, 3, 6], dtype=torch.int32)
    nobody, floors = torch.zeros(6, dtype=torch.bool), torch.zeros(2, dtype=torch.int32)
    order = []
    for budget in range(1, 7):
        keep = keep_mask(scores, positions, offsets, nobody, floors, budget)
        order.append(set(keep.nonzero()[:, 0].tolist()))
    assert order == [{2}, {2, 5}, {1, 2, 5}, {1, 2, 4, 5}, {0, 1, 2, 4, 5}, set(range(6))]


@both
def test_rows_without_entries_are_passed_over(keep_mask: KeepMask) -> None:
    offsets = torch.tensor([0, 0, 3, 3, 5, 5], dtype=torch.int32)
    assert row_of(offsets, 5).tolist() == [1, 1, 1, 3, 3]
    keep = torch.tensor([True, False, True, False, True])
    assert offsets_after(keep, offsets).tolist() == [0, 0, 2, 2, 3, 3]
    assert counts_of(keep, offsets).tolist() == [0, 2, 0, 1, 0]
    floors = torch.tensor([4, 1, 4, 0, 4], dtype=torch.int32)
    scores, positions = torch.arange(5.0), torch.tensor([0, 1, 2, 0, 1], dtype=torch.int32)
    none = torch.zeros(5, dtype=torch.bool)
    kept = keep_mask(scores, positions, offsets, none, floors, 2)
    assert kept.tolist() == [False, False, True, False, True]
    empty = keep_mask(scores[:0], positions[:0], torch.zeros(3).int(), none[:0], floors[:2], 2)
    assert len(empty) == 0


@pytest.mark.parametrize("last", [100, 2**31 - 1])
def test_thresholds_keep_what_sorting_keeps_of_many_entries(last: int) -> None:
    """Of a cache's size; positions so far that they do not fit beside a row are sorted."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, 900, (48,), generator=generator)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    total = int(offsets[-1])
    positions = torch.cat([torch.arange(n) for n in lengths.tolist()]).int()
    positions[offsets[1:].long() - 1] = last
    assert cpu_selection.packs(positions, offsets) == (last == 100)
    scores = (torch.randn(total, generator=generator) * 50).round()
    ruled = torch.rand(total, generator=generator) < 0.05
    floors = torch.randint(0, 300, (48,), generator=generator).int()
    for budget, ceiling in ((9000, None), (9000, 250), (0, None), (total, 400)):
        given = (scores, positions, offsets, ruled, floors, budget, ceiling)
        assert torch.equal(cpu_selection.keep_mask(*given), selection.keep_mask(*given))


def test_the_cpu_selects_by_thresholds_and_the_reference_by_sorting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    for name, module in (("thresholds", cpu_selection), ("sorting", selection)):
        monkeypatch.setattr(module, "keep_mask", lambda *_, name=name: asked.append(name))
    given = (torch.zeros(0), *[torch.zeros(0).int()] * 4, 1)
    kernels.keep_mask(*given)
    with kernels.force("reference"):
        kernels.keep_mask(*given)
    assert asked == ["thresholds", "sorting"]


@pytest.mark.parametrize("capacity", [0, 2, 3, 5])
def test_indices_ascend_and_fill_a_fixed_capacity(capacity: int) -> None:
    keep = torch.tensor([False, True, True, False, True, False])
    expected = ([1, 2, 4] + [-1] * capacity)[:capacity]
    assert kept_indices(keep, capacity).tolist() == expected


@pytest.mark.parametrize("bits", [16, 4])
def test_compaction_keeps_rows_whole_and_in_order(bits: int) -> None:
    generator = torch.Generator().manual_seed(3)
    n = 63
    floats = torch.randn(2, n, 64, generator=generator)
    keys, values = (x if bits == 16 else quantise(x, bits) for x in floats)
    rows = LayerRows(keys, values, torch.arange(n).int(), torch.randn(n, generator=generator))
    keep = torch.rand(n, generator=generator) < 0.4
    out = compact(rows, keep, int(keep.sum()))
    assert torch.equal(out.positions, rows.positions[keep])
    assert torch.equal(out.scores, rows.scores[keep])
    for before, after in ((rows.keys, out.keys), (rows.values, out.values)):
        if isinstance(before, Codes):
            assert isinstance(after, Codes) and after.bits == bits
            assert torch.equal(after.codes, before.codes[keep])
            assert torch.equal(after.step, before.step[keep])
            assert torch.equal(after.zero, before.zero[keep])
        else:
            assert isinstance(after, Tensor) and torch.equal(after, before[keep])
