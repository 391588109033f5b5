"""One budget over all layers and heads, and the rows that are left: the meaning in plain torch.

Entries of all layers and heads lie in flat tensors, row after row; a row is one KV head of one
layer, and its positions ascend. Budgeted selection over heads: Ada-KV, 2407.11550; here with
protected entries, a floor for every row and a ceiling. Nothing is asked back from the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.quantise import Codes


@dataclass(frozen=True)
class LayerRows:
    """One layer's entries, all heads flat.

    keys, values  [n, head_dim] floats, or Codes of as many rows
    positions     [n] int32
    scores        [n] fp32
    """

    keys: Tensor | Codes
    values: Tensor | Codes
    positions: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Limits:
    """How many entries each row may and must hold: both [n_rows] int64.

    sure  the best that stay whatever the others hold: the protected, or the row's floor
    most  the best that may stay at all: the ceiling, or `sure` where rules hold more than that
    """

    sure: Tensor
    most: Tensor


def keep_mask(
    scores: Tensor,
    positions: Tensor,
    offsets: Tensor,
    protected: Tensor,
    floors: Tensor,
    budget: int,
    ceiling: int | None = None,
) -> Tensor:
    """Which entries stay: [total] bool.

    scores     [total] fp32, higher = keep, not NaN and below infinity
    positions  [total] int32, not negative, ascending inside a row
    offsets    [n_rows + 1] int32: row r owns entries offsets[r] to offsets[r + 1]
    protected  [total] bool, never dropped
    floors     [n_rows] int32, entries that a row keeps by its own best, protected ones included
    budget     entries of all rows together; protected ones and floors may exceed it
    ceiling    most entries of a row, protected ones excepted
    First come the protected, then the floors, then the best of what is left of all rows. Ties go to
    the later position, then to the earlier row. With budget 0 every row keeps just its floor.
    """
    total, device = len(scores), scores.device
    row = row_of(offsets, total)
    best = _best_first(scores, positions)
    ranked = best[_stable(~protected[best])]
    ranked = ranked[_stable(row[ranked])]
    rank = torch.empty(total, dtype=torch.int64, device=device)
    rank[ranked] = torch.arange(total, device=device) - offsets[row[ranked]]
    limits = limits_of(offsets, protected, floors, ceiling)
    sure = rank < limits.sure[row]
    pool = (~sure & (rank < limits.most[row]))[best]
    left = budget - limits.sure.sum()
    won = torch.empty_like(sure)
    won[best] = pool & (pool.cumsum(0) <= left)
    return sure | won


def limits_of(offsets: Tensor, protected: Tensor, floors: Tensor, ceiling: int | None) -> Limits:
    """What `keep_mask` gives every row before and at the end, from its arguments."""
    lengths = offsets.diff().long()
    capped = lengths if ceiling is None else lengths.clamp(max=ceiling)
    sure = torch.maximum(counts_of(protected, offsets), torch.minimum(floors.long(), capped))
    return Limits(sure, torch.maximum(sure, capped))


def counts_of(mask: Tensor, offsets: Tensor) -> Tensor:
    """How many of mask [total] bool are set in each row: [n_rows] int64."""
    return offsets_after(mask, offsets).diff().long()


def offsets_after(keep: Tensor, offsets: Tensor) -> Tensor:
    """Where the rows begin once only `keep` [total] bool is left: [n_rows + 1] int32."""
    before = torch.nn.functional.pad(keep.cumsum(0, dtype=torch.int32), (1, 0))
    return before[offsets.long()]


def kept_indices(keep: Tensor, capacity: int) -> Tensor:
    """The kept entries, ascending: [capacity] int64; -1 behind the last, what exceeds is cut."""
    total = len(keep)
    place = torch.where(keep, keep.cumsum(0) - 1, capacity).clamp(max=capacity)
    indices = torch.full((capacity + 1,), -1, dtype=torch.int64, device=keep.device)
    indices[place] = torch.arange(total, device=keep.device)
    return indices[:capacity]


def compact(rows: LayerRows, keep: Tensor, n_kept: int) -> LayerRows:
    """The kept rows, close together and in their order; n_kept is how many keep [n] bool sets."""
    index = kept_indices(keep, n_kept)
    return LayerRows(
        rows.keys[index], rows.values[index], rows.positions[index], rows.scores[index]
    )


def row_of(offsets: Tensor, total: int) -> Tensor:
    """The row that owns each entry: [total] int64."""
    entries = torch.arange(total, dtype=offsets.dtype, device=offsets.device)
    return torch.searchsorted(offsets[1:].contiguous(), entries, right=True)


def _best_first(scores: Tensor, positions: Tensor) -> Tensor:
    """Entries by score, then by later position, then by earlier row."""
    later = torch.sort(positions, descending=True, stable=True).indices
    return later[torch.sort(scores[later], descending=True, stable=True).indices]


def _stable(key: Tensor) -> Tensor:
    return torch.sort(key, stable=True).indices
