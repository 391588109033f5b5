"""Attention of a chunk over its history and itself, in Triton; kernels.chunk has the contract.

One program takes a block of tokens of one query head. Its running softmax, in base 2
(FlashAttention, 2205.14135), goes over the head's history first and then over the chunk up to the
block's own tokens, so that nothing is left to merge. The KV head is found by division: keys are
never repeated for a query group. Needs Triton: importing this module without it is an ImportError.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.chunk import History
from kernels.triton_ragged import compute_type

LOG2_E = 1.4426950408889634
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@dataclass(frozen=True)
class Tiling:
    """How much one program holds at once: query tokens, keys, warps, stages of loads in flight."""

    tokens: int
    keys: int
    num_warps: int
    num_stages: int


def attend_chunk(
    q: Tensor, k: Tensor, v: Tensor, history: History | None, scale: float
) -> tuple[Tensor, Tensor]:
    """q [n_q_heads, n, head_dim], k and v [n_kv_heads, n, head_dim] -> output like q, log-sum-exp.

    As kernels.chunk.attend_chunk, but probabilities are rounded to q's type before they are
    multiplied; sums are fp32. All tensors have one type. ValueError for shapes or layouts that
    cannot be served.
    """
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    _check(q, k, v, history)
    n_q_heads, n, head_dim = q.shape
    tiling = tiling_for(head_dim, q.dtype)
    out = torch.empty((n_q_heads, n, head_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((n_q_heads, n), dtype=torch.float32, device=q.device)
    attend_block[(triton.cdiv(n, tiling.tokens), n_q_heads)](
        q,
        k,
        v,
        None if history is None else history.keys,
        None if history is None else history.values,
        None if history is None else history.offsets,
        out,
        lse,
        scale * LOG2_E,
        n,
        n_q_heads // len(k),
        HEAD_DIM=head_dim,
        DIM=triton.next_power_of_2(head_dim),
        BLOCK_TOKENS=tiling.tokens,
        BLOCK_KEYS=tiling.keys,
        COMPUTE=compute_type(q.dtype),
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    return out, lse


def tiling_for(head_dim: int, dtype: torch.dtype) -> Tiling:
    """The largest tiling that spills no registers and fits in 99 KiB of shared memory."""
    if dtype == torch.float32:
        return Tiling(16, 32, 4, 1)
    if head_dim > 128:
        return Tiling(64, 32, 8, 2)
    return Tiling(128, 64 if head_dim <= 64 else 32, 8, 2)


def _check(q: Tensor, k: Tensor, v: Tensor, history: History | None) -> None:
    n_q_heads, n, head_dim = q.shape
    if k.shape != v.shape or k.shape[1:] != (n, head_dim) or n_q_heads % len(k):
        shapes = f"{list(k.shape)} and {list(v.shape)}"
        raise ValueError(f"queries {list(q.shape)} do not go with keys and values {shapes}")
    if history is None:
        return
    if len(history.offsets) != len(k) + 1:
        raise ValueError(f"history of {len(history.offsets) - 1} heads, keys of {len(k)}")
    for name, rows in (("keys", history.keys), ("values", history.values)):
        if rows.shape[1] != head_dim or not rows.is_contiguous():
            raise ValueError(f"the history's {name} are not contiguous rows of {head_dim}")


@triton.jit(do_not_specialize=["n", "group"])
def attend_block(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    past_k_ptr: tl.tensor,
    past_v_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    scale_log2: tl.tensor,
    n: tl.tensor,
    group: tl.tensor,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    COMPUTE: tl.constexpr,
) -> None:
    """One block of tokens of one query head; writes out [n_q_heads, n, HEAD_DIM] and lse."""
    # the last blocks see the most keys, so they start first
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    q_head = tl.program_id(1)
    kv_head = q_head // group
    channel = tl.arange(0, DIM)
    inside = channel < HEAD_DIM
    token = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    exists = token < n
    q_row = q_head.to(tl.int64) * n + token
    q_at = q_row[:, None] * HEAD_DIM + channel[None, :]
    q_mask = exists[:, None] & inside[None, :]
    q = tl.load(q_ptr + q_at, mask=q_mask, other=0.0).to(COMPUTE)

    largest = tl.full([BLOCK_TOKENS], float("-inf"), tl.float32)
    total = tl.full([BLOCK_TOKENS], 0.0, tl.float32)
    summed = tl.full([BLOCK_TOKENS, DIM], 0.0, tl.float32)
    if offsets_ptr is not None:
        start = tl.load(offsets_ptr + kv_head)
        end = tl.load(offsets_ptr + kv_head + 1)
        for first in range(start, end, BLOCK_KEYS):
            key = first + tl.arange(0, BLOCK_KEYS)
            live = key < end
            row = key.to(tl.int64)
            k = _rows(past_k_ptr, row, live, channel, HEAD_DIM).to(COMPUTE)
            v = _rows(past_v_ptr, row, live, channel, HEAD_DIM).to(COMPUTE)
            logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
            logits = tl.where(live[None, :], logits, float("-inf"))
            largest, total, summed = _seen(logits, v, largest, total, summed)
    # every token sees the chunk's first, so that `largest` is finite after the first block
    for first in range(0, tl.minimum((block + 1) * BLOCK_TOKENS, n), BLOCK_KEYS):
        key = first + tl.arange(0, BLOCK_KEYS)
        live = key < n
        row = kv_head.to(tl.int64) * n + key
        k = _rows(k_ptr, row, live, channel, HEAD_DIM).to(COMPUTE)
        v = _rows(v_ptr, row, live, channel, HEAD_DIM).to(COMPUTE)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        seen = (key[None, :] <= token[:, None]) & live[None, :]
        logits = tl.where(seen, logits, float("-inf"))
        largest, total, summed = _seen(logits, v, largest, total, summed)

    lse = (largest + tl.log2(total)) * LN_2
    tl.store(out_ptr + q_at, (summed / total[:, None]).to(out_ptr.dtype.element_ty), mask=q_mask)
    tl.store(lse_ptr + q_row, lse, mask=exists)


@triton.jit
def _rows(
    rows_ptr: tl.tensor,
    row: tl.tensor,
    live: tl.tensor,
    channel: tl.tensor,
    HEAD_DIM: tl.constexpr,
) -> tl.tensor:
    """Some rows [n, DIM], 0 where they are not live or beyond the head dimension."""
    at = row[:, None] * HEAD_DIM + channel[None, :]
    mask = live[:, None] & (channel < HEAD_DIM)[None, :]
    return tl.load(rows_ptr + at, mask=mask, other=0.0)


@triton.jit
def _seen(
    logits: tl.tensor, v: tl.tensor, largest: tl.tensor, total: tl.tensor, summed: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The running softmax after one more block of keys; logits in base 2."""
    now_largest = tl.maximum(largest, tl.max(logits, 1))
    shrink = tl.exp2(largest - now_largest)
    weights = tl.exp2(logits - now_largest[:, None])
    total = total * shrink + tl.sum(weights, 1)
    summed = tl.dot(weights.to(v.dtype), v, summed * shrink[:, None], input_precision="ieee")
    return now_largest, total, summed
