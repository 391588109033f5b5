"""A layer as attention reads it: keys turned to their positions, numbers in the computing dtype."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import kernels
from engine.cache import DocCache, LayerCache
from engine.places import Places
from engine.rotary import Rotary
from kernels import Tail, TurnedEntries


@dataclass(frozen=True)
class ReadLayer:
    """A layer as attention reads it: keys rotated, everything in the computing dtype.

    entries  None if there are none: every head of a model keeps its sinks, so heads are empty all
             together or not at all
    start    [n_kv_heads, 1] rotary position of the first token after the entries
    empty    [0, head_dim] in the computing dtype, a head's keys or values where there are none
    """

    entries: TurnedEntries | None
    start: Tensor
    empty: Tensor

    @classmethod
    def of(cls, cache: DocCache, layer: LayerCache, places: Places | None = None) -> ReadLayer:
        """Rotate a layer's keys to where the cache's rule puts them.

        places  of the cache, where several layers are read
        """
        places = places or Places(cache)
        dtype, head_dim = cache.compute_dtype, layer.keys.fine.shape[1]
        device = layer.positions.device
        empty = torch.empty(0, head_dim, dtype=dtype, device=device)
        if not layer.offsets[-1]:
            return cls(None, places.starts(layer), empty)
        entries = TurnedEntries.room(layer.lengths, head_dim, dtype, device)
        for head, (keys, values) in enumerate(turned_heads(cache, layer, places)):
            entries.lay(head, keys, values)
        return cls(entries, places.starts(layer), empty)

    def attend(
        self, packed_q: Tensor, scale: float, tail: Tail | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """packed_q [n_kv_heads, group * n, head_dim], rotated -> output and log-sum-exp.

        tail  keys, rotated, and values [n_kv_heads, n, head_dim] that all queries see as well
        None if there is nothing to attend to.
        """
        if self.entries is not None:
            return kernels.attend_turned(packed_q, self.entries, scale, tail)
        return None if tail is None else kernels.attend(packed_q, *tail, scale)

    def mix(self, packed_q: Tensor, scale: float, tail: Tail) -> Tensor:
        """As `attend`, where nothing else is seen: the output alone, in fp32 or q's dtype."""
        if self.entries is not None:
            return kernels.mix_turned(packed_q, self.entries, scale, tail)
        return kernels.attend(packed_q, *tail, scale)[0]

    def heads(self) -> list[Tensor]:
        """The rotated keys of each KV head, copied: [1, length, head_dim]."""
        n_heads = len(self.start)
        if self.entries is None:
            return [self.empty[None]] * n_heads
        return [self.entries.keys(head)[None] for head in range(n_heads)]

    def value_heads(self) -> list[Tensor]:
        """The values of each KV head, copied: [1, length, head_dim]."""
        n_heads = len(self.start)
        if self.entries is None:
            return [self.empty[None]] * n_heads
        return [self.entries.values(head)[None] for head in range(n_heads)]


def turned_heads(
    cache: DocCache, layer: LayerCache, places: Places
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each head's keys, turned, and values in the computing dtype: [length, head_dim]."""
    for head in range(len(layer.lengths)):
        keys = layer.keys.floats(head, cache.compute_dtype)
        turned = cache.rotary.look_up(keys, places.of_head(layer, head), *places.turns)
        yield turned, layer.values.floats(head, cache.compute_dtype)


def history_of(cache: DocCache, layer: LayerCache, places: Places) -> kernels.History | None:
    """A layer's entries as a chunk's kernel takes them, head after head; None if there are none."""
    if not layer.offsets[-1]:
        return None
    keys, values = zip(*turned_heads(cache, layer, places), strict=True)
    where = torch.tensor(layer.offsets, dtype=torch.int32, device=layer.positions.device)
    return kernels.History(torch.cat(keys), torch.cat(values), where)


def pack(q: Tensor, n_kv_heads: int) -> Tensor:
    """[n_q_heads, n, d] -> [n_kv_heads, group * n, d]: the query group becomes rows."""
    return q.reshape(n_kv_heads, -1, q.shape[-1])


def turned_together(
    rotary: Rotary,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Queries [n_q_heads, n, d] and keys [n_kv_heads, n, d] of the same tokens, rotated in one go.

    cos, sin  [n_kv_heads, 1, n, rotary_dim], as `rotary.turn` takes them
    dtype     of what is returned
    """
    grouped = q.reshape(len(k), -1, *q.shape[1:])
    joined = torch.cat([grouped, k[:, None]], dim=1)
    turned = rotary.turn(joined, cos, sin, dtype)
    return turned[:, :-1].reshape(q.shape), turned[:, -1]


def rotate_group(rotary: Rotary, q: Tensor, positions: Tensor) -> Tensor:
    """Rotate queries [n_q_heads, n, d] at their KV head's positions [n_kv_heads, n].

    Contiguous, and a group at a time: in between they are in fp32.
    """
    grouped = q.unflatten(0, (len(positions), -1))
    turned = q.new_empty(grouped.shape)
    for group, own, where in zip(turned, grouped, positions, strict=True):
        group.copy_(rotary.rotate(own, where))
    return turned.flatten(0, 1)


def attend_within(
    q: Tensor, k: Tensor, v: Tensor, scale: float, n_kv_heads: int
) -> tuple[Tensor, Tensor]:
    """New tokens causally over themselves, packed: [n_kv_heads, group * n, d] and lse."""
    out, lse = kernels.attend_causal(q, k, v, scale)
    return pack(out, n_kv_heads), lse.reshape(n_kv_heads, -1)


def merged(parts: list[tuple[Tensor, Tensor] | None]) -> Tensor:
    """Join attentions over disjoint keys; None stands for no keys."""
    present = [part for part in parts if part is not None]
    out, lse = present[0]
    for other_out, other_lse in present[1:]:
        out, lse = kernels.merge(out, lse, other_out, other_lse)
    return out
