"""Rotation in pieces: the formula at every length, and no long head in fp32 at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.memory import PIECE_ROWS
from engine.rotary import TURNED_AT_ONCE, Rotary
from engine.rows import Rows
from kernels.quantise import frame_of, into_frame, quantise

DIM = 64
ROTARY = Rotary(10_000 ** -(torch.arange(0, DIM, 2) / DIM))


class LargestFloats(TorchDispatchMode):
    """Remembers the rows of the largest fp32 tensor of head_dim columns that was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.dtype == torch.float32 and found.numel():
            self.rows = max(self.rows, found.numel() // DIM)
        return found


def by_formula(x: Tensor, positions: Tensor) -> Tensor:
    angles = positions[..., None].double() * ROTARY.inv_freq.double()
    first, second = x.double().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def coded(n: int) -> Rows:
    """One head of n keys in 8 bits and three newer ones in bf16."""
    keys = torch.randn(n + 3, DIM).bfloat16()
    frame = frame_of([keys])
    return Rows(keys[n:], (0, n + 3), (n,), quantise(into_frame(keys[:n], frame, 0), 8), frame)


@pytest.mark.parametrize("n", [1, PIECE_ROWS - 1, PIECE_ROWS, PIECE_ROWS + 1, 3 * PIECE_ROWS + 5])
def test_a_rotation_is_the_formula_at_every_length(n: int) -> None:
    x = torch.randn(2, n, DIM)
    positions = torch.randint(0, 1000, (2, n))
    torch.testing.assert_close(
        ROTARY.rotate(x, positions), by_formula(x, positions).float(), rtol=1e-4, atol=1e-3
    )


def test_one_position_serves_all_rows() -> None:
    x = torch.randn(PIECE_ROWS + 7, DIM)
    torch.testing.assert_close(
        ROTARY.rotate(x, torch.tensor([5])), ROTARY.rotate(x, torch.full((len(x),), 5))
    )


@pytest.mark.parametrize("still", [0, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 5, 2 * TURNED_AT_ONCE + 3])
def test_few_rows_are_turned_by_the_formula(n: int, dtype: torch.dtype, still: int) -> None:
    x = torch.randn(2, 3, n, DIM + still).to(dtype)
    places = torch.randint(0, 1000, (2, 1, n))
    found = ROTARY.turn(x, *ROTARY.turns(places))
    assert found.dtype == torch.float32
    expected = by_formula(x[..., :DIM], places.expand(2, 3, n)).float()
    torch.testing.assert_close(found[..., :DIM], expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(found[..., DIM:], x[..., DIM:].float())


def test_no_long_head_is_in_fp32_at_once_while_it_is_turned() -> None:
    x = torch.randn(1, 4 * PIECE_ROWS, DIM).bfloat16()
    with LargestFloats() as seen:
        ROTARY.rotate(x, torch.arange(x.shape[1]))
    assert 0 < seen.rows <= PIECE_ROWS
    turns = ROTARY.turns(torch.arange(x.shape[1]))
    with LargestFloats() as seen:
        ROTARY.turn(x, *turns, torch.bfloat16)
    assert 0 < seen.rows <= TURNED_AT_ONCE


def test_no_long_head_is_in_fp32_at_once_while_it_is_decoded() -> None:
    rows = coded(4 * PIECE_ROWS)
    with LargestFloats() as seen:
        rows.floats(0, torch.bfloat16)
    assert 0 < seen.rows <= PIECE_ROWS


@pytest.mark.parametrize("n", [1, PIECE_ROWS, 2 * PIECE_ROWS + 9])
def test_codes_decoded_in_pieces_are_those_decoded_one_by_one(n: int) -> None:
    rows = coded(n)
    assert rows.codes is not None and rows.frame is not None
    each = [
        Rows(rows.fine[:0], (0, 1), (1,), rows.codes[i : i + 1], rows.frame).floats(
            0, torch.float32
        )
        for i in (0, n // 2, n - 1)
    ]
    found = rows.floats(0, torch.float32)
    assert torch.equal(torch.cat(each), found[[0, n // 2, n - 1]])
    assert torch.equal(found[n:], rows.fine.float())
