"""Several scorers rate one reading, each as if it were alone; nothing may be evicted meanwhile."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.scoring import LayerStep, Scorer, spread


class SeveralScorers(Scorer):
    """Keeps the scores of every scorer apart; those in the cache itself are zeros.

    For a full reading (budget None) with a chunk size that each scorer would have had by itself.
    """

    name = "several"

    def __init__(self, scorers: Mapping[str, Scorer]) -> None:
        self.scorers = dict(scorers)
        self.wants_hidden = any(s.wants_hidden for s in scorers.values())
        self.wants_mass = any(s.wants_mass for s in scorers.values())
        self.wants_logits = any(s.wants_logits for s in scorers.values())
        self.reset()

    def reset(self) -> None:
        """Forget the document."""
        self._found: dict[str, dict[int, Tensor]] = {name: {} for name in self.scorers}
        self._from_logits: dict[str, list[Tensor]] = {}
        for scorer in self.scorers.values():
            scorer.reset()

    def score(self, step: LayerStep) -> Tensor:
        """Zeros; each scorer's own scores are gathered on the side."""
        for name, scorer in self.scorers.items():
            new = scorer.score(step).float()
            old = self._found[name].get(step.layer)
            if old is not None:
                kept = scorer.rescore(step, list(old))
                new = torch.cat([torch.stack(kept), new], dim=1)
            self._found[name][step.layer] = new
        return torch.zeros(step.k.shape[:2], device=step.k.device)

    def see_logits(self, logits: Tensor, token_ids: Tensor) -> Tensor:
        """See Scorer.see_logits: zeros; scorers that want logits are shown them."""
        for name, scorer in self.scorers.items():
            if scorer.wants_logits:
                scores = scorer.see_logits(logits, token_ids)
                assert scores is not None
                self._from_logits.setdefault(name, []).append(scores)
        return torch.zeros(len(token_ids), device=logits.device)

    def scores(self, name: str) -> dict[int, Tensor]:
        """What one scorer gave: per layer [n_kv_heads, n] fp32, for all tokens read so far."""
        found = self._found[name]
        if name not in self._from_logits:
            return found
        values = torch.cat(self._from_logits[name])
        return {layer: spread(values, len(rows)) for layer, rows in found.items()}
