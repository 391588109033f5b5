"""Refit: kept values take over what evicted entries gave.

While a chunk is still whole, some of its queries and what attention answered them are set aside.
After the selection each head's kept values V are moved by least squares so that the kept entries
alone answer those queries as the whole cache did:

    V' = V + argmin_D |A (V + D) - T|^2 + ridge |D|^2

A is the softmax of the references over the kept entries, T what the whole cache answered. Keys and
the number of entries stay. After Attention Matching (2602.16284), which refits with the whole
document in memory; here a chunk at a time, from queries that were there anyway. Where positions are
compact, keys are taken where they stood while the chunk was read; afterwards slots close up.

Fewer references are believed less: the ridge grows as they fall below N_REFERENCES. And no value
moves further than the largest of its head reaches, as those would that hardly any query attends to.

What lies just before a query explains most of its attention and says nothing of questions that come
after the document. So the newest NEAR_TOKENS before each reference are on neither side's account:
they share the softmax, and their part of the answer is taken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.geometry import ModelGeometry

N_REFERENCES = 128  # tokens of a chunk whose queries are set aside, in every query head
NEAR_TOKENS = 64
OLDER = -NEAR_TOKENS
RIDGE = 1.0  # times the mean square of a column of A
REFIT_KEY = [N_REFERENCES, NEAR_TOKENS, RIDGE]  # what a reading with a refit depends on


@dataclass(frozen=True)
class References:
    """Some queries of one layer and chunk, and what they were answered.

    n_tokens  tokens whose queries these are
    rows      [m] int64, each reference's place in the chunk; the query group repeats them
    queries   [n_kv_heads, m, head_dim] fp32, rotated and scaled
    answers   [n_kv_heads, m, head_dim] fp32, the whole attention's output
    near      the same of the near tokens alone
    near_lse  [n_kv_heads, m] fp32, their log-sum-exp
    """

    n_tokens: int
    rows: Tensor
    queries: Tensor
    answers: Tensor
    near: Tensor
    near_lse: Tensor


def references_nbytes(geometry: ModelGeometry, n_tokens: int) -> int:
    """Bytes of the references of n_tokens in all layers."""
    return geometry.n_layers * geometry.n_q_heads * n_tokens * 4 * (3 * geometry.head_dim + 2)


def reference_rows(n: int, n_references: int = N_REFERENCES) -> Tensor:
    """Places in a chunk of n tokens, evenly spaced, each with NEAR_TOKENS before it: [m]."""
    room = n - NEAR_TOKENS
    if room <= 0:
        return torch.empty(0, dtype=torch.int64)
    m = min(n_references, room)
    return NEAR_TOKENS + (torch.arange(m) * room) // m


def set_aside(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float, n_kv_heads: int
) -> References | None:
    """References of a chunk; None if it is too short to have any.

    q    [n_q_heads, n, head_dim] rotated
    k,v  [n_kv_heads, n, head_dim], k rotated
    out  [n_q_heads, n, head_dim], what attention answered
    """
    rows = reference_rows(q.shape[1]).to(q.device)
    if not len(rows):
        return None
    group = q.shape[0] // n_kv_heads
    near = rows[:, None] - torch.arange(NEAR_TOKENS, device=q.device)  # [m, NEAR_TOKENS]
    queries = _grouped(q, rows, n_kv_heads) * scale
    logits = torch.einsum(
        "hgmd,hmwd->hgmw", queries.unflatten(1, (group, len(rows))), k[:, near].float()
    )
    lse = logits.logsumexp(-1)
    weights = (logits - lse[..., None]).exp()
    near_out = torch.einsum("hgmw,hmwd->hgmd", weights, v[:, near].float())
    return References(
        len(rows),
        rows.repeat(group),
        queries,
        _grouped(out, rows, n_kv_heads),
        near_out.flatten(1, 2),
        lse.flatten(1),
    )


def _grouped(x: Tensor, rows: Tensor, n_kv_heads: int) -> Tensor:
    """Some rows of [n_q_heads, n, d] as fp32 [n_kv_heads, group * m, d]."""
    return x[:, rows].float().reshape(n_kv_heads, -1, x.shape[-1])


def refitted(
    references: References, head: int, keys: Tensor, values: Tensor, places: Tensor
) -> Tensor:
    """One head's kept values, moved: [n, head_dim] in fp32.

    keys    [n, head_dim], rotated as the references are
    values  [n, head_dim]
    places  [n] int64, an entry's place in the chunk, at most OLDER if every reference sees it
    """
    q, values = references.queries[head], values.float()
    hidden = places[None] > references.rows[:, None] - NEAR_TOKENS
    logits = (q @ keys.float().T).masked_fill(hidden, -torch.inf)
    near_lse = references.near_lse[head]
    lse = torch.logaddexp(logits.logsumexp(-1), near_lse)
    a = (logits - lse[:, None]).exp()
    wanted = references.answers[head] - (near_lse - lse).exp()[:, None] * references.near[head]
    strength = RIDGE * max(N_REFERENCES / references.n_tokens, 1.0)
    moved = _ridge(a, wanted - a @ values, strength)
    reach, furthest = values.abs().amax(), moved.abs().amax()
    return values + moved * (reach / furthest.clamp(min=1e-12)).clamp(max=1.0)


def joined(parts: Sequence[References]) -> References:
    """References of one layer from several stretches of text as one."""
    return References(
        sum(p.n_tokens for p in parts),
        torch.cat([p.rows for p in parts]),
        *(
            torch.cat([getattr(p, name) for p in parts], dim=1)
            for name in ("queries", "answers", "near", "near_lse")
        ),
    )


def _ridge(a: Tensor, missing: Tensor, strength: float) -> Tensor:
    """argmin_D |a D - missing|^2 + ridge |D|^2 for a [m, n], by whichever side is smaller.

    strength  of the ridge, in mean squares of a column
    """
    m, n = a.shape
    ridge = strength * a.square().sum() / n
    if n <= m:
        gram = a.T @ a
        gram.diagonal().add_(ridge.clamp(min=1e-9))
        return torch.linalg.solve(gram, a.T @ missing)
    gram = a @ a.T
    gram.diagonal().add_(ridge.clamp(min=1e-9))
    return a.T @ torch.linalg.solve(gram, missing)
