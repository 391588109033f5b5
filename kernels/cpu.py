"""Attention on the CPU through aten's fused kernel, which also returns the log-sum-exp.

Where matrix products in bf16 outrun it, long queries go that way (kernels.products).

The grouped-query path of stock SDPA is 9 to 16 times slower at decode; callers pack the query
group into rows instead, so that one key-value head is one dense attention.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from kernels import products
from kernels.choice import products_win
from kernels.reference import merge
from kernels.turned import Tail, TurnedEntries

LONG = 512  # queries from which matrix products pay
FEW_ROWS = 512  # a token's query group, or a few tokens': so many attend to all heads at once


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """See kernels.reference.attend; q, k, v [n_heads, n, head_dim], one dtype."""
    if k.shape[1] > 0 and _by_products(q):
        return products.attend(q, k, v, scale)
    return _fused(q, k, v, scale)


def _by_products(q: Tensor) -> bool:
    """Whether so many queries [n_heads, n, head_dim] are served by matrix products here."""
    long = q.dtype == torch.bfloat16 and q.shape[1] >= LONG
    return long and not (torch.is_grad_enabled() and q.requires_grad) and products_win()


def attend_turned(
    q: Tensor, entries: TurnedEntries, scale: float, tail: Tail | None = None
) -> tuple[Tensor, Tensor]:
    """See kernels.turned.attend_turned; one dtype.

    aten gives one head's few queries to one thread, and heads of one length only to several. Many
    queries keep the threads busy a head at a time, and are not worth joining.
    """
    if q.shape[1] <= FEW_ROWS:
        if tail is None and not len(entries.head_of):  # a part for each head: nothing to join
            out, lse = _rests(q[None], entries, scale)
            return out[0], lse[0].float()
        outs, logits = _parts(q, entries, scale, tail)
        shares = logits.softmax(-1)
        # The largest share is exp(its logit - log-sum-exp), and never too small for a logarithm.
        lse = logits.amax(-1) - shares.amax(-1).log()
        return _joined(outs, shares).to(q.dtype), lse
    outs, sums = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
    for head, rows in enumerate(q.split(1)):
        found = [attend(rows, k[None], v[None], scale) for k, v in entries.pieces(head)]
        outs[head], sums[head] = (x[0] for x in functools.reduce(_merged, found))
    if tail is None:
        return outs, sums
    return merge(outs, sums, *attend(q, *tail, scale))


def _merged(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return merge(*a, *b)


def mix_turned(q: Tensor, entries: TurnedEntries, scale: float, tail: Tail | None) -> Tensor:
    """See kernels.turned.mix_turned."""
    if q.shape[1] > FEW_ROWS:
        return attend_turned(q, entries, scale, tail)[0].float()
    outs, logits = _parts(q, entries, scale, tail)
    return _joined(outs, logits.softmax(-1))


def _parts(
    q: Tensor, entries: TurnedEntries, scale: float, tail: Tail | None
) -> tuple[Tensor, Tensor]:
    """Few queries over all parts of all heads: outputs [n_parts, rows, head_dim] and, for each
    head, the parts' log-sum-exps [n_heads, rows, n_parts], another head's without weight.
    """
    queries = q[None]  # one batch, as the operator takes it: [1, n_parts, rows, head_dim]
    found = [_rests(queries, entries, scale)]
    if len(entries.head_of):
        found.insert(0, _flash(queries.index_select(1, entries.head_of), *entries.wholes, scale))
    if tail is not None:
        found.append(_flash(queries, tail[0][None], tail[1][None], scale))
    outs, sums = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return outs[0], sums.mT.float() + entries.foreign[..., : sums.shape[1]]


def _rests(queries: Tensor, entries: TurnedEntries, scale: float) -> tuple[Tensor, Tensor]:
    mask = entries.unseen.expand(-1, -1, queries.shape[2], -1)
    return _flash(queries, *entries.rests, scale, mask)


def _joined(outs: Tensor, shares: Tensor) -> Tensor:
    """outs [n_parts, rows, head_dim], shares [n_heads, rows, n_parts] -> [n_heads, rows, head_dim]
    in fp32.
    """
    return torch.bmm(shares.transpose(0, 1), outs.transpose(0, 1).float()).transpose(0, 1)


def attend_causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """See kernels.reference.attend_causal; one dtype. A group reads its keys where they lie."""
    if _by_products(q):
        return products.attend_causal(q, k, v, scale)
    grouped = q.unflatten(0, (len(k), -1))
    shared = (t[:, None].expand(*grouped.shape) for t in (k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        grouped, *shared, 0.0, True, attn_mask=None, scale=scale
    )
    return out.flatten(0, 1), lse.flatten(0, 1).float()


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = _flash(q[None], k[None], v[None], scale)
    return out[0], lse[0].float()


def _flash(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """aten's kernel: [1, n_heads, n, head_dim] -> output and log-sum-exp [1, n_heads, n]."""
    found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, attn_mask=mask, scale=scale
    )
    return found
