"""Rotary embedding at positions the cache chooses.

The model's own rotary module is replaced by one that rotates nothing, so that stock code hands
over un-rotated queries and keys; the frequencies it held, with their scaling, live on here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.memory import PIECE_ROWS

TURNED_AT_ONCE = 512  # rows


class Rotary:
    """Rotates by the model's own frequencies (RoPE, arXiv 2104.09864, half-split layout).

    inv_freq [rotary_dim / 2] fp32; scaling multiplies cosine and sine (YaRN, LongRoPE).
    Dimensions beyond rotary_dim pass through unrotated.
    """

    def __init__(self, inv_freq: Tensor, scaling: float = 1.0) -> None:
        self.inv_freq = inv_freq.detach().to(torch.float32)
        self.scaling = float(scaling)
        self.rotary_dim = 2 * inv_freq.numel()

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """positions [..., n], integers -> cosine and sine, each [..., n, rotary_dim / 2] fp32."""
        inv_freq = self.inv_freq.to(positions.device)
        angles = positions[..., None].to(torch.float32) * inv_freq
        return angles.cos().mul_(self.scaling), angles.sin_().mul_(self.scaling)

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As `cos_sin`, as `turn` takes them: each [..., n, rotary_dim]."""
        cos, sin = self.cos_sin(positions)
        return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)

    def turn(
        self, x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Rotate x [..., n, head_dim] by `turns`, broadcastable to its rows, in few operations.

        Returns x's shape in the given dtype. It is for few rows: more than TURNED_AT_ONCE go in
        pieces, as the rotation itself is computed in fp32.
        """
        n = x.shape[-2]
        if n <= TURNED_AT_ONCE:
            return self._turned(x.to(torch.float32), cos, sin).to(dtype)
        turned = torch.empty_like(x, dtype=dtype)
        for first in range(0, n, TURNED_AT_ONCE):
            rows = slice(first, first + TURNED_AT_ONCE)
            piece = x[..., rows, :].to(torch.float32)
            turns = (t if t.shape[-2] == 1 else t[..., rows, :] for t in (cos, sin))
            turned[..., rows, :] = self._turned(piece, *turns)
        return turned

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x in fp32."""
        if self.rotary_dim < x.shape[-1]:
            still = x[..., self.rotary_dim :]
            return torch.cat([self._turned(x[..., : self.rotary_dim], cos, sin), still], dim=-1)
        swapped = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
        return (x * cos).addcmul_(swapped, sin)

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [..., n, head_dim] at positions broadcastable to [..., n]; returns x's shape and dtype.

        The rotation itself is computed in fp32.
        """
        positions = positions.expand(*positions.shape[:-1], x.shape[-2])
        return self._in_pieces(x, lambda rows: self.cos_sin(positions[..., rows]))

    def look_up(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate x [..., n, head_dim] at positions [..., n] by tables with a row for each place."""
        return self._in_pieces(
            x, lambda rows: (cos[positions[..., rows]], sin[positions[..., rows]])
        )

    def _in_pieces(self, x: Tensor, turns: Callable[[slice], tuple[Tensor, Tensor]]) -> Tensor:
        """x rotated, PIECE_ROWS of its rows at a time, by the cosine and sine of these rows."""
        turned = torch.empty_like(x)
        for first in range(0, x.shape[-2], PIECE_ROWS):
            rows = slice(first, first + PIECE_ROWS)
            self._turn(x[..., rows, :], *turns(rows), turned[..., rows, :])
        return turned

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor, place: Tensor) -> None:
        """Write x, rotated, to its place, of x's shape and dtype."""
        half = self.rotary_dim // 2
        x32 = x.to(torch.float32)
        first, second = x32[..., :half], x32[..., half : self.rotary_dim]
        turned = place if place.dtype == torch.float32 else torch.empty_like(x32)
        torch.mul(first, cos, out=turned[..., :half]).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=turned[..., half : self.rotary_dim]).addcmul_(first, sin)
        if self.rotary_dim < x.shape[-1]:
            turned[..., self.rotary_dim :] = x32[..., self.rotary_dim :]
        if turned is not place:
            place.copy_(turned)

    def digest(self) -> str:
        """SHA-256 over frequencies and scaling: two rotaries with one digest rotate alike."""
        raw = self.inv_freq.cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(raw + repr(self.scaling).encode()).hexdigest()


class IdentityRotary(nn.Module):
    """Stands in the model where its rotary module was and returns cosine 1, sine 0."""

    def __init__(self, rotary_dim: int) -> None:
        super().__init__()
        self.rotary_dim = rotary_dim

    def forward(self, x: Tensor, position_ids: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        """Returns ones and zeros of shape [1, n, rotary_dim] in x's dtype."""
        shape = (1, position_ids.shape[-1], self.rotary_dim)
        return x.new_ones(shape), x.new_zeros(shape)


def take_rotary(decoder: Any) -> Rotary:
    """Remove the rotary module of a decoder stack, leave the identity, return its frequencies.

    LongRoPE keeps two frequency sets and switches by length; a document session is long by
    design, so the long set is taken for good (and stated in the snapshot's rotary digest).
    """
    module = decoder.rotary_emb
    inv_freq = module.inv_freq
    scaling = float(module.attention_scaling)
    parameters = getattr(decoder.config, "rope_parameters", None) or {}
    if parameters.get("rope_type") == "longrope":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        # On the CPU whatever the device: a card's powers differ in the last bit, and the digest is
        # of all bits, so that a session would open only where it was read.
        long_freq, scaling = ROPE_INIT_FUNCTIONS["longrope"](
            decoder.config,
            torch.device("cpu"),
            seq_len=int(decoder.config.max_position_embeddings),
        )
        inv_freq = long_freq.to(inv_freq.device)
    rotary = Rotary(inv_freq, scaling)
    decoder.rotary_emb = IdentityRotary(rotary.rotary_dim)
    return rotary
