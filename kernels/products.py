"""Attention of many bf16 queries as matrix products, for CPUs whose products outrun aten's kernel.

aten's fused kernel computes bf16 attention no faster than fp32 where the processor multiplies bf16
but has no AMX; plain products of the same numbers are more than twice as fast. They round the
logits to bf16, so that a large logit would lose its digits. Therefore each query's logits are moved
to near zero first: a column of the queries subtracts the largest logit over a sample of the keys,
inside the product and before the rounding. What is left near the top is small, and exact enough.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAMPLE_EVERY = 8  # keys; the first is always among them, and it is where attention sinks
STEP = 256  # rows of keys
UNSEEN = -1e30  # a logit below all others
BLOCK_ELEMENTS = 1 << 21  # logits held at once
LEAST_ROWS = 128
_SUMS = 8  # partial sums a row: each is rounded to bf16


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
    """See kernels.reference.attend; q, k, v [n_heads, n, head_dim] in bf16.

    None if a logit exceeds all sampled ones by so much that its weight cannot be held.
    """
    heads = [_one_head(*parts, scale) for parts in zip(q, k, v, strict=True)]
    outs = torch.stack([out for out, _ in heads])
    sums = torch.stack([lse for _, lse in heads])
    held = bool(torch.isfinite(sums).all()) and bool(torch.isfinite(outs).all())
    return (outs, sums) if held else None


def _one_head(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [n_q, d], k and v [n_k, d] -> output [n_q, d] in bf16 and log-sum-exp [n_q] fp32."""
    n_q, dim = q.shape
    in_twos = scale * math.log2(math.e)  # 2 ** x is cheaper than e ** x
    keys, values = _padded(k, v)
    queries = torch.cat([q, q.new_tensor([[0.0, 1.0]]).expand(n_q, 2)], dim=1)
    queries[:, dim] = torch.mm(queries, keys[::SAMPLE_EVERY].T).amax(-1)
    largest = queries[:, dim].float() * in_twos
    out, lse = torch.empty_like(q), torch.empty(n_q, dtype=torch.float32)
    rows = max(LEAST_ROWS, 1 << max(1, BLOCK_ELEMENTS // len(keys)).bit_length() - 1)
    held = k.new_empty(min(rows, n_q), len(keys))
    for first in range(0, n_q, rows):
        block = slice(first, min(first + rows, n_q))
        weights = held[: block.stop - first]
        weights.addmm_(queries[block], keys.T, beta=0, alpha=in_twos).exp2_()
        total = _row_sums(weights)
        torch.div(torch.mm(weights, values), total[:, None], out=out[block])
        lse[block] = (total.log2() + largest[block]) * math.log(2)
    return out, lse


def _padded(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys with two columns more and rows up to a multiple of STEP; values with as many rows.

    The first column takes the queries' largest logit away, the second puts the rows that are none
    out of sight. Heads differ in length from chunk to chunk, and oneDNN keeps code for every shape
    that it has seen, a gigabyte after some chunks: there shall be few.
    """
    n_k, dim = k.shape
    n = -(-n_k // STEP) * STEP
    keys, values = k.new_zeros(n, dim + 2), v.new_zeros(n, dim)
    keys[:n_k, :dim], values[:n_k] = k, v
    keys[:n_k, dim] = -1
    keys[n_k:, dim + 1] = UNSEEN
    return keys, values


def _row_sums(weights: Tensor) -> Tensor:
    """[n, n_k] bf16 -> [n] fp32, from partial sums: a sum in one piece would keep eight bits."""
    return weights.unflatten(1, (_SUMS, -1)).sum(-1).float().sum(-1)
