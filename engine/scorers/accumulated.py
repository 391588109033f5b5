"""Accumulated attention: entries that were looked at stay (H2O, arXiv 2306.14048)."""

from __future__ import annotations

from torch import Tensor

from engine.scoring import LayerStep, Scorer


class AccumulatedAttentionScorer(Scorer):
    """Score = attention received so far, summed over queries, mean over the query group.

    Kept entries go on collecting, so the score favours early tokens, as in the paper.
    """

    name = "accumulated"
    allocation = "uniform"  # sums of attention have a scale of their own in every layer
    wants_mass = True

    def score(self, step: LayerStep) -> Tensor:
        """See Scorer.score."""
        assert step.mass_new is not None
        return step.mass_new

    def rescore(self, step: LayerStep, kept: list[Tensor]) -> list[Tensor]:
        """Old score plus what this chunk's queries gave."""
        return [old + new for old, new in zip(kept, step.mass_kept, strict=True)]
