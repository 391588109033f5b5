"""Attention on the CPU through aten's fused kernel, which also returns the log-sum-exp.

Where matrix products in bf16 outrun it, long queries go that way (kernels.products), unless a
weight cannot be held there.

The grouped-query path of stock SDPA is 9 to 16 times slower at decode; callers pack the query
group into rows instead, so that one key-value head is one dense attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import products
from kernels.choice import products_win
from kernels.reference import merge

LONG = 512  # queries from which matrix products pay
LONGEST_SHORT_QUERY = 64  # rows: a token's query group, or a few tokens'
SHORTEST_STRETCH = 512


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """See kernels.reference.attend; q, k, v [n_heads, n, head_dim], one dtype.

    aten gives one head's few queries to one thread. So for short queries the keys are cut into
    stretches that look like heads, and joined by log-sum-exp (flash-decoding).
    """
    if k.shape[1] > 0 and _by_products(q):
        found = products.attend(q, k, v, scale)
        if found is not None:
            return found
    n = _stretches(len(q), q.shape[1], k.shape[1])
    return _fused(q, k, v, scale) if n == 1 else _in_stretches(q, k, v, scale, n)


def _by_products(q: Tensor) -> bool:
    """Whether so many queries [n_heads, n, head_dim] are served by matrix products here."""
    long = q.dtype == torch.bfloat16 and q.shape[1] >= LONG
    return long and not (torch.is_grad_enabled() and q.requires_grad) and products_win()


def _stretches(n_heads: int, n_q: int, n_k: int) -> int:
    """Into how many stretches the keys of a head are cut."""
    if n_q > LONGEST_SHORT_QUERY or torch.get_num_threads() == 1:
        return 1
    wanted = 2 * torch.get_num_threads() // n_heads
    return max(1, min(wanted, n_k // SHORTEST_STRETCH))


def _in_stretches(q: Tensor, k: Tensor, v: Tensor, scale: float, n: int) -> tuple[Tensor, Tensor]:
    heads, n_k, dim = k.shape
    length = n_k // n
    cut_k, cut_v = (x[:, : n * length].reshape(heads * n, length, dim) for x in (k, v))
    outs, sums = _fused(q.repeat_interleave(n, dim=0), cut_k, cut_v, scale)
    outs, sums = outs.unflatten(0, (heads, n)), sums.unflatten(0, (heads, n))
    lse = sums.logsumexp(1)
    weights = (sums - lse[:, None]).exp()[..., None]
    out = (outs.float() * weights).sum(1).to(q.dtype)
    if n * length == n_k:
        return out, lse
    rest_k, rest_v = (x[:, n * length :] for x in (k, v))
    return merge(out, lse, *_fused(q, rest_k, rest_v, scale))


def attend_causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """See kernels.reference.attend_causal; one dtype. A group reads its keys where they lie."""
    if _by_products(q):
        found = products.attend_causal(q, k, v, scale)
        if found is not None:
            return found
    grouped = q.unflatten(0, (len(k), -1))
    shared = (t[:, None].expand(*grouped.shape) for t in (k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        grouped, *shared, 0.0, True, attn_mask=None, scale=scale
    )
    return out.flatten(0, 1), lse.flatten(0, 1).float()


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q[None], k[None], v[None], 0.0, False, attn_mask=None, scale=scale
    )
    return out[0], lse[0].float()
