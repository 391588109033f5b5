"""A layer as attention reads it: keys turned to their positions, numbers in the computing dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import kernels
from engine.cache import DocCache, LayerCache
from engine.places import Places
from engine.rotary import Rotary


@dataclass(frozen=True)
class ReadLayer:
    """A layer as attention reads it: keys rotated, everything in the computing dtype.

    keys, values  one tensor [n_heads, length, head_dim] per run of neighbouring heads of one
                  length, so that an even layer is a single dense attention
    start         [n_kv_heads, 1] rotary position of the first token after the entries
    """

    keys: list[Tensor]
    values: list[Tensor]
    start: Tensor

    @classmethod
    def of(cls, cache: DocCache, layer: LayerCache, places: Places | None = None) -> ReadLayer:
        """Rotate a layer's keys to where the cache's rule puts them.

        places  of the cache, where several layers are read
        """
        places = places or Places(cache)
        keys, values = [], []
        for first, n_heads, _ in _even_runs(layer.lengths):
            k = layer.keys.block(first, n_heads, cache.compute_dtype)
            heads = range(first, first + n_heads)
            at = torch.stack([places.of_head(layer, head) for head in heads])
            keys.append(cache.rotary.look_up(k, at, *places.turns))
            values.append(layer.values.block(first, n_heads, cache.compute_dtype))
        return cls(keys, values, places.starts(layer))

    def attend(self, packed_q: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
        """packed_q [n_kv_heads, group * n, head_dim], rotated -> output and log-sum-exp.

        None if there is nothing to attend to. Every head of a model keeps its sinks, so heads
        are empty all together or not at all.
        """
        if self.keys[0].shape[1] == 0:
            return None
        first, parts = 0, []
        for k, v in zip(self.keys, self.values, strict=True):
            parts.append(kernels.attend(packed_q[first : first + len(k)], k, v, scale))
            first += len(k)
        if len(parts) == 1:
            return parts[0]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def flat(self, offsets: tuple[int, ...]) -> kernels.History | None:
        """Head after head in flat tensors; None if there is nothing."""
        if not offsets[-1]:
            return None
        keys, values = (
            torch.cat([block.flatten(0, 1) for block in side]) for side in (self.keys, self.values)
        )
        where = torch.tensor(offsets, dtype=torch.int32, device=keys.device)
        return kernels.History(keys, values, where)

    def heads(self) -> list[Tensor]:
        """The rotated keys of each KV head: [1, length, head_dim]."""
        return [k for block in self.keys for k in block.split(1)]

    def value_heads(self) -> list[Tensor]:
        """The values of each KV head: [1, length, head_dim]."""
        return [v for block in self.values for v in block.split(1)]


def _even_runs(lengths: list[int]) -> list[tuple[int, int, int]]:
    """(first head, number of heads, their length) for each run of equal neighbours."""
    runs: list[tuple[int, int, int]] = []
    for head, length in enumerate(lengths):
        if runs and runs[-1][2] == length:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, length)
        else:
            runs.append((head, 1, length))
    return runs


def pack(q: Tensor, n_kv_heads: int) -> Tensor:
    """[n_q_heads, n, d] -> [n_kv_heads, group * n, d]: the query group becomes rows."""
    return q.reshape(n_kv_heads, -1, q.shape[-1])


def turned_together(
    rotary: Rotary, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries [n_q_heads, n, d] and keys [n_kv_heads, n, d] of the same tokens, rotated in one go.

    cos, sin  [n_kv_heads, 1, n, rotary_dim / 2]
    """
    grouped = q.reshape(len(k), -1, *q.shape[1:])
    turned = rotary.apply(torch.cat([grouped, k[:, None]], dim=1), cos, sin)
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
