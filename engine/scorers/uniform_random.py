"""Random: every entry is as good as any other. The control that knows nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.scoring import LayerStep, Scorer


class RandomScorer(Scorer):
    """Independent uniform scores, a function of seed, layer and first position only.

    So a resumed reading draws what an uninterrupted one would have drawn.
    """

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def score(self, step: LayerStep) -> Tensor:
        """See Scorer.score."""
        mixed = (self.seed * 1_000_003 + step.layer) * 1_000_003 + int(step.positions[0])
        generator = torch.Generator().manual_seed(mixed % (2**63))
        shape = (step.geometry.n_kv_heads, len(step.positions))
        return torch.rand(shape, generator=generator).to(step.k.device)

    def digest(self) -> str:
        """Name and seed."""
        return f"{self.name}:{self.seed}"
