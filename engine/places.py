"""Where kept entries stand when they are read: the rotary positions of a cache.

Inside the trained window an entry stands where its token stands in the document. Of a longer text
the kept entries are moved together: `compact` lets each head count its own (Locret's code), so that
one token stands at another place in every head; `shared` gives a token one place in all heads: as
many entries as a head holds on average before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from engine.cache import DocCache, LayerCache


@dataclass(frozen=True)
class Places:
    """The places of a cache's entries as it is now; made anew when entries came or went."""

    cache: DocCache

    def of_head(self, layer: LayerCache, head: int) -> Tensor:
        """Where a head's entries are read: [length], ascending."""
        positions = layer.positions[layer.rows(head)]
        if self.cache.positions_mode == "original":
            return positions
        if self.cache.positions_mode == "compact":
            return torch.arange(len(positions), dtype=torch.int32, device=positions.device)
        return self._shared[positions.long()]

    def starts(self, layer: LayerCache) -> Tensor:
        """Where the next token stands for each KV head: [n_kv_heads, 1] int64."""
        if self.cache.positions_mode == "compact":
            values = layer.lengths
        else:
            values = [self.end] * self.cache.geometry.n_kv_heads
        return torch.tensor(values, device=layer.positions.device)[:, None]

    @cached_property
    def end(self) -> int:
        """The place of the next token, the furthest of all heads."""
        cache = self.cache
        if cache.positions_mode == "original":
            return cache.n_seen
        if cache.positions_mode == "compact":
            return max(max(layer.lengths) for layer in cache.layers)
        return -(-cache.n_entries // cache.geometry.n_slots)

    @cached_property
    def turns(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every place, each [end, rotary_dim / 2] fp32."""
        device = self.cache.layers[0].positions.device
        return self.cache.rotary.cos_sin(torch.arange(self.end, device=device))

    @cached_property
    def _shared(self) -> Tensor:
        """The place of each document position: [n_seen] int32."""
        cache = self.cache
        counts = torch.zeros(
            cache.n_seen, dtype=torch.int64, device=cache.layers[0].positions.device
        )
        for layer in cache.layers:
            places = layer.positions.long()
            counts.index_add_(0, places, torch.ones_like(places))
        before = counts.cumsum(0) - counts
        return (before // cache.geometry.n_slots).to(torch.int32)
