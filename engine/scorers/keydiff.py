"""KeyDiff: keep the keys that differ most from the average key (arXiv 2504.15364)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from engine.scoring import LayerStep, Scorer


class KeyDiffScorer(Scorer):
    """Score = minus cosine(key, mean of all normalised keys read so far), in [-1, 1].

    The mean runs over every key seen, kept or not, so that it does not drift with the evictions;
    an entry is scored once, against the mean at that time.
    """

    name = "keydiff"

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    def reset(self) -> None:
        """Forget the keys seen."""
        self._sums.clear()

    def score(self, step: LayerStep) -> Tensor:
        """See Scorer.score."""
        keys = normalize(step.k.float(), dim=-1)
        total = keys.sum(dim=1)
        if step.layer in self._sums:
            total = total + self._sums[step.layer]
        self._sums[step.layer] = total
        return -torch.einsum("hnd,hd->hn", keys, normalize(total, dim=-1))

    def state(self) -> dict[str, Tensor]:
        """Running sums of normalised keys, one tensor [n_kv_heads, head_dim] a layer."""
        return {f"sum.{layer:03d}": total for layer, total in self._sums.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back the running sums."""
        self._sums = {int(name.split(".")[1]): total for name, total in state.items()}
