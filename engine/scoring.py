"""What a scorer is: the one contract between the engine and everything that rates cache entries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from engine.eviction import Allocation, Profile
    from engine.geometry import ModelGeometry


@dataclass(frozen=True)
class LayerStep:
    """What one layer knows about one chunk, at the moment it is scored.

    q          [n_q_heads, n, head_dim], before rotary embedding
    k, v       [n_kv_heads, n, head_dim], k before rotary embedding
    positions  [n] int64, index in the document, ascending
    hidden     [n, hidden_size], the attention's input; only if the scorer wants it
    mass_new   [n_kv_heads, n] fp32, attention each new entry received from this chunk, mean over
               the query group; only if the scorer wants mass
    mass_kept  per KV head [kept] fp32, the same for the entries already in the cache
    """

    layer: int
    geometry: ModelGeometry
    q: Tensor
    k: Tensor
    v: Tensor
    positions: Tensor
    scale: float
    hidden: Tensor | None = None
    mass_new: Tensor | None = None
    mass_kept: list[Tensor] = field(default_factory=list)


class Scorer:
    """Rates cache entries of one document while it is read. Base class of all scorers.

    One instance reads one document; `reset` makes it ready for the next. State that must survive
    a pause of the reading goes through `state` and `load_state`.
    """

    name = "scorer"
    wants_hidden = False
    wants_mass = False
    wants_logits = False
    allocation: Allocation = "global"  # how a budget suits the scores, unless somebody chooses
    profile: Profile | None = None  # how much each layer and head keeps, if the scorer knows

    def reset(self) -> None:
        """Forget the document."""

    def score(self, step: LayerStep) -> Tensor:
        """Rate the new entries: [n_kv_heads, n] fp32, higher = keep."""
        raise TypeError(f"{type(self).__name__} does not say how it scores")

    def rescore(self, step: LayerStep, kept: list[Tensor]) -> list[Tensor]:
        """New scores of the entries already kept, per KV head; by default they never change."""
        return kept

    def see_logits(self, logits: Tensor, token_ids: Tensor) -> Tensor | None:
        """Scores from the model's own predictions, [n] fp32, for scorers that want logits.

        logits [n, vocab] fp32: row i is the prediction *of* token i (made before it was read;
        row 0 of the first chunk is uniform). token_ids [n].
        """
        return None

    def state(self) -> dict[str, Tensor]:
        """Tensors that a resumed reading needs; empty for scorers without memory."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""

    def digest(self) -> str:
        """What distinguishes this scorer in a snapshot beside its name."""
        return self.name


def group_mean(x: Tensor, n_kv_heads: int) -> Tensor:
    """Mean over the query heads of each group: [n_q_heads, ...] -> [n_kv_heads, ...]."""
    return x.reshape(n_kv_heads, -1, *x.shape[1:]).mean(dim=1)


def spread(values: Tensor, n_kv_heads: int) -> Tensor:
    """The same score for every KV head: [n] -> [n_kv_heads, n] fp32."""
    return values.to(torch.float32)[None].expand(n_kv_heads, -1)
