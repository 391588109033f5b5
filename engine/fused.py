"""A layer as the fused kernels read it: codes and un-rotated keys, as they are stored.

Nothing is decoded or turned ahead, so that a question needs no second copy of the cache.
"""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

import kernels
from engine.cache import DocCache, LayerCache
from engine.places import Places
from engine.read_layer import ReadLayer
from kernels import RaggedEntries, Tail
from kernels.quantise import Codes


@dataclass(frozen=True)
class FusedLayer:
    """Stands where a ReadLayer does.

    cache    whose entries these are, held weakly: the cache holds its layers, and its memory must
             go with the last view
    parts    settled entries and fine ones, with the length of the longest head; empty ones left out
    start    [n_kv_heads, 1] rotary position of the first token after the entries
    """

    cache: weakref.ref[DocCache]
    layer: LayerCache
    parts: list[tuple[RaggedEntries, int]]
    start: Tensor

    @classmethod
    def fits(cls, cache: DocCache, layer: LayerCache) -> bool:
        """Whether the kernels can read it: whole heads are turned, and both sides settle alike."""
        whole = cache.rotary.rotary_dim == cache.geometry.head_dim
        return whole and layer.keys.n_coded == layer.values.n_coded

    @classmethod
    def of(cls, cache: DocCache, layer: LayerCache, places: Places) -> FusedLayer:
        """Point at a layer's entries; only their positions are copied."""
        n_coded = layer.keys.n_coded
        n_fine = [n - m for n, m in zip(layer.lengths, n_coded, strict=True)]
        stand = [places.of_head(layer, head) for head in range(len(layer.lengths))]
        parts = []
        if layer.keys.codes is not None and layer.values.codes is not None:
            sides = (layer.keys.codes, layer.values.codes)
            where = torch.cat([p[:m] for p, m in zip(stand, n_coded, strict=True)])
            parts.append(_part(cache, layer, sides, list(n_coded), where))
        if sum(n_fine):
            where = torch.cat([p[m:] for p, m in zip(stand, n_coded, strict=True)])
            parts.append(_part(cache, layer, (layer.keys.fine, layer.values.fine), n_fine, where))
        return cls(weakref.ref(cache), layer, parts, places.starts(layer))

    def attend(
        self, packed_q: Tensor, scale: float, tail: Tail | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """As ReadLayer.attend."""
        found = [kernels.attend_ragged(packed_q, e, scale, longest=n) for e, n in self.parts]
        if tail is not None:
            found.append(kernels.attend(packed_q, *tail, scale))
        if not found:
            return None
        return functools.reduce(lambda a, b: kernels.merge(*a, *b), found)

    def mix(self, packed_q: Tensor, scale: float, tail: Tail) -> Tensor:
        """As ReadLayer.mix."""
        found = self.attend(packed_q, scale, tail)
        assert found is not None, "there is a tail"
        return found[0]

    def heads(self) -> list[Tensor]:
        """The rotated keys of each KV head, decoded: [1, length, head_dim]."""
        return self._decoded().heads()

    def value_heads(self) -> list[Tensor]:
        """The values of each KV head, decoded: [1, length, head_dim]."""
        return self._decoded().value_heads()

    def _decoded(self) -> ReadLayer:
        cache = self.cache()
        assert cache is not None, "a view keeps its cache"
        return ReadLayer.of(cache, self.layer)


def _part(
    cache: DocCache,
    layer: LayerCache,
    sides: tuple[Tensor | Codes, Tensor | Codes],
    lengths: list[int],
    positions: Tensor,
) -> tuple[RaggedEntries, int]:
    keys, values = sides
    device = layer.positions.device
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    rotary = cache.rotary
    frame = layer.keys.frame if isinstance(keys, Codes) else None
    inv_freq = rotary.inv_freq.to(device)
    entries = RaggedEntries(keys, values, offsets, positions, inv_freq, rotary.scaling, frame)
    return entries, max(lengths)
