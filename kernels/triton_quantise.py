"""The format of `kernels.quantise` written and read by Triton: one program for a block of rows.

A program holds its rows as [rows, planes, values of a plane], so that the planes of a byte meet in
one register and are summed into it; groups are masks over that tile, because a group may lie across
two planes. Every step is rounded as in the plain version (IEEE division, ties to the even code), so
that codes are the same. On a card the plain version divides by a constant through its reciprocal;
its step may differ there in the last place of fp16, and codes by one with it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.quantise import BITS, Codes, group_size

# Values that one program holds: 16 for each of 128 threads.
TILE_VALUES = 2048
NUM_WARPS = 4


def quantise(x: Tensor, bits: int) -> Codes:
    """x [n, head_dim], any float type -> codes, as `kernels.quantise.quantise` makes them.

    Equal to what the plain version makes on a CPU. Where the plain version runs on a card its step
    may differ in the last place, and there alone its codes may.
    """
    n, head_dim = x.shape
    if bits not in BITS or head_dim * bits % 8:
        raise ValueError(f"{bits} bits do not pack rows of {head_dim}")
    x = x if x.stride(1) == 1 else x.contiguous()
    n_groups = head_dim // group_size(head_dim)
    codes = torch.empty((n, head_dim * bits // 8), dtype=torch.uint8, device=x.device)
    step = torch.empty((n, n_groups), dtype=torch.float16, device=x.device)
    zero = torch.empty((n, n_groups), dtype=torch.float16, device=x.device)
    if n:
        shape = tile_shape(head_dim, bits)
        grid = (triton.cdiv(n, shape["BLOCK_N"]),)
        quantise_rows[grid](x, codes, step, zero, n, x.stride(0), **shape, num_warps=NUM_WARPS)
    return Codes(codes, step, zero, bits)


def dequantise(codes: Codes, dtype: torch.dtype) -> Tensor:
    """The rows again: [n, head_dim], equal to the plain version's to the last bit.

    step * code has at most 19 significant bits, so that a fused multiply-add rounds once as well.
    """
    n, head_dim = len(codes), codes.head_dim
    x = torch.empty((n, head_dim), dtype=dtype, device=codes.codes.device)
    if n:
        shape = tile_shape(head_dim, codes.bits)
        grid = (triton.cdiv(n, shape["BLOCK_N"]),)
        parts = (codes.codes.contiguous(), codes.step.contiguous(), codes.zero.contiguous())
        dequantise_rows[grid](*parts, x, n, **shape, num_warps=NUM_WARPS)
    return x


def tile_shape(head_dim: int, bits: int) -> dict[str, int]:
    """The compile-time constants of both kernels for rows of this format."""
    plane = head_dim * bits // 8
    padded = triton.next_power_of_2(plane)
    return {
        "HEAD_DIM": head_dim,
        "GROUP": group_size(head_dim),
        "BITS": bits,
        "PLANE": plane,
        "PLANE_PADDED": padded,
        "BLOCK_N": max(1, TILE_VALUES // (padded * 8 // bits)),
    }


@triton.jit
def quantise_rows(
    x: tl.tensor,
    codes: tl.tensor,
    step: tl.tensor,
    zero: tl.tensor,
    n: tl.tensor,
    stride: tl.tensor,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    PLANE: tl.constexpr,
    PLANE_PADDED: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Rows x [n, HEAD_DIM] with a stride between rows -> the three tensors of `Codes`."""
    n_groups: tl.constexpr = HEAD_DIM // GROUP
    most: tl.constexpr = 2**BITS - 1
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    plane = tl.arange(0, 8 // BITS)[None, :, None]
    byte = tl.arange(0, PLANE_PADDED)
    column = plane * PLANE + byte[None, None, :]
    mine = (rows < n)[:, None, None] & (byte < PLANE)[None, None, :]
    tile = tl.load(x + rows[:, None, None] * stride + column, mask=mine, other=0.0).to(tl.float32)
    zeros = tl.zeros_like(tile)
    steps = tl.full(tile.shape, 1.0, tl.float32)
    for group in tl.static_range(n_groups):
        inside = (column // GROUP == group) & (byte < PLANE)[None, None, :]
        low = tl.min(tl.min(tl.where(inside, tile, float("inf")), axis=2), axis=1)
        high = tl.max(tl.max(tl.where(inside, tile, float("-inf")), axis=2), axis=1)
        low = low.to(tl.float16)
        span = tl.div_rn(high - low.to(tl.float32), tl.full(high.shape, most, tl.float32))
        span = tl.maximum(span, 2.0**-24).to(tl.float16)
        tl.store(zero + rows * n_groups + group, low, mask=rows < n)
        tl.store(step + rows * n_groups + group, span, mask=rows < n)
        zeros = tl.where(inside, low.to(tl.float32)[:, None, None], zeros)
        steps = tl.where(inside, span.to(tl.float32)[:, None, None], steps)
    code = half_to_even(tl.div_rn(tile - zeros, steps))
    code = tl.minimum(tl.maximum(code, 0.0), most).to(tl.int32) << (plane * BITS)
    packed = tl.sum(code, axis=1).to(tl.uint8)
    where = rows[:, None] * PLANE + byte[None, :]
    tl.store(codes + where, packed, mask=(rows < n)[:, None] & (byte < PLANE)[None, :])


@triton.jit
def half_to_even(x: tl.tensor) -> tl.tensor:
    """x fp32 to the nearest whole number, halves to the even one (IEEE 754 roundTiesToEven).

    The interpreter has no rint of libdevice's, so it is made of floor; x - floor(x) is exact.
    """
    below = tl.floor(x)
    rest = x - below
    odd = below - 2.0 * tl.floor(below * 0.5)
    return tl.where((rest > 0.5) | ((rest == 0.5) & (odd == 1.0)), below + 1.0, below)


@triton.jit
def dequantise_rows(
    codes: tl.tensor,
    step: tl.tensor,
    zero: tl.tensor,
    x: tl.tensor,
    n: tl.tensor,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    PLANE: tl.constexpr,
    PLANE_PADDED: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """The three tensors of `Codes` -> rows x [n, HEAD_DIM], each byte read once."""
    n_groups: tl.constexpr = HEAD_DIM // GROUP
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    byte = tl.arange(0, PLANE_PADDED)[None, :]
    mine = (rows < n) & (byte < PLANE)
    packed = tl.load(codes + rows * PLANE + byte, mask=mine, other=0).to(tl.int32)
    for plane in tl.static_range(8 // BITS):
        column = plane * PLANE + byte
        group = rows * n_groups + column // GROUP
        code = ((packed >> (plane * BITS)) & (2**BITS - 1)).to(tl.float32)
        span = tl.load(step + group, mask=mine, other=0.0).to(tl.float32)
        low = tl.load(zero + group, mask=mine, other=0.0).to(tl.float32)
        value = (code * span + low).to(x.dtype.element_ty)
        tl.store(x + rows * HEAD_DIM + column, value, mask=mine)
