"""Selection on the CPU without sorting: each entry's rank as one integer, and thresholds over them.

A sort of every entry, five times over, is what the plain form spends its time on. Here the order of
kernels.selection.keep_mask is packed into an int64 that no two entries share, so that "the best n"
is a comparison with the n-th largest, which selection by partition finds in linear time.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from kernels import selection

_TIE_BITS = 32  # of a rank: where an entry stands among those with its score
_BELOW_ALL = torch.iinfo(torch.int64).min  # no score's rank: that of minus infinity is larger


def keep_mask(
    scores: Tensor,
    positions: Tensor,
    offsets: Tensor,
    protected: Tensor,
    floors: Tensor,
    budget: int,
    ceiling: int | None = None,
) -> Tensor:
    """See kernels.selection.keep_mask: the same entries, whatever the scores."""
    if not packs(positions, offsets):
        return selection.keep_mask(scores, positions, offsets, protected, floors, budget, ceiling)
    ranks = ranks_of(scores, positions, offsets)
    limits = selection.limits_of(offsets, protected, floors, ceiling)
    sure, may = _row_by_row(ranks, offsets, protected, limits)
    pool = may & ~sure
    left = budget - int(limits.sure.sum())
    return sure | (pool & _best(ranks.masked_fill(~pool, _BELOW_ALL), min(left, int(pool.sum()))))


def packs(positions: Tensor, offsets: Tensor) -> bool:
    """Whether positions and rows fit in a rank's lower half together."""
    n_rows = len(offsets) - 1
    return not len(positions) or (int(positions.max()) + 1) * n_rows <= 2**_TIE_BITS


def ranks_of(scores: Tensor, positions: Tensor, offsets: Tensor) -> Tensor:
    """[total] int64, larger = better: by score, then by later position, then by earlier row."""
    n_rows = len(offsets) - 1
    bits = (scores + 0.0).view(torch.int32)  # adding turns -0.0, which equals 0.0, into it
    # Floats read as integers ascend where they are positive and descend where they are negative.
    ascending = bits ^ ((bits >> 31) & torch.iinfo(torch.int32).max)
    tie = positions.long().mul_(n_rows)
    for row, (start, end) in enumerate(pairwise(offsets.tolist())):
        tie[start:end] += n_rows - 1 - row
    return ascending.long().bitwise_left_shift_(_TIE_BITS).bitwise_or_(tie)


def _row_by_row(
    ranks: Tensor, offsets: Tensor, protected: Tensor, limits: selection.Limits
) -> tuple[Tensor, Tensor]:
    """Which entries their own row keeps for sure, and which it may keep: both [total] bool."""
    sure, may = protected.clone(), torch.ones_like(protected)
    free = ranks.masked_fill(protected, _BELOW_ALL)
    n_ruled = selection.counts_of(protected, offsets).tolist()
    rows = zip(limits.sure.tolist(), limits.most.tolist(), n_ruled, strict=True)
    bounds = pairwise(offsets.tolist())
    for (start, end), (n_sure, n_most, n_protected) in zip(bounds, rows, strict=True):
        row = slice(start, end)
        if n_sure > n_protected:
            sure[row] |= _best(free[row], n_sure - n_protected)
        if n_most < end - start:
            may[row] = _best(free[row], n_most - n_protected)
    return sure, may


def _best(ranks: Tensor, n: int) -> Tensor:
    """Which of ranks [total] are the n largest: [total] bool; none if n is not above 0."""
    if n <= 0:
        return torch.zeros(len(ranks), dtype=torch.bool)
    return ranks >= ranks.kthvalue(len(ranks) - n + 1).values
