"""Rows of keys or values in 8, 4 or 2 bits: the format, and its meaning in plain torch.

A row [head_dim] is cut into groups; each has a smallest value and a step, both fp16:
x ~ zero + step * code, with codes 0 to 2^bits - 1. Keys are laid into a frame first: each channel
of a head minus its centre, over its spread, because a few channels of a key are far larger than the
rest and would take the whole range (per-channel keys: KIVI, 2402.02750). The frame is fixed once
per document, so that rows can be appended and dropped one by one.

Codes are packed in planes: with p = 8 / bits planes, byte j of a row holds value j in its lowest
bits, then value j + head_dim / p, and so on. Two planes are the two halves that rotary embedding
turns against each other, so a kernel gets both from one load.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BITS = (8, 4, 2)
LARGEST_GROUP = 64


@dataclass(frozen=True)
class Frame:
    """Where the channels of each head's keys lie: centre and spread [n_heads, head_dim] fp32."""

    centre: Tensor
    spread: Tensor


@dataclass(frozen=True)
class Codes:
    """Quantised rows.

    codes  [n, head_dim * bits / 8] uint8, in planes
    step   [n, n_groups] fp16
    zero   [n, n_groups] fp16
    """

    codes: Tensor
    step: Tensor
    zero: Tensor
    bits: int

    @property
    def head_dim(self) -> int:
        """Values in a row."""
        return self.codes.shape[1] * 8 // self.bits

    @property
    def nbytes(self) -> int:
        """Bytes of all three tensors."""
        return self.codes.nbytes + self.step.nbytes + self.zero.nbytes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Tensor | slice) -> Codes:
        """Some of the rows, by index [m] int64 or as a slice."""
        return Codes(self.codes[index], self.step[index], self.zero[index], self.bits)


def group_size(head_dim: int) -> int:
    """Values that share a step: the largest divisor of head_dim that is at most LARGEST_GROUP."""
    return max(n for n in range(1, LARGEST_GROUP + 1) if head_dim % n == 0)


def row_nbytes(head_dim: int, bits: int) -> int:
    """Bytes of one row: 16 bits are kept as they are, others have their groups' steps beside."""
    if bits == 16:
        return 2 * head_dim
    return head_dim * bits // 8 + 4 * (head_dim // group_size(head_dim))


def quantise(x: Tensor, bits: int) -> Codes:
    """x [n, head_dim], any float type -> codes; what fp16 cannot hold of a step is an error."""
    n, head_dim = x.shape
    if bits not in BITS or head_dim * bits % 8:
        raise ValueError(f"{bits} bits do not pack rows of {head_dim}")
    grouped = _grouped(x.float())
    low, high = grouped.amin(-1), grouped.amax(-1)
    most = 2**bits - 1
    zero = low.half()
    # Taken from the rounded zero, so that the largest value is inside the range that is left.
    step = ((high - zero.float()) / most).clamp(min=2.0**-24).half()
    scaled = (grouped - zero.float()[..., None]) / step.float()[..., None]
    codes = scaled.round().clamp(0, most).to(torch.uint8).reshape(n, head_dim)
    return Codes(pack(codes, bits), step, zero, bits)


def dequantise(codes: Codes, dtype: torch.dtype) -> Tensor:
    """The rows again: [n, head_dim]. Computed in fp32."""
    n, head_dim = len(codes), codes.head_dim
    grouped = _grouped(unpack(codes.codes, codes.bits).float())
    grouped.mul_(codes.step.float()[..., None]).add_(codes.zero.float()[..., None])
    return grouped.reshape(n, head_dim).to(dtype)


def _grouped(x: Tensor) -> Tensor:
    """[n, head_dim] -> [n, n_groups, group_size]."""
    n, head_dim = x.shape
    size = group_size(head_dim)
    return x.reshape(n, head_dim // size, size)


def pack(codes: Tensor, bits: int) -> Tensor:
    """[n, d] uint8 codes below 2^bits -> [n, d * bits / 8] uint8 in planes."""
    n, head_dim = codes.shape
    planes = codes.reshape(n, 8 // bits, head_dim * bits // 8)
    packed = torch.zeros_like(planes[:, 0])
    for number in range(8 // bits):
        packed |= planes[:, number] << (number * bits)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `pack`."""
    mask = 2**bits - 1
    return torch.cat([(packed >> (i * bits)) & mask for i in range(8 // bits)], dim=1)


def frame_of(keys: Sequence[Tensor]) -> Frame:
    """The frame of some heads' un-rotated keys, each [n, head_dim]: mean and standard deviation."""
    some = [k.float() if len(k) else k.new_zeros(1, k.shape[1]).float() for k in keys]
    centre = torch.stack([k.mean(0) for k in some])
    spread = torch.stack([k.std(0, correction=0) for k in some])
    return Frame(centre, spread.clamp(min=1e-4))


def into_frame(keys: Tensor, frame: Frame, head: int) -> Tensor:
    """Keys [n, head_dim] of one head in its frame, fp32."""
    return (keys.float() - frame.centre[head]) / frame.spread[head]


def out_of_frame(x: Tensor, frame: Frame, head: int) -> Tensor:
    """The inverse of `into_frame`, fp32."""
    return torch.mul(x.float(), frame.spread[head]).add_(frame.centre[head])
