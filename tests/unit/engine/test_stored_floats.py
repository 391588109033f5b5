"""16-bit floats of a finished session take fewer bytes and come back bit for bit."""

from __future__ import annotations

import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.stored_floats import LEAST_NBYTES, packed_floats, unpacked_floats

HALVES = [torch.float16, torch.bfloat16]


def some(n: int, dim: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows whose channels differ in size, as keys and values do."""
    draw = torch.Generator().manual_seed(seed)
    sizes = 2.0 ** torch.randint(-6, 4, (dim,), generator=draw)
    return (torch.randn(n, dim, generator=draw) * sizes).to(dtype)


@given(
    st.sampled_from(HALVES), st.integers(1, 300), st.sampled_from([1, 16, 64]), st.integers(0, 9)
)
def test_every_bit_comes_back(dtype: torch.dtype, n: int, dim: int, seed: int) -> None:
    rows = some(n, dim, dtype, seed)
    parts = packed_floats("keys", rows)
    found = unpacked_floats("keys", parts, dtype)
    assert found.dtype == dtype and torch.equal(found.view(torch.int16), rows.view(torch.int16))


def test_what_is_not_a_number_comes_back_too() -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(1024, 64)
    for dtype in HALVES:
        found = unpacked_floats("keys", packed_floats("keys", bits.view(dtype)), dtype)
        assert torch.equal(found.view(torch.int16), bits)


@pytest.mark.parametrize(("dtype", "left"), [(torch.bfloat16, 0.75), (torch.float16, 0.92)])
def test_bytes_are_saved(dtype: torch.dtype, left: float) -> None:
    rows = some(4000, 64, dtype)
    parts = packed_floats("keys", rows)
    assert sum(part.nbytes for part in parts.values()) < left * rows.nbytes


@pytest.mark.parametrize(
    "rows",
    [
        some(LEAST_NBYTES // 128 - 1, 64, torch.bfloat16),
        torch.randn(1000, 64),
        torch.randint(-(2**15), 2**15, (1000, 64), dtype=torch.int16).view(torch.bfloat16),
        torch.empty(0, 64, dtype=torch.float16),
    ],
)
def test_what_gains_nothing_stays_as_it_is(rows: torch.Tensor) -> None:
    parts = packed_floats("keys", rows)
    assert list(parts) == ["keys"] and parts["keys"] is rows
    assert unpacked_floats("keys", parts, rows.dtype) is rows


def test_what_would_inflate_beyond_its_size_is_refused_before_it_does() -> None:
    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(1 << 26))), dtype=torch.uint8)
    parts = {"keys.low": torch.zeros(10, 64, dtype=torch.uint8), "keys.high": bomb}
    with pytest.raises(AssertionError, match="inflate"):
        unpacked_floats("keys", parts, torch.bfloat16)


def test_floats_of_another_size_are_refused() -> None:
    parts = packed_floats("keys", some(1000, 64, torch.bfloat16))
    with pytest.raises(AssertionError, match="16-bit"):
        unpacked_floats("keys", parts, torch.float32)
