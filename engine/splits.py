"""Where kept rows part into codes, fine rows and new ones, for all layers and heads at once.

The counts are needed on the host, to size what is gathered. They are asked of the device in one
go, however many heads there are: each question waits for everything the device has still to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from engine.cache import LayerCache

# Of one head: kept rows that are codes, and kept rows that were there before the new ones.
Split = tuple[int, int]


def splits_of(
    layers: Sequence[LayerCache], chosen: Sequence[Sequence[Tensor]]
) -> Iterator[tuple[list[Split], list[Split]]]:
    """For each layer the splits of its keys and of its values, a pair a head.

    chosen  per layer, per head: kept indices, ascending
    """
    bounds = [
        (n_keys, n_values, length)
        for layer in layers
        for n_keys, n_values, length in zip(
            layer.keys.n_coded, layer.values.n_coded, layer.lengths, strict=True
        )
    ]
    counts = iter(counts_below([index for row in chosen for index in row], bounds))
    for layer in layers:
        own = [next(counts) for _ in layer.lengths]
        yield [(keys, old) for keys, _, old in own], [(values, old) for _, values, old in own]


def settled_counts(positions: Sequence[Sequence[Tensor]], before: int) -> Iterator[list[int]]:
    """For each layer how many of each head's entries stand before a position of the document.

    positions  per layer, per head: ascending
    """
    heads = [places for row in positions for places in row]
    counts = iter(counts_below(heads, [(before,)] * len(heads)))
    for row in positions:
        yield [next(counts)[0] for _ in row]


def counts_below(ascending: Sequence[Tensor], bounds: Sequence[Sequence[int]]) -> list[list[int]]:
    """How many values of each ascending tensor are less than each of its bounds.

    ascending  tensors of one integer type on one device
    bounds     as many sequences, all of one length
    """
    if not ascending:
        return []
    first = ascending[0]
    limits = torch.tensor(bounds, dtype=first.dtype, device=first.device)
    found = [
        torch.searchsorted(values, limit) for values, limit in zip(ascending, limits, strict=True)
    ]
    counts: list[list[int]] = torch.stack(found).tolist()
    return counts
