"""Quantised rows by Triton: the same codes as the plain version, and the same rows back."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from kernels import quantise as plain
from kernels.quantise import BITS, Codes, group_size
from tests.kernels.aot import SHARED_LIMIT, compile_all, interpret_without_gpu, recorded
from tests.kernels.poison import poisoned_memory

if find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)
DEVICE = interpret_without_gpu()

from kernels import triton_quantise as fused  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Rows, values in a row, dtype: each size and each dtype a few times.
SIZES = [
    (1, 64, torch.float32),
    (63, 96, torch.bfloat16),
    (63, 80, torch.float32),
    (257, 128, torch.float16),
    (257, 16, torch.bfloat16),
    (63, 256, torch.float16),
]


def rows(n: int, head_dim: int, dtype: torch.dtype, device: str = DEVICE) -> Tensor:
    """[n, head_dim] with one row of zeros, one of a single value, one tiny and one large."""
    generator = torch.Generator().manual_seed(n + head_dim)
    x = torch.randn(n, head_dim, generator=generator) * 3 + 1
    if n > 4:
        x[0], x[1] = 0.0, -7.25
        x[2] *= 1e-6
        x[3] *= 1e3
    return x.to(device=device, dtype=dtype)


def equal(one: Codes, other: Codes) -> bool:
    parts = ((one.codes, other.codes), (one.step, other.step), (one.zero, other.zero))
    return one.bits == other.bits and all(torch.equal(a.cpu(), b.cpu()) for a, b in parts)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("n", "head_dim", "dtype"), SIZES)
def test_codes_are_the_plain_versions(bits: int, n: int, head_dim: int, dtype: torch.dtype) -> None:
    x = rows(n, head_dim, dtype)
    with poisoned_memory() as given:
        codes = fused.quantise(x, bits)
    assert len(given) == 3
    assert equal(codes, plain.quantise(x.cpu(), bits))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("n", "head_dim", "dtype"), [*SIZES[:4], (5, 256, torch.float16)])
def test_rows_come_back_to_the_last_bit(
    bits: int, n: int, head_dim: int, dtype: torch.dtype
) -> None:
    codes = plain.quantise(rows(n, head_dim, torch.float32), bits)
    with poisoned_memory() as given:
        x = fused.dequantise(codes, dtype)
    assert len(given) == 1 and x.dtype == dtype
    expected = plain.dequantise(codes, torch.float32)
    if (
        dtype == torch.bfloat16 and DEVICE == "cpu"
    ):  # Triton's interpreter cuts bf16 off, where a card rounds
        expected = (expected.view(torch.int32) & ~0xFFFF).view(torch.float32)
    assert torch.equal(x, expected.to(dtype))


@pytest.mark.parametrize("bits", BITS)
def test_halves_go_to_the_even_code(bits: int) -> None:
    most = 2**bits - 1
    values = torch.arange(64) % (2 * most + 1) / 2
    values[0], values[1] = 0.0, float(most)
    codes = plain.unpack(fused.quantise(values[None].to(DEVICE), bits).codes, bits)
    assert torch.equal(codes[0].float().cpu(), values.round())


def test_rows_may_have_a_stride() -> None:
    wide = rows(64, 128, torch.float32)
    for x in (wide[:, 32:96], wide[::2], wide.T[:96]):
        assert equal(fused.quantise(x, 4), plain.quantise(x.cpu(), 4))


def test_no_rows_give_no_codes_and_odd_widths_are_refused() -> None:
    codes = fused.quantise(torch.zeros(0, 64), 4)
    assert len(codes) == 0 and fused.dequantise(codes, torch.float32).shape == (0, 64)
    with pytest.raises(ValueError):
        fused.quantise(torch.zeros(1, 64), 3)


# Each width, each number of bits and each format once or more.
COMPILED = [
    (64, 4, torch.bfloat16),
    (96, 2, torch.float16),
    (128, 8, torch.bfloat16),
    (256, 8, torch.float16),
]


def test_it_compiles_for_every_card() -> None:
    launches = []
    for head_dim, bits, dtype in COMPILED:
        x = rows(63, head_dim, dtype)
        codes = plain.quantise(x.float(), bits)
        launches += recorded([fused.quantise_rows], lambda x=x, b=bits: fused.quantise(x, b))
        launches += recorded(
            [fused.dequantise_rows], lambda c=codes, t=dtype: fused.dequantise(c, t)
        )
    compiled = compile_all(launches)
    assert len(compiled) == 2 * len(COMPILED) * 5
    for launch, capability, made in compiled:
        assert made.cubin_bytes > 0 and made.shared_bytes <= SHARED_LIMIT[capability], launch
        assert made.spill_bytes == 0, (launch, capability, made)


def code_differences(x: Tensor, bits: int, ours: Codes) -> tuple[Tensor, Tensor]:
    """|code difference| and distance of the scaled value from a half, both [n, head_dim]."""
    theirs = plain.quantise(x, bits)
    difference = plain.unpack(ours.codes, bits).int() - plain.unpack(theirs.codes, bits).int()
    size = group_size(x.shape[1])
    step, zero = (t.float().repeat_interleave(size, 1) for t in (theirs.step, theirs.zero))
    scaled = (x.float() - zero) / step
    return difference.abs(), (scaled - scaled.floor() - 0.5).abs()


@pytest.mark.gpu
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_card(bits: int, dtype: torch.dtype) -> None:
    x = rows(4099, 128, dtype, "cuda")
    ours = fused.quantise(x, bits)
    on_host = Codes(ours.codes.cpu(), ours.step.cpu(), ours.zero.cpu(), bits)
    difference, from_half = code_differences(x.cpu(), bits, on_host)
    assert int(difference.max()) <= 1 and bool((from_half[difference > 0] < 1e-3).all())
    assert torch.equal(fused.dequantise(ours, dtype), plain.dequantise(ours, dtype))
