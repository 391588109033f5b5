"""Attention of many bf16 queries as matrix products, for CPUs whose products outrun aten's kernel.

aten's fused kernel computes bf16 attention no faster than fp32 where the processor multiplies bf16
but has no AMX; plain products of the same numbers are more than twice as fast. They round the
logits to bf16, so that a large logit would lose its digits. Therefore each query's logits are moved
to near zero first: a column of the queries subtracts the largest logit over a sample of the keys,
inside the product and before the rounding. What is left near the top is small, and exact enough.

For a number of queries products have a dozen shapes, however long a head is: a megabyte of code and
description is kept for each shape that was ever seen, and heads differ in length from chunk to
chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SAMPLE_EVERY = 8  # keys; the first is always among them, and it is where attention sinks
UNSEEN = -1e30  # a logit below all others
BLOCK_ROWS = 1024  # queries
BLOCK_KEYS = 2048  # a power of two, times LEAST_KEYS
LEAST_KEYS = 256
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
    blocks = _blocks(*_padded(k, v))
    queries = torch.cat([q, q.new_tensor([[0.0, 1.0]]).expand(n_q, 2)], dim=1)
    out, lse = torch.empty_like(q), torch.empty(n_q, dtype=torch.float32)
    held = q.new_empty(BLOCK_ROWS * BLOCK_KEYS)
    for first in range(0, n_q, BLOCK_ROWS):
        rows = slice(first, min(first + BLOCK_ROWS, n_q))
        block = queries[rows]
        block[:, dim] = _sampled_largest(block, blocks)
        largest = block[:, dim].float() * in_twos
        total = torch.zeros(len(block), dtype=torch.float32)
        mixed = torch.zeros(len(block), dim, dtype=torch.float32)
        for keys, values in blocks:
            weights = held[: len(block) * len(keys)].view(len(block), -1)
            weights.addmm_(block, keys.T, beta=0, alpha=in_twos).exp2_()
            total += _row_sums(weights)
            mixed += torch.mm(weights, values)
        torch.div(mixed, total[:, None], out=out[rows])
        lse[rows] = (total.log2() + largest) * math.log(2)
    return out, lse


def _blocks(keys: Tensor, values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values cut alike into runs of BLOCK_KEYS rows, and what is left by halves of it."""
    sizes = [BLOCK_KEYS] * (len(keys) // BLOCK_KEYS)
    rest, size = len(keys) % BLOCK_KEYS, BLOCK_KEYS
    while rest:
        size //= 2
        if rest >= size:
            sizes.append(size)
            rest -= size
    return list(zip(keys.split(sizes), values.split(sizes), strict=True))


def _sampled_largest(queries: Tensor, blocks: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Each query's largest logit, unscaled, over every SAMPLE_EVERY-th key: [n] bf16."""
    sampled = [torch.mm(queries, keys[::SAMPLE_EVERY].T).amax(-1) for keys, _ in blocks]
    return torch.stack(sampled).amax(0)


def _padded(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys with two columns more and rows up to a multiple of LEAST_KEYS; values likewise.

    The first column takes the queries' largest logit away, the second puts the rows that are none
    out of sight.
    """
    n_k, dim = k.shape
    n = -(-n_k // LEAST_KEYS) * LEAST_KEYS
    keys, values = k.new_zeros(n, dim + 2), v.new_zeros(n, dim)
    keys[:n_k, :dim], values[:n_k] = k, v
    keys[:n_k, dim] = -1
    keys[n_k:, dim + 1] = UNSEEN
    return keys, values


def _row_sums(weights: Tensor) -> Tensor:
    """[n, n_k] bf16 -> [n] fp32, from partial sums: a sum in one piece would keep eight bits."""
    return weights.unflatten(1, (_SUMS, -1)).sum(-1).float().sum(-1)
