"""Recency: the newest entries stay. With sinks this is StreamingLLM (arXiv 2309.17453)."""

from __future__ import annotations

from torch import Tensor

from engine.scoring import LayerStep, Scorer, spread


class RecencyScorer(Scorer):
    """Score = position: a sliding window, the floor every other scorer must beat."""

    name = "recency"

    def score(self, step: LayerStep) -> Tensor:
        """See Scorer.score. Exact for documents below 2^24 tokens, the integers of fp32."""
        return spread(step.positions, step.geometry.n_kv_heads)
