"""Positions, scores and logits as a snapshot holds them: fewer bytes, the same session.

Positions ascend inside a head, so their gaps fit 16 bits unless 65,536 tokens lie between two kept
ones. Scores and logits of a finished reading are only ever compared, with a tolerance or to prune
further, so 16-bit floats do; an unfinished one goes on from them, and keeps them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

_WIDEST_GAP = 2**16 - 1


def packed_entries(
    positions: Tensor, scores: Tensor, offsets: Sequence[int], *, finished: bool
) -> dict[str, Tensor]:
    """One layer's positions [n] int32 and scores [n] fp32 by the names they are stored under."""
    found = {"scores": halved(scores) if finished else scores}
    gaps = _gaps(positions, offsets)
    if len(gaps) and int(gaps.max()) > _WIDEST_GAP:
        return {**found, "positions": positions}
    return {**found, "gaps": gaps.to(torch.uint16)}


def unpacked_entries(parts: Mapping[str, Tensor], offsets: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The inverse: positions int32, scores fp32.

    Raises KeyError where a part is missing, AssertionError where one has another size.
    """
    scores = parts["scores"].float()
    if "gaps" not in parts:
        return parts["positions"], scores
    gaps = parts["gaps"].to(torch.int64)
    assert gaps.shape == (offsets[-1],), "gaps"
    heads = [gaps[start:end].cumsum(0) for start, end in pairwise(offsets)]
    return torch.cat(heads).to(torch.int32), scores


def halved(x: Tensor) -> Tensor:
    """x in fp16, or as it is where fp16 cannot hold it."""
    half = x.half()
    return half if bool(torch.isfinite(half).all()) else x


def _gaps(positions: Tensor, offsets: Sequence[int]) -> Tensor:
    """From each head's entry to the next, the first one from 0: [n] int64."""
    wide = positions.to(torch.int64)
    heads = [wide[start:end] for start, end in pairwise(offsets)]
    return torch.cat([torch.diff(head, prepend=head.new_zeros(1)) for head in heads])
