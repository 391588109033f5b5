"""Attention of many bf16 queries as matrix products, for CPUs whose products outrun aten's kernel.

aten's fused kernel computes bf16 attention no faster than fp32 where the processor multiplies bf16
but has no AMX; plain products of the same numbers are more than twice as fast. They round the
logits to bf16, so that a large logit would lose its digits. Therefore each query's logits are moved
to near zero first: a column of the queries subtracts the largest logit over a sample of the keys,
inside the product and before the rounding. What is left near the top is small, and exact enough.
Where the sum of weights shows that this failed, as where a key outside the sample lies far above
it, the query is computed once more in fp32.

For a number of queries products have one or two dozen shapes, however long a head is: a megabyte of
code and description is kept for each shape that was ever seen, and heads differ in length from
chunk to chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.reference import finish

N_SAMPLED = 256  # keys of a head; the first is among them, and it is where attention sinks
SAMPLE_EVERY = 4  # keys of a chunk's own
UNSEEN = -1e30  # a logit below all others
BLOCK_ROWS = 1024  # queries
BLOCK_KEYS = 2048  # a power of two, times LEAST_KEYS
LEAST_KEYS = 256
LEAST_TOTAL = 2.0**-8  # of a query's weights, of which the sampled largest is meant to be 1
PLAIN_ROWS = 64  # queries computed once more at a time: their fp32 logits are small beside the rest
_SUMS = 8  # partial sums a row: each is rounded to bf16

Attended = tuple[Tensor, Tensor]  # output and log-sum-exp
Block = tuple[Tensor, Tensor]  # keys [n, head_dim + 2] and values [n, head_dim]


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
    """See kernels.reference.attend; q, k, v [n_heads, n, head_dim] in bf16, n_k at least 1."""
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
    for head, parts in enumerate(zip(q, k, v, strict=True)):
        out[head], lse[head] = _one_head(*parts, scale)
    return out, lse


def attend_causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
    """See kernels.reference.attend_causal; in bf16."""
    grouped = q.unflatten(0, (len(k), -1))
    out, lse = torch.empty_like(grouped), q.new_empty(grouped.shape[:3], dtype=torch.float32)
    for head, parts in enumerate(zip(grouped, k, v, strict=True)):
        for rows, (mixed, sums) in _one_causal(*parts, scale):
            out[head, :, rows], lse[head, :, rows] = mixed, sums
    return out.flatten(0, 1), lse.flatten(0, 1)


def _one_head(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Attended:
    """q [n_q, d], k and v [n_k, d] -> output [n_q, d] in bf16 and log-sum-exp [n_q] fp32."""
    keys, values = _padded(k, v)
    sampled = keys[torch.arange(N_SAMPLED) * len(k) // N_SAMPLED]
    queries = _widened(q)
    for rows in _runs(len(q)):
        queries[rows, -2] = torch.mm(queries[rows], sampled.T).amax(-1)
    out, lse, lost = _weighed(queries, _blocks(keys, values), scale)
    for which in _rows_of(lost):
        out[which], lse[which] = _plainly(q[which], k, v, scale)
    return out, lse


def _one_causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Iterator[tuple[slice, Attended]]:
    """q [group, n, d], k and v [n, d] -> which positions, and their output [group, positions, d] in
    bf16 and log-sum-exp [group, positions] fp32.

    LEAST_KEYS positions at a time: they see all before them, and of each other those before.
    """
    group, n, _ = q.shape
    keys, values = _padded(k, v)
    queries = _widened(q)
    for first in range(0, n, LEAST_KEYS):
        end = first + LEAST_KEYS
        rows = slice(first, min(end, n))
        block = queries[:, rows].reshape(-1, queries.shape[-1])
        ahead = torch.ones(rows.stop - first, LEAST_KEYS, dtype=torch.bool).triu_(1)
        ahead = ahead.expand(group, -1, -1).flatten(0, 1)
        logits = torch.mm(block, keys[:end:SAMPLE_EVERY].T)
        logits[:, first // SAMPLE_EVERY :].masked_fill_(ahead[:, ::SAMPLE_EVERY], UNSEEN)
        block[:, -2] = logits.amax(-1)
        blocks = list(zip(*(x[:end].split(BLOCK_KEYS) for x in (keys, values)), strict=True))
        out, lse, lost = _weighed(block, blocks, scale, ahead)
        ahead, own = ahead[:, : rows.stop - first], block[:, :-2]
        for which in _rows_of(lost):
            seen = k[: rows.stop], v[: rows.stop]
            out[which], lse[which] = _plainly(own[which], *seen, scale, ahead[which])
        yield rows, (out.unflatten(0, (group, -1)), lse.unflatten(0, (group, -1)))


def _rows_of(lost: Tensor) -> tuple[Tensor, ...]:
    """The numbers of the rows where lost [n] is true, PLAIN_ROWS at a time."""
    return lost.nonzero()[:, 0].split(PLAIN_ROWS) if bool(lost.any()) else ()


def _plainly(
    q: Tensor, k: Tensor, v: Tensor, scale: float, ahead: Tensor | None = None
) -> Attended:
    """q [n_q, d], k and v [n_k, d] -> output [n_q, d] in bf16, log-sum-exp [n_q], by way of fp32.

    ahead  [n_q, n] which of the last n keys each query must not see; None: it sees all
    """
    logits = torch.mm(q.float(), k.float().T).mul_(scale)
    if ahead is not None:
        logits[:, len(k) - ahead.shape[1] :].masked_fill_(ahead, -math.inf)
    return finish(logits, q, v)


def _twos(scale: float) -> float:
    """What a product is multiplied with: 2 ** x is cheaper than e ** x."""
    return scale * math.log2(math.e)


def _weighed(
    queries: Tensor, blocks: list[Block], scale: float, ahead: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [n, d] in bf16 and log-sum-exp [n] of queries [n, d + 2], their largest logit inside;
    and which are lost [n]: their weights are out of the range in which bf16's digits are enough.

    ahead  [n, LEAST_KEYS] which of the last keys each query must not see; None: it sees all
    """
    n, dim, twos = len(queries), queries.shape[1] - 2, _twos(scale)
    runs = _runs(n)
    held = queries.new_empty(runs[0].stop * max(len(keys) for keys, _ in blocks))
    mixed, sums = queries.new_empty(n, dim), queries.new_empty(n, _SUMS)
    out, total = torch.zeros(n, dim), torch.zeros(n)
    for number, (keys, values) in enumerate(blocks, start=1):
        for rows in runs:
            weights = held[: (rows.stop - rows.start) * len(keys)].view(-1, len(keys))
            weights.addmm_(queries[rows], keys.T, beta=0, alpha=twos).exp2_()
            if ahead is not None and number == len(blocks):
                weights[:, -LEAST_KEYS:].masked_fill_(ahead[rows], 0)
            # In parts: a sum in one piece would keep eight bits.
            torch.sum(weights.unflatten(1, (_SUMS, -1)), -1, out=sums[rows])
            torch.mm(weights, values, out=mixed[rows])
        out += mixed
        total += sums.sum(-1, dtype=torch.float32)
    # As many keys as there are, all two twos above the sample, or one as far above as all weigh.
    most = 4 * sum(len(keys) for keys, _ in blocks)
    held_well = (total >= LEAST_TOTAL) & (total <= most) & torch.isfinite(out.sum(-1))
    lse = (total.log2() + queries[:, -2].float() * twos) * math.log(2)
    return out.div_(total[:, None]).to(queries.dtype), lse, ~held_well


def _runs(n: int) -> list[slice]:
    """Rows cut evenly, BLOCK_ROWS at most."""
    step = math.ceil(n / math.ceil(n / BLOCK_ROWS))
    return [slice(first, min(first + step, n)) for first in range(0, n, step)]


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
