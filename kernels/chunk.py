"""Attention of one chunk of a document: over its history and causally over itself.

The contract, and its meaning in plain torch. Everything is rotated already.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kernels import reference


@dataclass(frozen=True)
class History:
    """What was kept of the tokens before the chunk; heads may differ in length.

    keys, values  [sum_len, head_dim], keys rotated
    offsets       [n_kv_heads + 1] int32: head h owns rows offsets[h] to offsets[h + 1]
    """

    keys: Tensor
    values: Tensor
    offsets: Tensor


def attend_chunk(
    q: Tensor, k: Tensor, v: Tensor, history: History | None, scale: float
) -> tuple[Tensor, Tensor]:
    """q [n_q_heads, n, head_dim], k and v [n_kv_heads, n, head_dim] -> output like q, log-sum-exp.

    Query head h reads KV head h // (n_q_heads // n_kv_heads). Token i sees all of that head's
    history and tokens 0..i of the chunk; `scale` multiplies q.k. The log-sum-exp is
    [n_q_heads, n] fp32, natural. Computed in fp32.
    """
    outs, sums = [], []
    grouped = q.float().unflatten(0, (len(k), -1))
    for head, (q_group, k_head, v_head) in enumerate(zip(grouped, k, v, strict=True)):
        n_q = len(q_group)
        own_k, own_v = (t.expand(n_q, -1, -1) for t in (k_head, v_head))
        out, lse = reference.attend_causal(q_group, own_k, own_v, scale)
        if history is not None:
            start, end = list(pairwise(history.offsets.tolist()))[head]
            past_k, past_v = (
                t[start:end].expand(n_q, -1, -1) for t in (history.keys, history.values)
            )
            past = reference.attend(q_group, past_k, past_v, scale)
            out, lse = reference.merge(out, lse, *past)
        outs.append(out)
        sums.append(lse)
    return torch.cat(outs).to(q.dtype), torch.cat(sums)
