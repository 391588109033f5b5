"""Expected attention: how much future queries will look at a key (arXiv 2510.00636).

Queries before rotation are close to a Gaussian of mean mu and covariance S per query head. Turned
by the mean rotation of the coming positions, they give an entry the expected unnormalised
attention exp(mu.k / sqrt(d) + k.S.k / 2d). Logits are compared, not probabilities, because a
softmax over "the entries present" would change meaning from chunk to chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.rotary import Rotary
from engine.scoring import LayerStep, Scorer, group_mean

FUTURE_TOKENS = 512
_EPS = 1e-2


@dataclass(frozen=True)
class QueryStatistics:
    """Mean [n_layers, n_q_heads, head_dim] and covariance [..., head_dim, head_dim], both fp32."""

    mean: Tensor
    covariance: Tensor


class ExpectedAttentionScorer(Scorer):
    """Score = log expected attention plus log(norm of the value + eps), mean over the group.

    Needs the model's query statistics, gathered once by `QueryStatisticsScorer`. An entry is
    scored once, seen from the end of its chunk, FUTURE_TOKENS ahead.
    """

    name = "expected_attention"
    allocation = "uniform"  # logits of one head say nothing of another's

    def __init__(self, statistics: QueryStatistics, rotary: Rotary) -> None:
        self.statistics = statistics
        self.rotary = rotary

    def score(self, step: LayerStep) -> Tensor:
        """See Scorer.score."""
        k = self.rotary.rotate(step.k.float(), step.positions)
        mean, covariance = self._future_query(step, int(step.positions[-1]) + 1)
        keys = k.repeat_interleave(step.geometry.group_size, dim=0)
        linear = torch.einsum("hnd,hd->hn", keys, mean) * step.scale
        spread = torch.einsum("hnd,hde,hne->hn", keys, covariance, keys) * step.scale**2 / 2
        value_norm = torch.linalg.vector_norm(step.v.float(), dim=-1)
        return group_mean(linear + spread, step.geometry.n_kv_heads) + torch.log(value_norm + _EPS)

    def _future_query(self, step: LayerStep, first: int) -> tuple[Tensor, Tensor]:
        """Statistics of this layer's queries, turned by the mean rotation ahead of `first`."""
        device = step.k.device
        positions = torch.arange(first, first + FUTURE_TOKENS, device=device)
        rotation = mean_rotation(self.rotary, positions, step.geometry.head_dim)
        mean = self.statistics.mean[step.layer].to(device)
        covariance = self.statistics.covariance[step.layer].to(device)
        return mean @ rotation.T, rotation @ covariance @ rotation.T


def mean_rotation(rotary: Rotary, positions: Tensor, head_dim: int) -> Tensor:
    """Average of the rotation matrices at `positions`: [head_dim, head_dim] fp32."""
    cos, sin = rotary.turns(positions)
    identity = torch.eye(head_dim, device=positions.device)
    # Rotating the rows of the identity gives the transposed matrix.
    return rotary.turn(identity, cos.mean(0), sin.mean(0)).T


class QueryStatisticsScorer(Scorer):
    """Keeps nothing in particular and gathers the statistics of a text's queries on the way."""

    name = "query_statistics"

    def __init__(self, skip_tokens: int = 4) -> None:
        self.skip_tokens = skip_tokens
        self._sums: dict[int, tuple[int, Tensor, Tensor]] = {}

    def reset(self) -> None:
        """Forget the text."""
        self._sums.clear()

    def score(self, step: LayerStep) -> Tensor:
        """Adds the chunk's queries (sinks left out) to the sums; the scores are zero."""
        q = step.q.double()[:, step.positions >= self.skip_tokens]
        count, first, second = self._sums.get(step.layer, (0, torch.zeros(()), torch.zeros(())))
        self._sums[step.layer] = (
            count + q.shape[1],
            first + q.sum(1),
            second + torch.einsum("hnd,hne->hde", q, q),
        )
        return torch.zeros(step.k.shape[:2], device=step.k.device)

    def statistics(self) -> QueryStatistics:
        """Mean and covariance of all queries seen."""
        means, covariances = [], []
        for layer in sorted(self._sums):
            count, first, second = self._sums[layer]
            mean = first / count
            means.append(mean)
            covariances.append(second / count - mean[:, :, None] * mean[:, None, :])
        return QueryStatistics(torch.stack(means).float(), torch.stack(covariances).float())
