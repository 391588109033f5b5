"""Token surprisal: what the model did not expect stays (SirLLM, arXiv 2405.12528)."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.scoring import LayerStep, Scorer, spread


class SurprisalScorer(Scorer):
    """Score = -log P(token | everything before it), in nats, the same for all layers and heads.

    The published code rates a token by the distribution made *after* reading it, one step late;
    here each token is rated by the distribution that predicted it.
    """

    name = "surprisal"
    wants_logits = True

    def score(self, step: LayerStep) -> Tensor:
        """Zeros until the chunk's predictions are known; `see_logits` then replaces them."""
        return spread(torch.zeros_like(step.positions), step.geometry.n_kv_heads)

    def see_logits(self, logits: Tensor, token_ids: Tensor) -> Tensor:
        """See Scorer.see_logits: surprisal of each token [n] fp32, in nats."""
        chosen = logits.gather(-1, token_ids[:, None])[:, 0]
        return torch.logsumexp(logits, dim=-1) - chosen
