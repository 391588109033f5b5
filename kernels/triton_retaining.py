"""The retaining heads in one Triton kernel: neither the flat [q; k; v] nor the inner layer stored.

A program takes a block of rows and a slice of the width. For each block of the slice it multiplies
through the input, head after head where it lies, applies the activation, and adds the block's share
of the scores: the second product follows the first in registers. Slices give more programs than the
rows of a chunk would; their shares are summed in a fixed order, so that scores do not vary.

Our head is the same kernel: one "query head" as wide as the model, no keys and values, biases.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.retaining import ACTIVATIONS

BLOCK_N = 64
# Width that one program takes.
SLICE = 256
NUM_WARPS = 8


def retaining_scores(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Our head: [n_kv_heads, n] fp32, as `kernels.retaining.retaining_scores`.

    The inner layer is rounded to x's dtype before the second product, as the module's is.
    """
    bias = (b1.to(x.dtype).contiguous(), b2.to(x.dtype).float())
    nothing = x[None, :, :][:0]
    return _scores(x[None], nothing, nothing, w1, w2, "gelu", bias)


def locret_scores(
    q: Tensor, k: Tensor, v: Tensor, fc1: Tensor, fc2: Tensor, activation: str
) -> Tensor:
    """Locret's head: [n_kv_heads, n] fp32, as `kernels.retaining.locret_scores`.

    The inner layer is rounded to q's dtype before the second product, as the module's is.
    """
    return _scores(q, k, v, fc1, fc2, activation, None)


def _scores(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor,
    second: Tensor,
    activation: str,
    bias: tuple[Tensor, Tensor] | None,
) -> Tensor:
    if activation not in ACTIVATIONS:
        raise ValueError(f"There is no activation '{activation}' for retaining heads.")
    n, (n_scores, width) = q.shape[1], second.shape
    q, k, v = (t if t.stride(2) == 1 else t.contiguous() for t in (q, k, v))
    first, second = first.to(q.dtype).contiguous(), second.to(q.dtype).contiguous()
    strides = [stride for t in (q, k, v) for stride in t.stride()[:2]]
    n_slices = triton.cdiv(width, SLICE)
    out = torch.empty((n_slices, n_scores, n), dtype=torch.float32, device=q.device)
    if n:
        score_rows[(triton.cdiv(n, BLOCK_N), n_slices)](
            q,
            k,
            v,
            first,
            first if bias is None else bias[0],
            second,
            out,
            n,
            width,
            n_scores,
            len(q),
            len(k),
            *strides,
            **kernel_shape(q.shape[2], n_scores, q.dtype),
            ACTIVATION=activation,
            HAS_BIAS=bias is not None,
            ALIGNED=all(stride % 16 == 0 for stride in strides),
            AS_FLOAT=not q.is_cuda,
            num_warps=NUM_WARPS,
        )
    scores = out[0] if n_slices == 1 else out.sum(0)
    return scores if bias is None else scores + bias[1][:, None]


def kernel_shape(head_dim: int, n_scores: int, dtype: torch.dtype) -> dict[str, int]:
    """The compile-time sizes of `score_rows`: tiles of as many bytes whatever the dtype."""
    divisor = head_dim & -head_dim
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_N": BLOCK_N,
        "BLOCK_WIDTH": 256 // dtype.itemsize,
        "BLOCK_IN": min(max(divisor, 16), 128 // dtype.itemsize),
        "SLICE": SLICE,
        "SCORES_PADDED": max(16, triton.next_power_of_2(n_scores)),
    }


@triton.jit
def activated(x: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """The activation of fp32 values: silu, relu, or gelu by the error function."""
    if ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "relu":
        x = tl.maximum(x, 0.0)
    else:
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return x


@triton.jit
def score_rows(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    first: tl.tensor,
    bias: tl.tensor,
    second: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    width: tl.tensor,
    n_scores: tl.tensor,
    n_q_heads: tl.tensor,
    n_kv_heads: tl.tensor,
    q_stride_head: tl.tensor,
    q_stride_row: tl.tensor,
    k_stride_head: tl.tensor,
    k_stride_row: tl.tensor,
    v_stride_head: tl.tensor,
    v_stride_row: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    SLICE: tl.constexpr,
    SCORES_PADDED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ALIGNED: tl.constexpr,
    AS_FLOAT: tl.constexpr,
) -> None:
    """Scores of a block of rows from a slice of the width: out [n_slices, n_scores, n] fp32.

    first [width, (n_q_heads + 2 n_kv_heads) HEAD_DIM], bias [width], second [n_scores, width].
    ALIGNED: all strides are multiples of 16, so that a thread can load several values at once.
    AS_FLOAT multiplies in fp32: Triton's interpreter cannot multiply bf16, and cuts it off.
    """
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    score = tl.arange(0, SCORES_PADDED)
    if ALIGNED:
        q_stride_head = tl.multiple_of(q_stride_head, 16)
        q_stride_row = tl.multiple_of(q_stride_row, 16)
        k_stride_head = tl.multiple_of(k_stride_head, 16)
        k_stride_row = tl.multiple_of(k_stride_row, 16)
        v_stride_head = tl.multiple_of(v_stride_head, 16)
        v_stride_row = tl.multiple_of(v_stride_row, 16)
    steps: tl.constexpr = (HEAD_DIM + BLOCK_IN - 1) // BLOCK_IN
    total = tl.zeros((BLOCK_N, SCORES_PADDED), tl.float32)
    n_in = (n_q_heads + 2 * n_kv_heads) * HEAD_DIM
    start = tl.program_id(1) * SLICE
    for block in range(start, tl.minimum(start + SLICE, width), BLOCK_WIDTH):
        unit = block + tl.arange(0, BLOCK_WIDTH)
        exists = unit < width
        weights = first + unit.to(tl.int64) * n_in
        inner = tl.zeros((BLOCK_N, BLOCK_WIDTH), tl.float32)
        for step in range((n_q_heads + 2 * n_kv_heads) * steps):
            head = step // steps
            from_k = head - n_q_heads
            from_v = from_k - n_kv_heads
            start_of = tl.where(from_k < 0, q + head * q_stride_head, k + from_k * k_stride_head)
            start_of = tl.where(from_v < 0, start_of, v + from_v * v_stride_head)
            stride = tl.where(from_k < 0, q_stride_row, k_stride_row)
            stride = tl.where(from_v < 0, stride, v_stride_row)
            column = (step % steps) * BLOCK_IN + tl.arange(0, BLOCK_IN)
            given = tl.load(
                start_of + rows[:, None] * stride + column[None, :],
                mask=(rows < n)[:, None] & (column < HEAD_DIM)[None, :],
                other=0.0,
            )
            weight = tl.load(
                weights[None, :] + head * HEAD_DIM + column[:, None],
                mask=exists[None, :] & (column < HEAD_DIM)[:, None],
                other=0.0,
            )
            if AS_FLOAT:
                given, weight = given.to(tl.float32), weight.to(tl.float32)
            inner = tl.dot(given, weight, inner, input_precision="ieee")
        if HAS_BIAS:
            inner += tl.load(bias + unit, mask=exists, other=0.0).to(tl.float32)[None, :]
        inner = activated(inner, ACTIVATION)
        share = tl.load(
            second + score[None, :] * width + unit[:, None],
            mask=exists[:, None] & (score < n_scores)[None, :],
            other=0.0,
        )
        if AS_FLOAT:
            share = share.to(tl.float32)
        total = tl.dot(inner.to(share.dtype), share, total, input_precision="ieee")
    target = out + (tl.program_id(1) * n_scores + score[None, :]).to(tl.int64) * n + rows[:, None]
    tl.store(target, total, mask=(rows < n)[:, None] & (score < n_scores)[None, :])
