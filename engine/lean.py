"""Decoding without the model's modules: packed weights, few calls for each layer.

What a token costs is the bytes of the weights and, in a small model, the calls around
them. Here projections of the same input are one matrix, in a format of kernels.linear, and a layer
is a dozen calls. Attention, rotary and cache are the store's, exactly as with the stock modules.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.attention import Store
from engine.errors import InvalidSetting
from engine.layer_weights import Activation, LayerWeights, Norm, read_decoder
from kernels.linear import Format, PackedLinear, linear, pack

if TYPE_CHECKING:
    from engine.loader import LoadedModel

__all__ = ["FORMATS", "LeanDecoder", "LeanFormat"]

LeanFormat = Literal["same", "fp16", "int8", "int4", "nf4"]
FORMATS: tuple[LeanFormat, ...] = ("same", "fp16", "int8", "int4", "nf4")
CPU_FORMATS = ("fp16", "int8", "int4")
_CHUNK_TOKENS = 512
_MLP_ROWS = 256  # as fast as 1,024 at once (heads/LOG.md), in a quarter of the memory
_HEAD_FORMATS: dict[LeanFormat, LeanFormat] = {"int4": "int8", "nf4": "same"}


@dataclass(frozen=True)
class _Layer:
    """Projections as one matrix each, or as the model's own matrices side by side."""

    qkv: tuple[PackedLinear, ...]
    out: tuple[PackedLinear, ...]
    gate_up: tuple[PackedLinear, ...]
    down: tuple[PackedLinear, ...]
    attention_norm: Norm
    mlp_norm: Norm
    q_norm: Norm | None
    k_norm: Norm | None
    activation: Activation
    scale: float

    @property
    def packed(self) -> tuple[PackedLinear, ...]:
        return (*self.qkv, *self.out, *self.gate_up, *self.down)

    def between(self, dtype: torch.dtype) -> _Layer:
        """The same where what lies between the products is in another number format."""
        return replace(
            self,
            attention_norm=self.attention_norm.to(dtype),
            mlp_norm=self.mlp_norm.to(dtype),
            q_norm=None if self.q_norm is None else self.q_norm.to(dtype),
            k_norm=None if self.k_norm is None else self.k_norm.to(dtype),
        )


class LeanDecoder:
    """A causal model of a served family, run from its weights.

    format       same: the model's own tensors, nothing is copied; fp16, int8, int4 (on the CPU),
                 nf4: packed copies (kernels.linear); the model itself stays usable beside it
    head_format  of the output head; by default that of the layers, but int8 where those are int4,
                 and the model's own where they are nf4: an error in the head goes straight into
                 the logits
    notes        sentences on matrices that could not be packed as asked; mostly empty
    build_s      seconds that reading and packing took
    Raises NotLean if the model does anything this decoder does not know.
    """

    def __init__(
        self,
        model: LoadedModel,
        format: LeanFormat = "fp16",
        *,
        head_format: LeanFormat | None = None,
        group: int = 32,
    ) -> None:
        started = time.perf_counter()
        if head_format is None:
            head_format = _HEAD_FORMATS.get(format, format)
        for name in (format, head_format):
            if name not in FORMATS:
                raise InvalidSetting(f"'{name}' is none of {', '.join(FORMATS)}.")
        weights = read_decoder(model)
        geometry = model.geometry
        self.format, self.head_format = format, head_format
        self._head_dim = geometry.head_dim
        self._qkv_heads = (geometry.n_q_heads, geometry.n_kv_heads, geometry.n_kv_heads)
        self._embedding = weights.embedding
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as workers:
            head = workers.submit(_packed, (weights.head,), head_format, group)  # the longest
            packing = [workers.submit(_packed_layer, x, format, group) for x in weights.layers]
            layers = [layer.result() for layer in packing]
            self._head = head.result()
        # Where products take fp32 and return it, what lies between them stays in it.
        in_fp32 = all(part.in_fp32 for layer in layers for part in layer.packed)
        self._between = torch.float32 if in_fp32 else weights.embedding.dtype
        self._layers = [layer.between(self._between) for layer in layers]
        self._norm = weights.norm.to(self._between)
        self.build_s = time.perf_counter() - started

    @property
    def nbytes(self) -> int:
        """Bytes held in addition to the model's own."""
        layers = sum(p.nbytes for layer in self._layers for p in layer.packed)
        head = sum(p.nbytes for p in self._head)
        return (self.format != "same") * layers + (self.head_format != "same") * head

    @property
    def notes(self) -> list[str]:
        """Why some matrices are not in the format asked for, each reason once."""
        packed = [*self._head, *(p for layer in self._layers for p in layer.packed)]
        return list(dict.fromkeys(p.reason for p in packed if p.reason))

    @torch.inference_mode()
    def forward(self, store: Store, token_ids: Sequence[int] | Tensor) -> Tensor:
        """Append tokens to a store; returns the logits after the last one, [vocab] fp32."""
        return self._logits(self.hidden(store, token_ids)[-1:])[0]

    @torch.inference_mode()
    def forward_all(self, store: Store, token_ids: Sequence[int] | Tensor) -> Tensor:
        """Append tokens to a store; returns the logits after each of them, [n, vocab] fp32."""
        return self._logits(self.hidden(store, token_ids))

    @torch.inference_mode()
    def hidden(self, store: Store, token_ids: Sequence[int] | Tensor) -> Tensor:
        """Append tokens to a store; the last layer's output [n, hidden_size], before the norm, in
        fp32 where the layers' products compute in it, else in the model's own format.

        More than 512 tokens go through the layers in pieces. `store` is a CacheView, or anything
        that attends for a row of tokens.
        """
        ids = torch.as_tensor(token_ids, dtype=torch.int64, device=self._embedding.device)
        if not len(ids):
            raise InvalidSetting("A prompt needs at least one token.")
        pieces = [self.one_pass(store, piece) for piece in ids.split(_CHUNK_TOKENS)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    @torch.inference_mode()
    def normalised(self, hidden: Tensor) -> Tensor:
        """What the output head reads of `hidden`'s rows."""
        return _rms_norm(hidden, self._norm)

    @torch.inference_mode()
    def one_pass(self, store: Store, ids: Tensor) -> Tensor:
        """As `hidden`, all tokens [n] at once."""
        hidden = functional.embedding(ids, self._embedding).to(self._between)
        for number, layer in enumerate(self._layers):
            x = _rms_norm(hidden, layer.attention_norm)
            if store.wants_hidden:
                store.see_hidden(number, x)
            attended = self._attention(store, number, layer, x)
            linear(attended, layer.out[0], onto=hidden)
            x = _rms_norm(hidden, layer.mlp_norm)
            for so_far, rows in _in_pieces(hidden, x):
                linear(_gated(layer, rows), layer.down[0], onto=so_far)
        return hidden

    def _attention(self, store: Store, number: int, layer: _Layer, x: Tensor) -> Tensor:
        """x [n, hidden_size], normalised -> what the output projection reads."""
        n = len(x)
        widths = [heads * self._head_dim for heads in self._qkv_heads]
        q, k, v = (_by_head(part, self._head_dim) for part in _project(x, layer.qkv, widths))
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = _rms_norm(q, layer.q_norm), _rms_norm(k, layer.k_norm)
        out = store.attend(number, q, k, v, layer.scale)
        return out.reshape(1, -1) if n == 1 else out.transpose(0, 1).reshape(n, -1)

    def _logits(self, hidden: Tensor) -> Tensor:
        return linear(self.normalised(hidden), self._head[0]).float()


def _by_head(x: Tensor, head_dim: int) -> Tensor:
    """[n, n_heads * head_dim] -> [n_heads, n, head_dim]."""
    if len(x) == 1:
        return x.view(-1, 1, head_dim)
    return x.view(len(x), -1, head_dim).transpose(0, 1)


def _in_pieces(hidden: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Some rows at a time: a feed-forward's inside is many times as wide as hidden."""
    if len(x) <= _MLP_ROWS:
        yield hidden, x
    else:
        yield from zip(hidden.split(_MLP_ROWS), x.split(_MLP_ROWS), strict=True)


def _gated(layer: _Layer, x: Tensor) -> Tensor:
    """x [n, hidden_size], normalised -> what the down projection reads."""
    gate, up = _project(x, layer.gate_up, 2)
    return layer.activation(gate).mul_(up)


def _rms_norm(x: Tensor, norm: Norm) -> Tensor:
    """Over the last dimension, in fp32; the weight multiplies what was rounded to x's dtype."""
    if x.dtype == torch.float32:
        if x.numel() == len(norm.weight) and x.device.type == "cpu":
            return _rms_norm_of_one(x, norm)
        return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
    return norm.weight * wide.to(x.dtype)


def _rms_norm_of_one(x: Tensor, norm: Norm) -> Tensor:
    """One row: torch's own calls eight operations for it, and a token has two a layer."""
    row = x.view(-1)
    mean_square = torch.add(_constant(norm.eps), torch.dot(row, row), alpha=1 / len(row))
    return torch.mul(x, norm.weight).mul_(mean_square.rsqrt_())


@functools.lru_cache
def _constant(value: float) -> Tensor:
    """fp32 on the CPU; torch would make it anew at every call that is given the number."""
    return torch.tensor(value, dtype=torch.float32, device="cpu")


def _project(
    x: Tensor, parts: tuple[PackedLinear, ...], split: list[int] | int
) -> Sequence[Tensor]:
    """x [n, in] -> the outputs of several projections; split: their widths, or how many equal."""
    if len(parts) > 1:
        return [linear(x, part) for part in parts]
    y = linear(x, parts[0])
    return y.chunk(split, dim=-1) if isinstance(split, int) else y.split(split, dim=-1)


def _packed_layer(layer: LayerWeights, format: LeanFormat, group: int) -> _Layer:
    return _Layer(
        qkv=_packed(layer.qkv, format, group),
        out=_packed((layer.out,), format, group),
        gate_up=_packed(layer.gate_up, format, group),
        down=_packed((layer.down,), format, group),
        attention_norm=layer.attention_norm,
        mlp_norm=layer.mlp_norm,
        q_norm=layer.q_norm,
        k_norm=layer.k_norm,
        activation=layer.activation,
        scale=layer.scale,
    )


@torch.inference_mode()
def _packed(parts: Sequence[nn.Linear], format: LeanFormat, group: int) -> tuple[PackedLinear, ...]:
    """Projections of one input: as they are, or as one packed matrix."""
    if format == "same":
        return tuple(pack(part.weight, "plain", bias=part.bias) for part in parts)
    wanted: Format = format
    if len(parts) == 1:
        return (pack(parts[0].weight, wanted, bias=parts[0].bias, group=group),)
    weight = torch.cat([part.weight for part in parts])
    return (pack(weight, wanted, bias=_joined_bias(parts), group=group),)


def _joined_bias(parts: Sequence[nn.Linear]) -> Tensor | None:
    """Biases side by side, zeros for a projection without one; None if none has one."""
    if all(part.bias is None for part in parts):
        return None
    return torch.cat(
        [
            part.weight.new_zeros(part.out_features) if part.bias is None else part.bias
            for part in parts
        ]
    )
