"""Quantised rows: bounded error, exact packing, rows that stand alone, frames that undo."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.quantise import (
    BITS,
    dequantise,
    frame_of,
    group_size,
    into_frame,
    out_of_frame,
    pack,
    quantise,
    row_nbytes,
    unpack,
)

DIMS = (16, 64, 80, 96, 128, 256)


def rows(n: int, head_dim: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, head_dim, generator=generator) * scale + 1.0


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("head_dim", DIMS)
def test_the_error_is_at_most_half_a_step(bits: int, head_dim: int) -> None:
    x = rows(63, head_dim)
    codes = quantise(x, bits)
    grouped = x.reshape(63, -1, group_size(head_dim))
    span = grouped.amax(-1) - grouped.amin(-1)
    error = (dequantise(codes, torch.float32) - x).abs().reshape(grouped.shape).amax(-1)
    # fp16 rounds zero and step: a thousandth of the largest value, and of the whole span
    slack = 2e-3 * (grouped.abs().amax(-1) + span)
    assert bool((error <= span / (2 * (2**bits - 1)) + slack).all())
    assert codes.nbytes == 63 * row_nbytes(head_dim, bits) and codes.head_dim == head_dim


@given(st.sampled_from(BITS), st.sampled_from(DIMS), st.integers(0, 40), st.integers(0, 2**16))
def test_packing_loses_nothing(bits: int, head_dim: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (n, head_dim), generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (n, head_dim * bits // 8) and packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, bits), codes)


def test_two_planes_are_the_halves_that_rotary_embedding_turns() -> None:
    codes = torch.arange(16, dtype=torch.uint8)[None]
    packed = pack(codes, 4)
    assert torch.equal(packed & 15, codes[:, :8]) and torch.equal(packed >> 4, codes[:, 8:])


@pytest.mark.parametrize("bits", BITS)
def test_a_row_does_not_hang_on_its_neighbours(bits: int) -> None:
    x = rows(257, 64)
    whole = quantise(x, bits)
    index = torch.tensor([256, 3, 3, 0])
    for part in (whole[index], quantise(x[index], bits)):
        assert torch.equal(dequantise(part, torch.float32), dequantise(whole, torch.float32)[index])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, -7.25, 1e-7, 6e4])
def test_rows_of_one_value_come_back(bits: int, value: float) -> None:
    x = torch.full((2, 64), value)
    back = dequantise(quantise(x, bits), torch.float32)
    assert torch.allclose(back, x, rtol=1e-3, atol=1e-6)


def test_nothing_is_quantised_twice_over() -> None:
    x = rows(20, 64)
    once = dequantise(quantise(x, 8), torch.float32)
    twice = dequantise(quantise(once, 8), torch.float32)
    assert float((twice - once).abs().max()) < 0.02


def test_bits_that_do_not_exist_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 bits"):
        quantise(rows(1, 64), 3)


def test_a_frame_takes_the_large_channels_out_of_the_way() -> None:
    keys = rows(300, 64).reshape(2, 150, 64)
    keys[:, :, 7] = keys[:, :, 7] * 0.5 + 90.0  # as biased keys have them
    frame = frame_of(list(keys))
    framed = into_frame(keys[1], frame, 1)
    assert torch.allclose(out_of_frame(framed, frame, 1), keys[1], atol=1e-4)
    back = out_of_frame(dequantise(quantise(framed, 4), torch.float32), frame, 1)
    plain = dequantise(quantise(keys[1], 4), torch.float32)
    others = [c for c in range(64) if c != 7]
    with_frame = (back - keys[1])[:, others].square().mean()
    without = (plain - keys[1])[:, others].square().mean()
    assert with_frame < 0.1 * without
