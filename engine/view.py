"""Questions on a frozen cache: copy-on-write views that share its entries."""

from __future__ import annotations

import torch
from torch import Tensor

import kernels
from engine.cache import DocCache, LayerCache
from engine.fused import FusedLayer
from engine.places import Places
from engine.read_layer import (
    ReadLayer,
    attend_within,
    merged,
    pack,
    turned_together,
)

Readable = ReadLayer | FusedLayer


def readable_layers(cache: DocCache) -> list[Readable]:
    """All layers as this device's backend reads them, once for all questions."""
    places = Places(cache)
    return [_readable(cache, layer, places) for layer in cache.layers]


def _readable(cache: DocCache, layer: LayerCache, places: Places) -> Readable:
    """As it is stored, where the backend reads that; else decoded and turned, once."""
    if kernels.fuses(layer.positions.device) and FusedLayer.fits(cache, layer):
        return FusedLayer.of(cache, layer, places)
    return ReadLayer.of(cache, layer, places)


class CacheView:
    """A question on top of a frozen cache: shares its entries, appends its own, changes nothing.

    It is a `Store`: the model's forward passes append their keys and values to the view's tail.
    """

    wants_hidden = False

    def __init__(self, cache: DocCache, readable: list[Readable]) -> None:
        self.cache = cache
        self._readable = readable
        self._tail_k: list[Tensor | None] = [None] * len(readable)
        self._tail_v: list[Tensor | None] = [None] * len(readable)
        self._turned: tuple[tuple[int, int], list[tuple[Tensor, Tensor]]] | None = None

    @property
    def n_tail(self) -> int:
        """Tokens appended on top of the document."""
        tail = self._tail_k[-1]
        return 0 if tail is None else tail.shape[1]

    def entries(self, layer: int) -> Readable:
        """The document's entries of a layer as this view reads them."""
        return self._readable[layer]

    def fork(self) -> CacheView:
        """A second view that goes its own way from here, with a tail of its own."""
        twin = CacheView(self.cache, self._readable)
        for ours, theirs in ((self._tail_k, twin._tail_k), (self._tail_v, twin._tail_v)):
            theirs[:] = [None if t is None else t.clone() for t in ours]
        return twin

    def tails(self) -> list[tuple[Tensor | None, Tensor | None]]:
        """Keys, rotated, and values of the appended tokens, per layer [n_kv_heads, n, head_dim]."""
        return list(zip(self._tail_k, self._tail_v, strict=True))

    def lay_tail(self, keys: Tensor, values: Tensor, n_tail: int) -> None:
        """Let the tail be the first n_tail tokens of [n_layers, n_kv_heads, room, head_dim]."""
        for tail, buffers in ((self._tail_k, keys), (self._tail_v, values)):
            tail[:] = buffers[:, :, :n_tail].unbind()

    def tail_is_in(self, keys: Tensor, values: Tensor) -> bool:
        """Whether the tail lies where `lay_tail` would lay it."""
        pairs = ((self._tail_k, keys), (self._tail_v, values))
        return all(
            t is not None and t.data_ptr() == buffer.data_ptr()
            for tail, buffers in pairs
            for t, buffer in zip(tail, buffers, strict=True)
        )

    def crop(self, n_tail: int) -> None:
        """Forget everything after the first `n_tail` appended tokens."""
        if not 0 <= n_tail <= self.n_tail:
            raise AssertionError(f"cannot crop a tail of {self.n_tail} tokens to {n_tail}")
        for tail in (self._tail_k, self._tail_v):
            tail[:] = [None if t is None else t[:, :n_tail] for t in tail]

    def see_hidden(self, layer: int, hidden: Tensor) -> None:
        """Store protocol; a view has no use for it."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Store protocol: document entries, then the tail so far, then causally the new tokens.

        Whatever the queries' number format, entries and tail are in the cache's.
        """
        geometry, dtype = self.cache.geometry, self.cache.compute_dtype
        entries, given = self._readable[layer], q.dtype
        past_k, past_v = self._tail_k[layer], self._tail_v[layer]
        n_past = 0 if past_k is None else past_k.shape[1]
        q, k = self._rotate(layer, q, k, n_past)
        v = v.to(dtype)
        if past_k is not None and past_v is not None:
            tail_k, tail_v = torch.cat([past_k, k], dim=1), torch.cat([past_v, v], dim=1)
        else:
            tail_k, tail_v = k.contiguous(), v.contiguous()
        self._tail_k[layer], self._tail_v[layer] = tail_k, tail_v
        packed = pack(q, geometry.n_kv_heads)
        if k.shape[1] == 1:  # it sees all of the tail, itself included
            out = entries.mix(packed, scale, (tail_k, tail_v))
        else:
            past = None if past_k is None or past_v is None or not n_past else (past_k, past_v)
            own = attend_within(q, k, v, scale, geometry.n_kv_heads)
            out = merged([entries.attend(packed, scale, past), own])
        return out.reshape(q.shape).to(given)

    def _rotate(self, layer: int, q: Tensor, k: Tensor, n_past: int) -> tuple[Tensor, Tensor]:
        """Turn new queries and keys to their positions, in one go: they stand at the same ones."""
        cos, sin = self._turns(n_past, k.shape[1])[layer]
        return turned_together(self.cache.rotary, q, k, cos, sin, self.cache.compute_dtype)

    def _turns(self, n_past: int, n: int) -> list[tuple[Tensor, Tensor]]:
        """What turns n tokens after n_past, of each layer, computed once for a forward.

        Each [n_kv_heads, 1, n, rotary_dim].
        """
        if self._turned is None or self._turned[0] != (n_past, n):
            starts = torch.stack([entries.start for entries in self._readable])
            positions = starts + torch.arange(n_past, n_past + n, device=starts.device)
            cos, sin = self.cache.rotary.turns(positions[:, :, None])
            pairs = list(zip(cos.unbind(), sin.unbind(), strict=True))
            self._turned = ((n_past, n), pairs)
        return self._turned[1]
