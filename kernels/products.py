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
    return (outs, sums) if bool(torch.isfinite(sums).all()) else None


def _one_head(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [n_q, d], k and v [n_k, d] -> output [n_q, d] in bf16 and log-sum-exp [n_q] fp32."""
    n_q = len(q)
    n_k = len(k)
    in_twos = scale * math.log2(math.e)  # 2 ** x is cheaper than e ** x
    shift = torch.mm(q, k[::SAMPLE_EVERY].T).amax(-1, keepdim=True)
    none = torch.zeros_like(shift)  # an even number of columns
    queries = torch.cat([q, shift, none], dim=1)
    keys = torch.cat([k, k.new_tensor([[-1.0, 0.0]]).expand(n_k, 2)], dim=1)
    largest = shift[:, 0].float() * in_twos
    out, lse = torch.empty_like(q), torch.empty(n_q, dtype=torch.float32)
    rows = max(LEAST_ROWS, BLOCK_ELEMENTS // n_k)
    held = k.new_empty(min(rows, n_q), n_k)
    for first in range(0, n_q, rows):
        block = slice(first, min(first + rows, n_q))
        weights = held[: block.stop - first]
        weights.addmm_(queries[block], keys.T, beta=0, alpha=in_twos).exp2_()
        total = _row_sums(weights)
        torch.div(torch.mm(weights, v), total[:, None], out=out[block])
        lse[block] = (total.log2() + largest[block]) * math.log(2)
    return out, lse


def _row_sums(weights: Tensor) -> Tensor:
    """[n, n_k] bf16 -> [n] fp32, from partial sums: a sum in one piece would keep eight bits."""
    even = weights.shape[1] // _SUMS * _SUMS
    parts = weights[:, :even].unflatten(1, (_SUMS, even // _SUMS)).sum(-1).float().sum(-1)
    return parts if even == weights.shape[1] else parts + weights[:, even:].float().sum(-1)
