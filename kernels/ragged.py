"""Attention of short queries over ragged heads: the contract, and its meaning in plain torch.

Entries of all heads of a layer lie in flat tensors, head after head. Keys are un-rotated; they are
turned to their positions as they are read. Keys and values are 16 or 32 bit floats or codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kernels import reference
from kernels.quantise import Codes, Frame, dequantise, out_of_frame


@dataclass(frozen=True)
class RaggedEntries:
    """One layer's entries.

    keys, values  [sum_len, head_dim] floats, or Codes of as many rows
    offsets       [n_heads + 1] int32: head h owns rows offsets[h] to offsets[h + 1]
    positions     [sum_len] int32, where keys are turned to; None: the row's number in its head
    inv_freq      [head_dim / 2] fp32, rotary frequencies; cosine and sine are times `rope_scaling`
    frame         what coded keys were laid into; None for floats
    """

    keys: Tensor | Codes
    values: Tensor | Codes
    offsets: Tensor
    positions: Tensor | None
    inv_freq: Tensor
    rope_scaling: float = 1.0
    frame: Frame | None = None

    @property
    def n_heads(self) -> int:
        """KV heads."""
        return len(self.offsets) - 1


def attend_ragged(q: Tensor, entries: RaggedEntries, scale: float) -> tuple[Tensor, Tensor]:
    """q [n_heads, rows, head_dim], rotated -> output like q, log-sum-exp [n_heads, rows] fp32.

    Every row sees every entry of its head; `scale` multiplies q.k. A head without entries gives
    output 0 and log-sum-exp minus infinity. Computed in fp32.
    """
    outs, sums = [], []
    bounds = entries.offsets.tolist()
    for head, (start, end) in enumerate(pairwise(bounds)):
        k, v = rotated_keys(entries, head), _floats(entries.values, slice(start, end))
        if start == end:
            outs.append(torch.zeros_like(q[head]))
            sums.append(torch.full(q.shape[1:2], -torch.inf, device=q.device))
            continue
        out, lse = reference.attend(q[head], k, v, scale)
        outs.append(out)
        sums.append(lse)
    return torch.stack(outs), torch.stack(sums)


def rotated_keys(entries: RaggedEntries, head: int) -> Tensor:
    """One head's keys, turned to their positions: [length, head_dim] fp32."""
    start, end = int(entries.offsets[head]), int(entries.offsets[head + 1])
    keys = _floats(entries.keys, slice(start, end))
    if entries.frame is not None:
        keys = out_of_frame(keys, entries.frame, head)
    if entries.positions is None:
        positions = torch.arange(end - start, device=keys.device)
    else:
        positions = entries.positions[start:end]
    angles = positions[:, None].float() * entries.inv_freq
    cos, sin = angles.cos() * entries.rope_scaling, angles.sin() * entries.rope_scaling
    first, second = keys.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _floats(rows: Tensor | Codes, which: slice) -> Tensor:
    part = rows[which]
    return dequantise(part, torch.float32) if isinstance(part, Codes) else part.float()
