"""A layer's kept entries as a chunk attends to them: decoded and turned a stretch at a time.

Under one budget a head may hold tens of thousands of entries. Decoded and turned all at once they
would be the largest thing in memory while a document is read; attentions over disjoint stretches
join exactly (kernels.merge).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import kernels
from engine.cache import DocCache, LayerCache
from engine.memory import STRETCH_ROWS
from engine.places import Places


@dataclass(frozen=True)
class Stretches:
    """The kept entries of one layer, head after head, without a mask.

    places  where the cache's entries stand
    """

    cache: DocCache
    layer: LayerCache
    places: Places

    def keys_of(self, head: int) -> Iterator[tuple[range, Tensor]]:
        """Which rows of a head, and their keys, turned, in the computing dtype: [n, head_dim]."""
        at = self.places.of_head(self.layer, head)
        for first in range(0, len(at), STRETCH_ROWS):
            rows = range(first, min(first + STRETCH_ROWS, len(at)))
            keys = self.layer.keys.stretch(head, rows, self.cache.compute_dtype)
            where = at[rows.start : rows.stop]
            yield rows, self.cache.rotary.look_up(keys, where, *self.places.turns)

    def join(self, q: Tensor, out: Tensor, lse: Tensor, scale: float) -> None:
        """Let queries that have attended elsewhere attend to the kept entries, too.

        q    [n_kv_heads, n, head_dim], turned
        out  [n_kv_heads, n, head_dim], and lse [n_kv_heads, n] fp32: what they have so far; changed
             in place, a head at a time, for in between it is in fp32
        """
        for head in range(len(q)):
            so_far, sums = out[head].float(), lse[head]
            for rows, keys in self.keys_of(head):
                values = self.layer.values.stretch(head, rows, keys.dtype)
                kept = kernels.attend(q[head : head + 1], keys[None], values[None], scale)
                so_far, sums = kernels.merge(so_far, sums, *(part[0] for part in kept))
            out[head], lse[head] = so_far, sums

    def mass(self, q: Tensor, lse: Tensor, scale: float) -> list[Tensor]:
        """Attention each kept entry receives, summed over the queries: [length] fp32 a head.

        q    [n_kv_heads, n, head_dim], turned
        lse  [n_kv_heads, n] of the whole attention
        """
        found = []
        for head in range(len(q)):
            parts = [
                kernels.key_mass(q[head], keys, lse[head], scale) for _, keys in self.keys_of(head)
            ]
            found.append(torch.cat(parts) if parts else lse.new_empty(0))
        return found
