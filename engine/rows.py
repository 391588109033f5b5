"""One side of a layer's cache: the rows of its keys, or of its values, some of them quantised.

Inside a head entries stand in the order of their positions. The older ones have settled and are
codes, the newer ones are fine: floats in the storage dtype. So a head is a run of codes, then a
run of fine rows, and nothing has to say which row is which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from engine.memory import PIECE_ROWS
from engine.splits import Split
from kernels import from_codes, to_codes
from kernels.quantise import Codes, Frame, group_size, into_frame, out_of_frame


@dataclass(frozen=True)
class Rows:
    """fine [n_fine, head_dim] and codes, each head after head.

    offsets  n_heads + 1 integers over all rows, as in LayerCache
    n_coded  rows of each head that are codes, its first ones
    codes    None if there are none
    frame    what keys are laid into before they become codes; None for values
    """

    fine: Tensor
    offsets: tuple[int, ...]
    n_coded: tuple[int, ...]
    codes: Codes | None = None
    frame: Frame | None = None

    @classmethod
    def of_floats(cls, rows: Tensor, offsets: Sequence[int]) -> Rows:
        """Rows of which none has settled."""
        return cls(rows, tuple(offsets), (0,) * (len(offsets) - 1))

    def __len__(self) -> int:
        return self.offsets[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and of what reads them."""
        coded = self.codes.nbytes if self.codes is not None else 0
        frame = self.frame.centre.nbytes + self.frame.spread.nbytes if self.frame else 0
        return self.fine.nbytes + coded + frame

    def codes_of(self, head: int) -> slice:
        """Where a head's codes lie."""
        first = sum(self.n_coded[:head])
        return slice(first, first + self.n_coded[head])

    def fine_of(self, head: int) -> slice:
        """Where a head's fine rows lie."""
        first = self.offsets[head] - sum(self.n_coded[:head])
        return slice(first, first + self._length(head) - self.n_coded[head])

    def floats(self, head: int, dtype: torch.dtype) -> Tensor:
        """One head's rows, codes decoded: [length, head_dim]."""
        if self.codes is None:
            return self.fine[self.offsets[head] : self.offsets[head + 1]].to(dtype)
        return self.stretch(head, range(self._length(head)), dtype)

    def stretch(self, head: int, rows: range, dtype: torch.dtype) -> Tensor:
        """Some neighbouring rows of a head, codes decoded: [len(rows), head_dim]."""
        place = self.fine.new_empty((len(rows), self.fine.shape[1]), dtype=dtype)
        self._write(head, rows, place)
        return place

    def _write(self, head: int, rows: range, place: Tensor) -> None:
        """Write rows of a head to their place [len(rows), head_dim], PIECE_ROWS codes at a time."""
        m = max(min(self.n_coded[head], rows.stop) - rows.start, 0)
        fine = self.fine_of(head).start - self.n_coded[head] + rows.start
        place[m:] = self.fine[fine + m : fine + len(rows)]
        if self.codes is None:
            return
        start = self.codes_of(head).start + rows.start
        for first in range(0, m, PIECE_ROWS):
            end = min(first + PIECE_ROWS, m)
            piece = from_codes(self.codes[start + first : start + end], torch.float32)
            place[first:end] = out_of_frame(piece, self.frame, head) if self.frame else piece

    def taken(
        self, chosen: Sequence[Tensor], splits: Sequence[Split], new: Tensor | None = None
    ) -> Rows:
        """The rows that stay, per head by ascending index; fine ones stay fine, codes stay codes.

        splits  of engine.splits for this side: how many of the chosen are codes, and old rows
        new     [n_heads, n, head_dim] in the storage dtype: rows that come after the head's own,
                and that indices from the head's length on mean
        """
        fine, coded = [], []
        n_coded: list[int] = []
        for head, (index, (split, rest)) in enumerate(zip(chosen, splits, strict=True)):
            m, length = self.n_coded[head], self._length(head)
            if m:
                coded.append(index[:split] + self.codes_of(head).start)
            n_coded.append(split)
            fine.append(self.fine[index[split:rest] - m + self.fine_of(head).start])
            if new is not None:
                fine.append(new[head][index[rest:] - length])
        offsets = tuple(accumulate(map(len, chosen), initial=0))
        codes = self.codes[torch.cat(coded)] if self.codes is not None and any(n_coded) else None
        return Rows(torch.cat(fine), offsets, tuple(n_coded), codes, self.frame)

    def settled(self, n_settled: Sequence[int], bits: int) -> Rows:
        """The first n_settled rows of each head as codes; those that are codes already stay."""
        fine, coded = [], []
        for head, n in enumerate(n_settled):
            here, m = self.fine_of(head), self.n_coded[head]
            n_new = max(n - m, 0)
            rows = self.fine[here.start : here.start + n_new]
            fine.append(self.fine[here.start + n_new : here.stop])
            framed = rows if self.frame is None else into_frame(rows, self.frame, head)
            if self.codes is not None and m:
                coded.append(self.codes[self.codes_of(head)])
            coded.append(to_codes(framed, bits))
        n_coded = tuple(max(n, m) for n, m in zip(n_settled, self.n_coded, strict=True))
        codes = _joined(coded) if sum(n_coded) else None
        return Rows(torch.cat(fine), self.offsets, n_coded, codes, self.frame)

    def check(self, head_dim: int) -> None:
        """Assert that sizes fit and that every number is finite."""
        lengths = [b - a for a, b in pairwise(self.offsets)]
        assert all(0 <= m <= n for m, n in zip(self.n_coded, lengths, strict=True))
        n_coded = sum(self.n_coded)
        assert self.fine.shape == (len(self) - n_coded, head_dim)
        assert bool(torch.isfinite(self.fine).all())
        assert (self.codes is not None) == (n_coded > 0)
        if self.codes is not None:
            assert len(self.codes) == len(self.codes.step) == len(self.codes.zero) == n_coded
            assert self.codes.head_dim == head_dim
            steps = (n_coded, head_dim // group_size(head_dim))
            assert self.codes.step.shape == self.codes.zero.shape == steps
            for part in (self.codes.step, self.codes.zero):
                assert bool(torch.isfinite(part).all())
        if self.frame is not None:
            for part in (self.frame.centre, self.frame.spread):
                assert part.shape == (len(lengths), head_dim) and bool(torch.isfinite(part).all())

    def _length(self, head: int) -> int:
        return self.offsets[head + 1] - self.offsets[head]


def _joined(parts: Sequence[Codes]) -> Codes:
    return Codes(
        torch.cat([p.codes for p in parts]),
        torch.cat([p.step for p in parts]),
        torch.cat([p.zero for p in parts]),
        parts[0].bits,
    )
