"""Attention of many bf16 queries as matrix products, for CPUs whose products outrun aten's kernel.

aten's fused kernel computes bf16 attention no faster than fp32 where the processor multiplies bf16
but has no AMX; plain products of the same numbers are more than twice as fast. They round the
logits to bf16, so that a large logit would lose its digits. Therefore each query's logits are moved
to near zero first: a column of the queries subtracts the largest logit over a sample of the keys,
inside the product and before the rounding. What is left near the top is small, and exact enough.
Where the sum of weights shows that a key outside the sample lies far above it, the query is
weighed once more with that sum's logarithm taken away instead.

For a number of queries products have a dozen shapes, however long a head is: a megabyte of code and
description is kept for each shape that was ever seen, and heads differ in length from chunk to
chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

N_SAMPLED = 256  # keys of a head; the first is among them, and it is where attention sinks
SAMPLE_EVERY = 4  # keys of a chunk's own
UNSEEN = -1e30  # a logit below all others
BLOCK_ROWS = 1024  # queries
BLOCK_KEYS = 2048  # a power of two, times LEAST_KEYS
LEAST_KEYS = 256
FEW_ROWS = (64, 256, 1024)  # queries that are weighed once more, by shape
_SUMS = 8  # partial sums a row: each is rounded to bf16

Block = tuple[Tensor, Tensor]  # keys [n, head_dim + 2] and values [n, head_dim]


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
    """See kernels.reference.attend; q, k, v [n_heads, n, head_dim] in bf16.

    None if a logit exceeds all sampled ones by so much (127 twos) that its weight cannot be held.
    """
    return _held([_one_head(*parts, scale) for parts in zip(q, k, v, strict=True)])


def attend_causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
    """See kernels.reference.attend_causal; in bf16. None as in `attend`."""
    grouped = q.unflatten(0, (len(k), -1))
    found = _held([_one_causal(*parts, scale) for parts in zip(grouped, k, v, strict=True)])
    return found and (found[0].flatten(0, 1), found[1].flatten(0, 1))


def _held(heads: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
    """Outputs and log-sum-exps of all heads, or None if one of the numbers is none."""
    outs, sums = (torch.stack(parts) for parts in zip(*heads, strict=True))
    # What is no number makes a sum none; asking each would take ten times as long.
    return (outs, sums) if math.isfinite(outs.sum()) and math.isfinite(sums.sum()) else None


def _one_head(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [n_q, d], k and v [n_k, d] -> output [n_q, d] in bf16 and log-sum-exp [n_q] fp32."""
    keys, values = _padded(k, v)
    sampled = keys[torch.arange(N_SAMPLED) * len(k) // N_SAMPLED]
    queries = _widened(q)
    queries[:, -2] = torch.mm(queries, sampled.T).amax(-1)
    return _mixed(queries, _blocks(keys, values), scale)


def _one_causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [group, n, d], k and v [n, d] -> output [group, n, d] and log-sum-exp [group, n] fp32.

    LEAST_KEYS positions at a time: they see all before them, and of each other those before.
    """
    group, n, _ = q.shape
    keys, values = _padded(k, v)
    queries = _widened(q)
    out, lse = q.new_empty(q.shape), q.new_empty(group, n, dtype=torch.float32)
    for first in range(0, n, LEAST_KEYS):
        rows, end = slice(first, min(first + LEAST_KEYS, n)), first + LEAST_KEYS
        block = queries[:, rows].reshape(-1, queries.shape[-1])
        ahead = torch.ones(rows.stop - first, LEAST_KEYS, dtype=torch.bool).triu_(1)
        ahead = ahead.expand(group, -1, -1).flatten(0, 1)
        logits = torch.mm(block, keys[:end:SAMPLE_EVERY].T)
        logits[:, first // SAMPLE_EVERY :].masked_fill_(ahead[:, ::SAMPLE_EVERY], UNSEEN)
        block[:, -2] = logits.amax(-1)
        blocks = list(zip(*(x[:end].split(BLOCK_KEYS) for x in (keys, values)), strict=True))
        found = _mixed(block, blocks, scale, ahead)
        out[:, rows], lse[:, rows] = (x.unflatten(0, (group, -1)) for x in found)
    return out, lse


def _mixed(
    queries: Tensor, blocks: list[Block], scale: float, ahead: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Output [n, d] in bf16 and log-sum-exp [n] of queries [n, d + 2], their largest logit inside.

    ahead  [n, LEAST_KEYS] which of the last keys each query must not see; None: it sees all
    """
    out, lse, total = _weighed(queries, blocks, scale, ahead)
    # As many keys as there are, all two twos above the sample, or one as far above as all weigh.
    lost = (total > 4 * sum(len(keys) for keys, _ in blocks)) & torch.isfinite(total)
    if bool(lost.any()):
        which = _filled_up(lost.nonzero()[:, 0], len(queries))
        again = queries[which]
        again[:, -2] += total[which].log2() / _twos(scale)
        out[which], lse[which], _ = _weighed(
            again, blocks, scale, None if ahead is None else ahead[which]
        )
    return out, lse


def _filled_up(which: Tensor, most: int) -> Tensor:
    """Row numbers [n], the last one repeated until there are FEW_ROWS of them, or `most`."""
    n = next((n for n in FEW_ROWS if len(which) <= n < most), most)
    return torch.cat([which, which[-1:].expand(n - len(which))])


def _twos(scale: float) -> float:
    """What a product is multiplied with: 2 ** x is cheaper than e ** x."""
    return scale * math.log2(math.e)


def _weighed(
    queries: Tensor, blocks: list[Block], scale: float, ahead: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_mixed`, by the largest logits that the queries bring, and the sums of weights [n] fp32.

    Weights of BLOCK_ROWS queries at a time, at most; what follows is one operation for all queries.
    """
    n, dim = len(queries), queries.shape[1] - 2
    step = math.ceil(n / math.ceil(n / BLOCK_ROWS))
    held = queries.new_empty(step * max(len(keys) for keys, _ in blocks))
    sums, mixed = queries.new_empty(len(blocks), n, _SUMS), queries.new_empty(len(blocks), n, dim)
    for first in range(0, n, step):
        rows = slice(first, min(first + step, n))
        for number, (keys, values) in enumerate(blocks):
            weights = held[: (rows.stop - first) * len(keys)].view(-1, len(keys))
            weights.addmm_(queries[rows], keys.T, beta=0, alpha=_twos(scale)).exp2_()
            if ahead is not None and number == len(blocks) - 1:
                weights[:, -LEAST_KEYS:].masked_fill_(ahead[rows], 0)
            # In parts: a sum in one piece would keep eight bits.
            torch.sum(weights.unflatten(1, (_SUMS, -1)), -1, out=sums[number, rows])
            torch.mm(weights, values, out=mixed[number, rows])
    total = sums.sum((0, 2), dtype=torch.float32)
    out = mixed.sum(0, dtype=torch.float32).div_(total[:, None]).to(queries.dtype)
    largest = queries[:, -2].float() * _twos(scale)
    return out, (total.log2() + largest) * math.log(2), total


def _blocks(keys: Tensor, values: Tensor) -> list[Block]:
    """Keys and values cut alike into runs of BLOCK_KEYS rows, and what is left by halves of it."""
    sizes = [BLOCK_KEYS] * (len(keys) // BLOCK_KEYS)
    rest, size = len(keys) % BLOCK_KEYS, BLOCK_KEYS
    while rest:
        size //= 2
        if rest >= size:
            sizes.append(size)
            rest -= size
    return list(zip(keys.split(sizes), values.split(sizes), strict=True))


def _widened(q: Tensor) -> Tensor:
    """Queries with two columns more: their largest logit, filled in later, and UNSEEN's."""
    return torch.cat([q, q.new_tensor([0.0, 1.0]).expand(*q.shape[:-1], 2)], dim=-1)


def _padded(k: Tensor, v: Tensor) -> Block:
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
