"""The meaning of every kernel, in plain torch. Slow is fine here; wrong is not.

Shapes: q [..., n_q, head_dim], k and v [..., n_k, head_dim]; `scale` multiplies q.k. Every
attention returns its output in q's dtype and the log-sum-exp of its logits [..., n_q] in fp32,
so that attentions over disjoint sets of keys can be merged exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 512


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Every query sees every key. Computed in fp32, some query rows at a time: logits are large."""
    keys, values = k.float().transpose(-1, -2), v.float()
    parts = [
        finish(torch.matmul(rows.float(), keys) * scale, rows, values)
        for rows in q.split(_ROWS, dim=-2)
    ]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([out for out, _ in parts], dim=-2), torch.cat(
        [lse for _, lse in parts], dim=-1
    )


def attend_up_to(
    q: Tensor, k: Tensor, v: Tensor, last: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Every query sees keys 0 to `last` [1] int64, which is read on the device: nothing waits.

    What is behind it is computed and weighs nothing; values there must be finite.
    """
    logits = torch.matmul(q.float(), k.float().transpose(-1, -2)) * scale
    unseen = torch.arange(k.shape[-2], device=k.device) > last
    return finish(logits.masked_fill(unseen, float("-inf")), q, v)


def attend_causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Query i sees keys 0..i; n_q equals n_k. Query head h reads key head h // group.

    q [n_q_heads, n, head_dim]; k and v may have fewer heads, of which n_q_heads is a multiple.
    """
    group = len(q) // len(k)
    k, v = k.repeat_interleave(group, dim=0), v.repeat_interleave(group, dim=0)
    logits = torch.matmul(q.float(), k.float().transpose(-1, -2)) * scale
    n = q.shape[-2]
    future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    return finish(logits.masked_fill(future, float("-inf")), q, v)


def finish(logits: Tensor, q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled logits [..., n_q, n_k] fp32 -> output in q's dtype, log-sum-exp [..., n_q] fp32."""
    lse = torch.logsumexp(logits, dim=-1)
    out = torch.matmul(torch.exp(logits - lse[..., None]), v.float())
    return out.to(q.dtype), lse


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Join two attentions of the same queries over disjoint keys, by log-sum-exp.

    Without keys an attention is 0 and its log-sum-exp minus infinity; two such give another.
    The second has a part of sigmoid(lse_b - lse_a) of the whole: half as many operations, which are
    launches on a card, as two weights would take.
    """
    apart = torch.nan_to_num(lse_b - lse_a, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    part_b = torch.sigmoid(apart)[..., None]
    out = torch.lerp(out_a.float(), out_b.float(), part_b)
    return out.to(out_a.dtype), torch.logaddexp(lse_a, lse_b)


def key_mass(q: Tensor, k: Tensor, lse: Tensor, scale: float, *, causal: bool = False) -> Tensor:
    """Attention each key receives, summed over queries: [..., n_k] fp32.

    lse [..., n_q] is that of the whole attention, so masses over disjoint key sets add up to n_q.
    """
    logits = torch.matmul(q.float(), k.float().transpose(-1, -2)) * scale
    if causal:
        n = q.shape[-2]
        future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(future, float("-inf"))
    return torch.exp(logits - lse.float()[..., None]).sum(dim=-2)
