"""A layer's entries with keys turned, laid in parts of one length: the contract in plain torch.

Heads differ in length, and aten attends to heads of one length only. So every head is cut into
whole parts of as many rows as suit all heads, and what is left of it: few queries attend to the
whole parts of all heads at once, threads sharing them evenly, and parts are joined by log-sum-exp
(flash-decoding).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import reference

LONGEST_PART = 512  # rows; aten's kernel takes keys by as many
SHORTEST_PART = 384

Tail = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class TurnedEntries:
    """One layer's entries; every head has some.

    lengths      rows of each head
    whole        keys and values [n_parts, part_rows, head_dim], head after head
    rest         keys and values [n_heads, n_rest, head_dim]: a head's last rows, then zeros
    unseen       [1, n_heads, 1, n_rest]: 0 for rows of a head, minus infinity for what fills up
    head_of      [n_parts] int64, whose a whole part is
    foreign      [n_heads, 1, n_parts + 2 n_heads] fp32: 0 where a part, a rest or a tail is the
                 head's, else minus infinity
    """

    lengths: tuple[int, ...]
    whole: tuple[Tensor, Tensor]
    rest: tuple[Tensor, Tensor]
    unseen: Tensor
    head_of: Tensor
    foreign: Tensor

    @classmethod
    def room(
        cls, lengths: Sequence[int], head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> TurnedEntries:
        """Zeros, to be written by `lay`. Every length is at least 1."""
        rows = part_rows(lengths)
        n_whole = [(n - 1) // rows for n in lengths]
        n_rest = max(n - m * rows for n, m in zip(lengths, n_whole, strict=True))
        shapes = (sum(n_whole), rows, head_dim), (len(lengths), n_rest, head_dim)
        make = functools.partial(torch.zeros, dtype=dtype, device=device)
        whole, rest = ((make(shape), make(shape)) for shape in shapes)
        owners = torch.tensor([h for h, m in enumerate(n_whole) for _ in range(m)])
        heads = torch.arange(len(lengths))
        head_of = owners.to(torch.int64)
        belongs = torch.cat([head_of, heads, heads]) == heads[:, None, None]
        left = torch.tensor([n - m * rows for n, m in zip(lengths, n_whole, strict=True)])
        unseen = torch.zeros(len(lengths), n_rest).masked_fill_(
            torch.arange(n_rest) >= left[:, None], float("-inf")
        )
        return cls(
            tuple(lengths),
            whole,
            rest,
            unseen[None, :, None].to(device, dtype),
            head_of.to(device),
            belongs.float().log().to(device),
        )

    def lay(self, head: int, keys: Tensor, values: Tensor) -> None:
        """Write a head's rows [length, head_dim] to their place."""
        parts, left = self._of(head)
        for rows, whole, rest in zip((keys, values), self.whole, self.rest, strict=True):
            n = len(rows) - left
            whole[parts].view(-1, rows.shape[-1]).copy_(rows[:n])
            rest[head, :left] = rows[n:]

    def pieces(self, head: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A head's keys and values [n, head_dim], in one piece or two, as views."""
        parts, left = self._of(head)
        if parts.stop > parts.start:
            yield self.whole[0][parts].flatten(0, 1), self.whole[1][parts].flatten(0, 1)
        yield self.rest[0][head, :left], self.rest[1][head, :left]

    @functools.cached_property
    def wholes(self) -> Tail:
        """`whole` as one batch: [1, n_parts, part_rows, head_dim]."""
        return self.whole[0][None], self.whole[1][None]

    @functools.cached_property
    def rests(self) -> Tail:
        """`rest` as one batch: [1, n_heads, n_rest, head_dim]."""
        return self.rest[0][None], self.rest[1][None]

    def keys(self, head: int) -> Tensor:
        """A head's keys, copied together: [length, head_dim]."""
        return torch.cat([keys for keys, _ in self.pieces(head)])

    def values(self, head: int) -> Tensor:
        """A head's values, copied together: [length, head_dim]."""
        return torch.cat([values for _, values in self.pieces(head)])

    def _of(self, head: int) -> tuple[slice, int]:
        """A head's whole parts, and how many rows are left."""
        rows = self.whole[0].shape[1]
        before = sum((n - 1) // rows for n in self.lengths[:head])
        n_parts = (self.lengths[head] - 1) // rows
        return slice(before, before + n_parts), self.lengths[head] - n_parts * rows


def part_rows(lengths: Sequence[int]) -> int:
    """Rows of a whole part: those that leave the least of any head, at least one row of each."""
    return min(
        range(LONGEST_PART, SHORTEST_PART - 1, -1),
        key=lambda rows: max((n - 1) % rows for n in lengths),
    )


def attend_turned(
    q: Tensor, entries: TurnedEntries, scale: float, tail: Tail | None = None
) -> tuple[Tensor, Tensor]:
    """q [n_heads, rows, head_dim], turned -> output like q, log-sum-exp [n_heads, rows] fp32.

    tail  keys, turned, and values [n_heads, n, head_dim], n at least 1, that follow the entries
    Every row sees every entry and the tail of its head; `scale` multiplies q.k. Computed in fp32.
    """
    found = []
    for head, row in enumerate(q):
        keys, values = entries.keys(head), entries.values(head)
        if tail is not None:
            keys, values = torch.cat([keys, tail[0][head]]), torch.cat([values, tail[1][head]])
        found.append(reference.attend(row, keys, values, scale))
    outs, sums = zip(*found, strict=True)
    return torch.stack(outs), torch.stack(sums)


def mix_turned(q: Tensor, entries: TurnedEntries, scale: float, tail: Tail | None = None) -> Tensor:
    """As `attend_turned`, where nothing is joined to it: the output alone, in fp32."""
    return attend_turned(q, entries, scale, tail)[0].float()
