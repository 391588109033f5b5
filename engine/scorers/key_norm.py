"""Key norm: entries with short keys tend to draw attention (arXiv 2406.11430)."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.scoring import LayerStep, Scorer


class KeyNormScorer(Scorer):
    """Score = minus the Euclidean norm of the key."""

    name = "key_norm"
    allocation = "uniform"  # norms of one head say nothing of another's

    def score(self, step: LayerStep) -> Tensor:
        """See Scorer.score."""
        return -torch.linalg.vector_norm(step.k.float(), dim=-1)
