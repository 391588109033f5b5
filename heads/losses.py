"""What a head is fitted by. All take predictions and targets [n, n_kv_heads] and return a scalar.

Targets are labels in log space except for `locret_loss`, whose label is a pre-softmax logit.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as nnf

SMOOTHNESS = 0.0025  # Locret's weight of neighbouring scores' differences (2410.01805, code)


def log_mse(predicted: Tensor, target: Tensor, threshold: Tensor) -> Tensor:
    """Mean squared error of the log label (KVzap, 2601.07891)."""
    return nnf.mse_loss(predicted, target)


def keep_bce(predicted: Tensor, target: Tensor, threshold: Tensor) -> Tensor:
    """Keep or drop at several budgets: mean over them of the cross-entropy of `target > t`.

    threshold  [n, n_budgets] or [n_budgets]: the label's value at each budget's edge, of the
               document that the token comes from
    """
    edges = threshold.reshape(-1, 1, threshold.shape[-1])
    keep = (target[..., None] > edges).to(predicted.dtype)
    return nnf.binary_cross_entropy_with_logits(predicted[..., None] - edges, keep)


def pair_rank(predicted: Tensor, target: Tensor, threshold: Tensor) -> Tensor:
    """Log loss on random pairs, plus the squared error that fixes the scale between heads."""
    other = torch.randperm(len(predicted), device=predicted.device)
    wanted = (target - target[other]).sign()
    wrong = nnf.softplus(-(predicted - predicted[other]) * wanted)
    return (wrong * wanted.abs()).mean() + 0.1 * nnf.mse_loss(predicted, target)


def locret_loss(predicted: Tensor, target: Tensor, threshold: Tensor) -> Tensor:
    """SmoothL1 (beta 1) plus the smoothness of neighbouring tokens' scores."""
    smooth = (predicted[1:] - predicted[:-1]).square().mean() if len(predicted) > 1 else 0.0
    return nnf.smooth_l1_loss(predicted, target) + SMOOTHNESS * smooth


BY_NAME = {"mse": log_mse, "bce": keep_bce, "rank": pair_rank, "locret": locret_loss}
