"""Evicting from a cache that is already whole: by the scores it carries, or by others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from engine.cache import DocCache, LayerCache
from engine.eviction import EvictionConfig, HeadEntries, select
from engine.splits import Split, splits_of
from kernels import compact
from kernels.selection import LayerRows


def pruned(
    cache: DocCache,
    scores: Mapping[int, Tensor | list[Tensor]] | None,
    config: EvictionConfig,
    *,
    last: bool = True,
    ceiling: int | None = None,
) -> DocCache:
    """A copy of a cache with only what `select` keeps; frozen like the original.

    scores  per layer [n_kv_heads, n] or a list of one tensor [kept] per KV head, fp32, higher =
            keep; None uses the scores in the cache
    last    see engine.eviction.select
    """
    entries = [
        [
            HeadEntries(_row(scores, number, layer, head), layer.positions[layer.rows(head)])
            for head in range(len(layer.lengths))
        ]
        for number, layer in enumerate(cache.layers)
    ]
    chosen = select(entries, config, cache.n_seen, last=last, ceiling=ceiling)
    splits = splits_of(cache.layers, chosen)
    layers = [
        _gathered(layer, row, sides, [e.scores for e in heads])
        for layer, row, sides, heads in zip(cache.layers, chosen, splits, entries, strict=True)
    ]
    return replace(cache, layers=layers, _readable=[])


def _row(
    scores: Mapping[int, Tensor | list[Tensor]] | None, number: int, layer: LayerCache, head: int
) -> Tensor:
    return layer.scores[layer.rows(head)] if scores is None else scores[number][head]


def _gathered(
    layer: LayerCache,
    chosen: list[Tensor],
    splits: tuple[list[Split], list[Split]],
    scores: list[Tensor],
) -> LayerCache:
    index = torch.cat([rows + layer.offsets[head] for head, rows in enumerate(chosen)])
    scored = torch.cat(scores)
    if layer.keys.codes is None and layer.values.codes is None:
        return _compacted(layer, index, scored, list(accumulate(map(len, chosen), initial=0)))
    keys, values = layer.keys.taken(chosen, splits[0]), layer.values.taken(chosen, splits[1])
    return LayerCache(keys, values, layer.positions[index], scored[index])


def _compacted(layer: LayerCache, index: Tensor, scores: Tensor, offsets: list[int]) -> LayerCache:
    """A layer without codes: all its rows lie in one order, and move in one pass.

    index    the kept entries over all heads, ascending
    scores   [n] fp32, those to keep them by
    offsets  where the heads begin afterwards
    """
    keep = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    keep[index] = True
    whole = LayerRows(layer.keys.fine, layer.values.fine, layer.positions, scores)
    left = compact(whole, keep, len(index))
    keys, values = (
        replace(side, fine=fine, offsets=tuple(offsets))
        for side, fine in ((layer.keys, left.keys), (layer.values, left.values))
    )
    return LayerCache(keys, values, left.positions, left.scores)
