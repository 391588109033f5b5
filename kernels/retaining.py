"""The retaining heads' networks as functions of tensors, in plain torch.

Two layers without a residual: ours on the attention's input, Locret's (arXiv 2410.01805) on the
flat [q; k; v] before rotary embedding. Everything is computed in fp32 from the given values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

# gelu is the exact one, x * Phi(x), not the tanh approximation.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "relu": functional.relu,
}


def retaining_scores(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Our head: gelu(x w1' + b1) w2' + b2 -> [n_kv_heads, n] fp32.

    x [n, hidden_size]; w1 [width, hidden_size], b1 [width]; w2 [n_kv_heads, width],
    b2 [n_kv_heads]. Weights are rounded to x's dtype first.
    """
    w1, b1, w2, b2 = (w.to(x.dtype).float() for w in (w1, b1, w2, b2))
    inner = functional.gelu(x.float() @ w1.T + b1)
    return (inner @ w2.T + b2).T.contiguous()


def locret_scores(
    q: Tensor, k: Tensor, v: Tensor, fc1: Tensor, fc2: Tensor, activation: str
) -> Tensor:
    """Locret's head: act([q; k; v] fc1') fc2' -> [n_kv_heads, n] fp32.

    q [n_q_heads, n, head_dim]; k and v [n_kv_heads, n, head_dim], un-rotated;
    fc1 [width, (n_q_heads + 2 n_kv_heads) head_dim], fc2 [n_kv_heads, width]; `activation` is a
    name of ACTIVATIONS. Weights are rounded to q's dtype first.
    """
    flat = torch.cat([q, k, v]).transpose(0, 1).flatten(1).float()
    fc1, fc2 = fc1.to(q.dtype).float(), fc2.to(q.dtype).float()
    return (ACTIVATIONS[activation](flat @ fc1.T) @ fc2.T).T.contiguous()
