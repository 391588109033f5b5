"""A snapshot's positions and scores take fewer bytes and come back."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.stored_entries import halved, packed_entries, unpacked_entries


@st.composite
def heads(draw: st.DrawFn) -> tuple[torch.Tensor, list[int]]:
    """Ascending positions of one to four heads, some of them empty."""
    rows = draw(
        st.lists(st.sets(st.integers(0, 200_000), max_size=20).map(sorted), min_size=1, max_size=4)
    )
    offsets = [0]
    for row in rows:
        offsets.append(offsets[-1] + len(row))
    return torch.tensor([p for row in rows for p in row], dtype=torch.int32), offsets


@given(heads())
def test_positions_come_back_whatever_lies_between_them(
    given_heads: tuple[torch.Tensor, list[int]],
) -> None:
    positions, offsets = given_heads
    scores = torch.randn(len(positions))
    parts = packed_entries(positions, scores, offsets, finished=False)
    found, kept = unpacked_entries(parts, offsets)
    assert found.dtype == torch.int32 and torch.equal(found, positions)
    assert torch.equal(kept, scores)
    rows = [positions[a:b].tolist() for a, b in pairwise(offsets)]
    widest = max((b - a for row in rows for a, b in pairwise([0, *row])), default=0)
    assert ("positions" in parts) == (widest >= 2**16)


def test_a_finished_reading_keeps_half_the_bytes() -> None:
    positions = torch.arange(0, 4000, 10, dtype=torch.int32)
    scores = torch.randn(400)
    parts = packed_entries(positions, scores, [0, 400], finished=True)
    assert sum(part.nbytes for part in parts.values()) == 400 * (2 + 2)
    found, kept = unpacked_entries(parts, [0, 400])
    assert torch.equal(found, positions)
    torch.testing.assert_close(kept, scores, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("value", [70_000.0, float("inf")])
def test_what_16_bits_cannot_hold_stays_as_it_is(value: float) -> None:
    x = torch.tensor([1.0, value])
    assert halved(x) is x


def test_the_parts_of_before_are_read_too() -> None:
    positions = torch.tensor([0, 3, 9], dtype=torch.int32)
    found, kept = unpacked_entries({"positions": positions, "scores": torch.ones(3)}, [0, 1, 3])
    assert torch.equal(found, positions) and kept.dtype == torch.float32
