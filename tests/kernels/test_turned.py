"""Queries over turned entries of ragged heads: layout, and the CPU's way against the plain one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import TurnedEntries, cpu, reference
from kernels.turned import LONGEST_PART, SHORTEST_PART, part_rows

LENGTHS = [(1,), (1, 600), (512, 513), (384, 900, 2100), (5, 3, 1), (1536, 1536), (4000, 7, 511)]
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)]


def laid(
    lengths: tuple[int, ...], dim: int, dtype: torch.dtype
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], TurnedEntries]:
    """Heads of random keys and values, and the same as they are laid."""
    generator = torch.Generator().manual_seed(sum(lengths))
    heads = [
        (
            torch.randn(n, dim, generator=generator).to(dtype),
            torch.randn(n, dim, generator=generator).to(dtype),
        )
        for n in lengths
    ]
    entries = TurnedEntries.room(lengths, dim, dtype, torch.device("cpu"))
    for head, (keys, values) in enumerate(heads):
        entries.lay(head, keys, values)
    return heads, entries


def check_each_head(
    found: tuple[torch.Tensor, torch.Tensor],
    q: torch.Tensor,
    heads: list[tuple[torch.Tensor, torch.Tensor]],
    scale: float,
    tolerance: float,
) -> None:
    """Outputs and log-sum-exps against the plain attention of each head by itself."""
    for head, (keys, values) in enumerate(heads):
        expected = reference.attend(q[head], keys, values, scale)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours[head], theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("rows", [1, 7, 63, 600])
def test_all_heads_at_once_are_each_head_by_itself(
    lengths: tuple[int, ...], dtype: torch.dtype, tolerance: float, rows: int
) -> None:
    heads, entries = laid(lengths, 64, dtype)
    q = torch.randn(len(lengths), rows, 64, generator=torch.Generator().manual_seed(rows)).to(dtype)
    out, lse = kernels.attend_turned(q, entries, 0.3)
    assert out.dtype == dtype and lse.dtype == torch.float32
    check_each_head((out, lse), q, heads, 0.3, tolerance)


@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_head_sizes(dim: int) -> None:
    heads, entries = laid((700, 1300), dim, torch.float32)
    q = torch.randn(2, 8, dim, generator=torch.Generator().manual_seed(dim))
    check_each_head(kernels.attend_turned(q, entries, 0.1), q, heads, 0.1, 1e-5)


def test_parts_whose_logits_are_far_apart() -> None:
    """One part holds all the weight, and the other head's logits are hundreds away."""
    heads, entries = laid((1200, 1200), 64, torch.float32)
    (first, _), (second, _) = heads
    first[700], second[5] = 40.0, -40.0
    for head, (keys, values) in enumerate(heads):
        entries.lay(head, keys, values)
    q = torch.ones(2, 7, 64)
    out, lse = kernels.attend_turned(q, entries, 0.3)
    assert bool(torch.isfinite(lse).all())
    check_each_head((out, lse), q, heads, 0.3, 1e-5)


def test_what_fills_up_is_not_seen() -> None:
    """Whatever lies behind a head's last row, it weighs nothing."""
    _, entries = laid((1000, 1100), 64, torch.float32)
    q = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0))
    before = kernels.attend_turned(q, entries, 0.3)
    hidden = entries.unseen[0, :, 0].isinf()
    assert bool(hidden.any())
    entries.rest[0][hidden], entries.rest[1][hidden] = 9.0, 1e6
    after = kernels.attend_turned(q, entries, 0.3)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_head_that_is_no_number_leaves_the_others_alone() -> None:
    """Where there is nothing to join, as in the first prompt on a short text."""
    heads, entries = laid((300, 20), 64, torch.float32)
    heads[0][1][7] = float("nan")
    entries.lay(0, *heads[0])
    out, lse = kernels.attend_turned(torch.randn(2, 7, 64), entries, 0.3)
    assert bool(out[0].isnan().any())
    assert bool(torch.isfinite(out[1]).all()) and bool(torch.isfinite(lse).all())


def test_few_queries_take_one_call_for_the_whole_parts_and_one_for_the_rests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    flash = cpu._flash
    monkeypatch.setattr(cpu, "_flash", lambda q, *a: calls.append(q.shape[1]) or flash(q, *a))
    _, entries = laid((4000, 7, 2100), 64, torch.float32)
    kernels.attend_turned(torch.randn(3, 7, 64), entries, 0.3)
    assert sorted(calls) == [3, len(entries.head_of)]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("rows", [1, 7, 210, 600])
@pytest.mark.parametrize("n_tail", [1, 40])
def test_a_tail_follows_every_head(
    lengths: tuple[int, ...], dtype: torch.dtype, tolerance: float, rows: int, n_tail: int
) -> None:
    heads, entries = laid(lengths, 64, dtype)
    generator = torch.Generator().manual_seed(rows + n_tail)
    q, *tail = (
        torch.randn(len(lengths), n, 64, generator=generator).to(dtype)
        for n in (rows, n_tail, n_tail)
    )
    longer = [
        (torch.cat([keys, tail[0][head]]), torch.cat([values, tail[1][head]]))
        for head, (keys, values) in enumerate(heads)
    ]
    for backend in ("cpu", "reference"):
        with kernels.force(backend):
            out, lse = kernels.attend_turned(q, entries, 0.3, (tail[0], tail[1]))
            alone = kernels.mix_turned(q, entries, 0.3, (tail[0], tail[1]))
        check_each_head((out, lse), q, longer, 0.3, tolerance)
        assert alone.dtype == torch.float32
        check_each_head((alone.to(dtype), lse), q, longer, 0.3, tolerance)


def test_the_reference_says_the_same() -> None:
    _, entries = laid((900, 30), 64, torch.float32)
    q = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(3))
    found = kernels.attend_turned(q, entries, 0.3)
    with kernels.force("reference"):
        expected = kernels.attend_turned(q, entries, 0.3)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=5))
def test_rows_come_back_as_they_were_laid(lengths: list[int]) -> None:
    heads, entries = laid(tuple(lengths), 8, torch.float32)
    for head, (keys, values) in enumerate(heads):
        assert torch.equal(entries.keys(head), keys) and torch.equal(entries.values(head), values)
        assert torch.equal(torch.cat([k for k, _ in entries.pieces(head)]), keys)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=8))
def test_a_part_leaves_every_head_a_row_and_no_more_than_a_part(lengths: list[int]) -> None:
    rows = part_rows(lengths)
    assert SHORTEST_PART <= rows <= LONGEST_PART
    assert all(1 <= n - (n - 1) // rows * rows <= rows for n in lengths)


def test_of_all_lengths_of_a_part_the_one_is_taken_that_leaves_the_least() -> None:
    rows = part_rows((2700, 5400))
    assert max((n - 1) % rows for n in (2700, 5400)) < 16
    assert part_rows((100, 30)) == LONGEST_PART
