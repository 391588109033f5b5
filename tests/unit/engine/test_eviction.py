"""What stays: budgets, floors, protected entries, ties, and the order of what is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidSetting
from engine.eviction import EvictionConfig, HeadEntries, Profile, compact_ceiling, select

LAYERS, HEADS = 3, 2


def entries(n: int, n_seen: int, seed: int, *, ties: bool = False) -> list[list[HeadEntries]]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(LAYERS):
        row = []
        for _ in range(HEADS):
            positions = torch.randperm(n_seen, generator=generator)[:n].sort().values
            scores = torch.rand(n, generator=generator)
            row.append(HeadEntries((scores * 4).round() if ties else scores, positions))
        rows.append(row)
    return rows


RULES: dict[str, Any] = {"sink_tokens": 2, "stabilizer_tokens": 4, "local_tokens": 3}


def config(allocation: str, budget: int | None = 20, **changes: Any) -> EvictionConfig:
    if allocation == "profile":
        table = tuple(tuple(1.0 + layer + head for head in range(HEADS)) for layer in range(LAYERS))
        changes = {"profile": Profile((0.5,), (table,)), "profile_part": 1.0, **changes}
    return EvictionConfig(budget_tokens=budget, allocation=allocation, **{**RULES, **changes})


ALL = ["uniform", "per_layer", "global", "profile"]


@given(
    n=st.integers(1, 80),
    extra=st.integers(0, 50),
    budget=st.integers(8, 60),
    seed=st.integers(0, 10_000),
    allocation=st.sampled_from(ALL),
    ties=st.booleans(),
    last=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_invariants(
    n: int, extra: int, budget: int, seed: int, allocation: str, ties: bool, last: bool
) -> None:
    n_seen = n + extra
    given_entries = entries(n, n_seen, seed, ties=ties)
    rules = config(allocation, budget)
    kept = select(given_entries, rules, n_seen, last=last)
    newest = rules.local_tokens if last else rules.stabilizer_tokens
    total = 0
    for row, kept_row in zip(given_entries, kept, strict=True):
        for head, index in zip(row, kept_row, strict=True):
            assert bool((index[1:] > index[:-1]).all()), "kept entries stay in document order"
            must = (head.positions < rules.sink_tokens) | (head.positions >= n_seen - newest)
            assert set(torch.nonzero(must)[:, 0].tolist()) <= set(index.tolist())
            total += len(index)
    if allocation in ("uniform", "per_layer", "global"):
        assert total == min(budget, n) * LAYERS * HEADS, "the budget is used, and never exceeded"
    if allocation in ("per_layer", "global"):
        floor = min(n, int(0.1 * budget))
        assert all(len(index) >= floor for kept_row in kept for index in kept_row)


@pytest.mark.parametrize("allocation", ALL)
def test_no_budget_keeps_everything(allocation: str) -> None:
    kept = select(entries(30, 40, 1), config(allocation, None), 40, last=False)
    assert all(index.tolist() == list(range(30)) for row in kept for index in row)


def test_uniform_keeps_the_best_of_each_head() -> None:
    rows = entries(30, 30, 3)
    kept = select(rows, config("uniform", 12), 30, last=True)
    scores = rows[1][0].scores.clone()
    scores[:2] = scores[-3:] = 9.0
    assert kept[1][0].tolist() == sorted(scores.topk(12).indices.tolist())


def test_ties_go_to_the_later_position() -> None:
    n = 30
    rows = [[HeadEntries(torch.zeros(n), torch.arange(n))]]
    rules = EvictionConfig(
        budget_tokens=8, sink_tokens=1, stabilizer_tokens=0, local_tokens=0, allocation="uniform"
    )
    assert select(rows, rules, n, last=True)[0][0].tolist() == [0, *range(23, 30)]


def test_global_lets_a_head_with_better_scores_have_more() -> None:
    rows = entries(50, 50, 5)
    rows[2][1] = HeadEntries(rows[2][1].scores + 10, rows[2][1].positions)
    kept = select(rows, config("global", 12), 50, last=True)
    counts = [[len(index) for index in row] for row in kept]
    assert counts[2][1] == 12 * 6 - 5 * 5, "all but the other heads' protected entries"
    assert sum(map(sum, counts)) == 12 * 6


def test_a_head_never_exceeds_the_ceiling() -> None:
    rows = entries(50, 50, 5)
    rows[2][1] = HeadEntries(rows[2][1].scores + 10, rows[2][1].positions)
    kept = select(rows, config("global", 12), 50, last=True, ceiling=20)
    assert len(kept[2][1]) == 20
    assert sum(len(index) for row in kept for index in row) == 12 * 6


def test_a_profile_is_rounded_to_the_whole_budget() -> None:
    kept = select(entries(70, 70, 6), config("profile", 13), 70, last=True)
    counts = [len(index) for row in kept for index in row]
    assert sum(counts) == 13 * 6
    assert counts == sorted(counts) or counts[-1] == max(counts)
    assert counts[-1] > counts[0]


def test_what_a_short_head_cannot_take_goes_to_the_others() -> None:
    table = tuple((1.0, 1e3) for _ in range(3))
    rules = EvictionConfig(
        20, "profile", profile=Profile((1.0,), (table,)), profile_part=1, **RULES
    )
    counts = [
        len(index) for row in select(entries(30, 30, 3), rules, 30, last=True) for index in row
    ]
    assert counts == [10, 30] * 3


def test_a_profile_of_part_nothing_is_the_global_budget() -> None:
    found = entries(60, 90, 4)
    alone = config("profile", 20, profile_part=0.0)
    pooled = config("global", 20, head_floor=0.0)
    for a, b in zip(
        select(found, alone, 90, last=True), select(found, pooled, 90, last=True), strict=True
    ):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_half_a_profile_is_a_floor_and_the_rest_is_won_by_score() -> None:
    found = entries(60, 90, 5)
    rules = config("profile", 20, profile_part=0.5)
    floors = config("profile", 20)
    shares = [len(i) for row in select(found, floors, 90, last=True) for i in row]
    counts = [len(i) for row in select(found, rules, 90, last=True) for i in row]
    assert sum(counts) == sum(shares) == 20 * LAYERS * HEADS and counts != shares
    assert all(n >= 4 + (share - 4) // 2 for n, share in zip(counts, shares, strict=True))


def test_a_profile_is_interpolated_and_even_when_everything_is_kept() -> None:
    low, high = ((1.0, 3.0),), ((1.0, 1.0),)
    profile = Profile((0.125, 0.5), (low, high))
    assert profile.at(0.01).tolist() == [[0.25, 0.75]]
    assert profile.at(0.25).tolist()[0] == pytest.approx([0.375, 0.625])
    assert profile.at(0.5).tolist() == profile.at(1.0).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(("kept", "n"), [((), 0), ((0.5, 0.25), 2), ((0.5,), 2), ((0.0,), 1)])
def test_a_bad_profile_is_refused(kept: tuple[float, ...], n: int) -> None:
    with pytest.raises(InvalidSetting, match="profile"):
        Profile(kept, (((1.0,),),) * n)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget_tokens": 6}, "6 at a text.s beginning and end are always kept"),
        ({"head_floor": 1.5}, "head_floor 1.5"),
        ({"allocation": "fair"}, "fair"),
        ({"positions": "wild"}, "wild"),
        ({"sink_tokens": -1}, "negative"),
        ({"allocation": "profile"}, "profile"),
    ],
)
def test_bad_settings_name_the_bound(changes: dict[str, Any], words: str) -> None:
    base = {"budget_tokens": 20, "sink_tokens": 2, "stabilizer_tokens": 4, "local_tokens": 3}
    with pytest.raises(InvalidSetting, match=words):
        EvictionConfig(**{**base, **changes})


def test_a_nan_score_is_our_own_mistake_and_loud() -> None:
    rows = entries(30, 30, 3)
    rows[0][0].scores[5] = torch.nan
    with pytest.raises(AssertionError, match="NaN"):
        select(rows, config("uniform", 12), 30, last=True)


def test_auto_positions_stay_original_while_question_and_answer_fit() -> None:
    rules = config("uniform")
    assert rules.resolve_positions(30_000, 32_768) == "original"
    assert rules.resolve_positions(31_000, 32_768) == "shared"


def test_a_small_window_keeps_half_of_itself_for_the_question() -> None:
    rules = config("uniform")
    assert rules.resolve_positions(1024, 2048) == "original"
    assert rules.resolve_positions(1025, 2048) == "shared"
    assert compact_ceiling(2048, 512) == 1024
    assert compact_ceiling(4096, 512) == 2048


def test_an_infinite_score_does_not_push_out_what_is_protected() -> None:
    scores = torch.full((20,), torch.inf)
    entries = [[HeadEntries(scores, torch.arange(20))]]
    config = EvictionConfig(6, "uniform", sink_tokens=2, stabilizer_tokens=2, local_tokens=2)
    kept = select(entries, config, 20, last=True)[0][0].tolist()
    assert {0, 1, 18, 19} <= set(kept) and len(kept) == 6
