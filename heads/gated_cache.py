"""A document whose entries are dimmed by gates, asked by the frozen model.

Differentiable in the gates: the gradient passes through the model to them, and so to the heads that
set them (heads.answer_fit).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as nnf

from engine.attention import decoder_of

if TYPE_CHECKING:
    from engine.loader import LoadedModel

_GATE_CHANNELS = 8  # two are needed; fused kernels want a multiple of eight


class GatedCache:
    """A `Store`: a document whose entries are dimmed by gates, and questions side by side.

    keys, values  per layer [n_kv_heads, n, head_dim], un-rotated
    log_gates     [n_layers, n_kv_heads, n] fp32, at most 0; None: everything is seen
    lengths       tokens of each question; each sees the document and itself, no other
    Differentiable in log_gates, and so slower and larger than the engine's own caches.
    """

    wants_hidden = False

    def __init__(
        self,
        model: LoadedModel,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        log_gates: Tensor | None,
        lengths: Sequence[int],
    ) -> None:
        self.values, self.log_gates = values, log_gates
        n, device = keys[0].shape[1], keys[0].device
        rotary = model.rotary
        self._half = rotary.rotary_dim // 2
        there = rotary.cos_sin(torch.arange(n, device=device))
        self.keys = [self._turned(k, there) for k in keys]
        places = torch.cat([torch.arange(length, device=device) for length in lengths])
        self._turns = rotary.cos_sin(places + n)
        owner = torch.repeat_interleave(
            torch.arange(len(lengths), device=device), torch.tensor(lengths, device=device)
        )
        near = (owner[:, None] == owner) & (places[:, None] >= places)
        group = model.geometry.n_q_heads // model.geometry.n_kv_heads
        # Added, not true or false: of those, each layer would make and keep a copy of its own.
        added = torch.zeros(near.shape, dtype=keys[0].dtype, device=device)
        added = nnf.pad(added.masked_fill(~near, -math.inf), (n, 0))
        self._mask = added.repeat(group, 1)

    def see_hidden(self, layer: int, hidden: Tensor) -> None:
        """Store protocol; nothing here wants it."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Store protocol."""
        keys = torch.cat([self.keys[layer], self._turned(k, self._turns)], dim=1)
        values = torch.cat([self.values[layer], v], dim=1)
        packed = self._turned(q, self._turns).reshape(keys.shape[0], -1, q.shape[-1])
        if self.log_gates is not None:
            packed, keys, values = _with_gates(packed, keys, values, self.log_gates[layer] / scale)
        out = nnf.scaled_dot_product_attention(
            packed[None], keys[None], values[None], attn_mask=self._mask, scale=scale
        )
        return out[0, ..., : q.shape[-1]].reshape(q.shape)

    def _turned(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """Rotary.apply without writing in place, which gradients do not pass."""
        cos, sin = turns
        first, second = x[..., : self._half].float(), x[..., self._half : 2 * self._half].float()
        parts = [first * cos - second * sin, second * cos + first * sin]
        rest = x[..., 2 * self._half :]
        return torch.cat([*(p.to(x.dtype) for p in parts), rest], dim=-1)


def _with_gates(q: Tensor, k: Tensor, v: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values with channels more, by which logits [n_kv_heads, n] are added.

    A query's channel is 1 and a key's the logit, in two parts, so that 16 bits lose little of it.
    In this way fused attention takes gates, and hands back their gradients without a matrix of
    every query and entry in memory.
    """
    high = logits.to(k.dtype)
    parts = torch.stack([high, (logits - high.float()).to(k.dtype)], dim=-1)
    more = nnf.pad(parts, (0, _GATE_CHANNELS - 2, 0, k.shape[1] - logits.shape[1]))
    ones = q.new_zeros(*q.shape[:2], _GATE_CHANNELS)
    ones[..., :2] = 1
    q, k = torch.cat([q, ones], dim=-1), torch.cat([k, more], dim=-1)
    return q, k, nnf.pad(v, (0, _GATE_CHANNELS))


def answer_hidden(
    model: LoadedModel, store: GatedCache, asked: Sequence[tuple[list[int], list[int]]]
) -> list[Tensor]:
    """Per question [answer tokens, hidden_size]: the decoder's output that tells each of them."""
    rows = [[*tail, *answer[:-1]] for tail, answer in asked]
    ids = torch.tensor([i for row in rows for i in row], device=model.device)
    decoder = decoder_of(model.model)
    hidden = decoder(input_ids=ids[None], use_cache=False, store=store).last_hidden_state[0]
    found, first = [], 0
    for row, (tail, _) in zip(rows, asked, strict=True):
        found.append(hidden[first + len(tail) - 1 : first + len(row)])
        first += len(row)
    return found


def log_probs(model: LoadedModel, hidden: Tensor) -> Tensor:
    """[n, hidden_size] of the decoder's output -> [n, vocab] fp32 log probabilities."""
    found: Tensor = model.model.get_output_embeddings()(hidden)
    return found.float().log_softmax(dim=-1)


def question_lengths(asked: Sequence[tuple[list[int], list[int]]]) -> list[int]:
    """Tokens that the model reads of each question and its answer: all but the last."""
    return [len(tail) + len(answer) - 1 for tail, answer in asked]
