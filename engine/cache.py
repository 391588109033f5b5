"""The document's cache: ragged heads of un-rotated keys and values, and views to ask on.

Slots and positions are different things: an entry's slot is where it lies in the cache, its
position is its index in the document. Keys are stored un-rotated; where they are turned to is
decided when they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

import kernels
from engine.geometry import ModelGeometry
from engine.quantisation import QuantConfig
from engine.rotary import Rotary
from engine.rows import Rows
from engine.splits import settled_counts
from kernels.quantise import frame_of

if TYPE_CHECKING:
    from engine.fused import FusedLayer


Turns = tuple[Tensor, Tensor]  # cosine and sine, each [n, rotary_dim / 2] fp32


@dataclass
class LayerCache:
    """One layer: all heads' entries, head after head.

    keys, values  sum_len rows of head_dim numbers, keys un-rotated (engine.rows)
    positions     [sum_len] int32, index in the document, ascending inside a head
    scores        [sum_len] fp32, higher = keep
    """

    keys: Rows
    values: Rows
    positions: Tensor
    scores: Tensor

    @classmethod
    def empty(cls, geometry: ModelGeometry, dtype: torch.dtype, device: torch.device) -> LayerCache:
        """A layer that holds nothing."""
        rows = torch.empty(0, geometry.head_dim, dtype=dtype, device=device)
        none = (0,) * (geometry.n_kv_heads + 1)
        return cls(
            Rows.of_floats(rows, none),
            Rows.of_floats(rows.clone(), none),
            torch.empty(0, dtype=torch.int32, device=device),
            torch.empty(0, dtype=torch.float32, device=device),
        )

    @property
    def offsets(self) -> tuple[int, ...]:
        """n_kv_heads + 1 integers: head h owns rows offsets[h] to offsets[h + 1]."""
        return self.keys.offsets

    @property
    def lengths(self) -> list[int]:
        """Entries per head."""
        return [b - a for a, b in zip(self.offsets, self.offsets[1:], strict=False)]

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values, positions and scores."""
        return sum(t.nbytes for t in (self.keys, self.values, self.positions, self.scores))

    def rows(self, head: int) -> slice:
        """The rows that belong to one head."""
        return slice(self.offsets[head], self.offsets[head + 1])

    @property
    def head_positions(self) -> list[Tensor]:
        """Positions of each head's entries, ascending."""
        return [self.positions[self.rows(head)] for head in range(len(self.lengths))]

    def settled(self, n: Sequence[int], quant: QuantConfig) -> LayerCache:
        """This layer with the first n entries of each head quantised.

        The keys' frame must be there (engine.rows); what is quantised already stays as it is.
        """
        keys = self.keys if quant.k_bits == 16 else self.keys.settled(n, quant.k_bits)
        values = self.values if quant.v_bits == 16 else self.values.settled(n, quant.v_bits)
        return replace(self, keys=keys, values=values)


def settled_layers(
    layers: Sequence[LayerCache], before: int, quant: QuantConfig
) -> list[LayerCache]:
    """Layers with every entry at a position below `before` quantised."""
    counts = settled_counts([layer.head_positions for layer in layers], before)
    return [layer.settled(n, quant) for layer, n in zip(layers, counts, strict=True)]


@dataclass
class DocCache:
    """One document as one model read it: a layer cache per layer, and where the reading stands.

    positions_mode  "original": entries are read at their document positions;
                    "compact": at slots 0..length-1 of their head
    token_ids       [n_seen] int64, everything read so far, kept or not
    last_logits     [vocab] fp32, the model's prediction after the last token read
    scorer_state    what the scorer needs to go on
    quant           how finely entries are kept
    """

    geometry: ModelGeometry
    rotary: Rotary
    positions_mode: Literal["original", "compact"]
    compute_dtype: torch.dtype
    layers: list[LayerCache]
    token_ids: Tensor
    last_logits: Tensor | None = None
    scorer_state: dict[str, Tensor] = field(default_factory=dict)
    quant: QuantConfig = field(default_factory=QuantConfig)
    frozen: bool = False
    _readable: list[ReadLayer | FusedLayer] = field(default_factory=list, repr=False)

    @classmethod
    def empty(
        cls,
        geometry: ModelGeometry,
        rotary: Rotary,
        positions_mode: Literal["original", "compact"],
        *,
        compute_dtype: torch.dtype,
        kv_dtype: torch.dtype,
        device: torch.device,
        quant: QuantConfig | None = None,
    ) -> DocCache:
        """A cache before the first token."""
        layers = [LayerCache.empty(geometry, kv_dtype, device) for _ in range(geometry.n_layers)]
        ids = torch.empty(0, dtype=torch.int64)
        cache = cls(geometry, rotary, positions_mode, compute_dtype, layers, ids)
        cache.quant = quant or QuantConfig()
        return cache

    @property
    def n_seen(self) -> int:
        """Document tokens read."""
        return len(self.token_ids)

    @property
    def n_entries(self) -> int:
        """Entries over all layers and heads."""
        return sum(layer.offsets[-1] for layer in self.layers)

    @property
    def kept_tokens(self) -> float:
        """Mean entries per layer and KV head."""
        return self.n_entries / self.geometry.n_slots

    @property
    def kept_fraction(self) -> float:
        """Entries kept over entries seen."""
        return self.kept_tokens / self.n_seen if self.n_seen else 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of the cache itself: keys, values, positions and scores of all layers."""
        return sum(layer.nbytes for layer in self.layers)

    def freeze(self) -> DocCache:
        """End the reading: from here on the cache never changes. Returns itself."""
        self.frozen = True
        return self

    def quantised(self, quant: QuantConfig) -> DocCache:
        """A frozen copy of a frozen cache in 16 bits, with its settled entries in fewer.

        A reading with these bits gives other entries: it attends to quantised ones as it goes.
        """
        if not self.frozen or self.quant.on:
            raise AssertionError("only a finished cache in 16 bits can be quantised")
        layers = []
        for layer in self.layers:
            if quant.k_bits < 16 and self.n_seen > quant.recent_tokens:
                keys = layer.keys
                rows = [keys.floats(h, keys.fine.dtype) for h in range(len(layer.lengths))]
                layer = replace(layer, keys=replace(keys, frame=frame_of(rows)))
            layers.append(layer)
        layers = settled_layers(layers, quant.settled_before(self.n_seen, last=True), quant)
        return replace(self, layers=layers, quant=quant, _readable=[])

    def view(self) -> CacheView:
        """A copy-on-write view for one question; the cache itself stays as it is."""
        if not self.frozen:
            raise AssertionError("only a frozen cache can be asked")
        if not self._readable:
            turns = _slot_turns(self)
            self._readable = [_readable(self, layer, turns) for layer in self.layers]
        return CacheView(self, self._readable)

    def check(self) -> None:
        """Assert the invariants: sizes fit, positions ascend inside each head, all is finite."""
        assert len(self.layers) == self.geometry.n_layers
        for number, layer in enumerate(self.layers):
            total = layer.offsets[-1]
            name = f"layer {number}"
            assert len(layer.offsets) == self.geometry.n_kv_heads + 1, name
            assert all(n >= 0 for n in layer.lengths) and layer.offsets[0] == 0, name
            assert layer.values.offsets == layer.keys.offsets, name
            assert layer.positions.shape == layer.scores.shape == (total,), name
            layer.keys.check(self.geometry.head_dim)
            layer.values.check(self.geometry.head_dim)
            for head in range(self.geometry.n_kv_heads):
                positions = layer.positions[layer.rows(head)]
                assert bool((positions[1:] > positions[:-1]).all()), f"{name} head {head}"
                if len(positions):
                    assert 0 <= int(positions[0]) <= int(positions[-1]) < self.n_seen, name


@dataclass(frozen=True)
class ReadLayer:
    """A layer as attention reads it: keys rotated, everything in the computing dtype.

    keys, values  one tensor [n_heads, length, head_dim] per run of neighbouring heads of one
                  length, so that an even layer is a single dense attention
    start         [n_kv_heads, 1] rotary position of the first token after the entries
    """

    keys: list[Tensor]
    values: list[Tensor]
    start: Tensor

    @classmethod
    def of(cls, cache: DocCache, layer: LayerCache, turns: Turns | None = None) -> ReadLayer:
        """Rotate a layer's keys to where the cache's rule puts them.

        turns  of `_slot_turns`, where several layers are read
        """
        keys, values = [], []
        for first, n_heads, length in _even_runs(layer.lengths):
            rows = slice(layer.offsets[first], layer.offsets[first + n_heads])
            k = layer.keys.block(first, n_heads, cache.compute_dtype)
            if turns is None:
                positions = _read_positions(cache, layer, rows, (n_heads, length))
                keys.append(cache.rotary.rotate(k, positions))
            else:
                keys.append(cache.rotary.apply(k, *(part[:length] for part in turns)))
            values.append(layer.values.block(first, n_heads, cache.compute_dtype))
        return cls(keys, values, first_free_positions(cache, layer))

    def attend(self, packed_q: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
        """packed_q [n_kv_heads, group * n, head_dim], rotated -> output and log-sum-exp.

        None if there is nothing to attend to. Every head of a model keeps its sinks, so heads
        are empty all together or not at all.
        """
        if self.keys[0].shape[1] == 0:
            return None
        first, parts = 0, []
        for k, v in zip(self.keys, self.values, strict=True):
            parts.append(kernels.attend(packed_q[first : first + len(k)], k, v, scale))
            first += len(k)
        if len(parts) == 1:
            return parts[0]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def flat(self, offsets: tuple[int, ...]) -> kernels.History | None:
        """Head after head in flat tensors; None if there is nothing."""
        if not offsets[-1]:
            return None
        keys, values = (
            torch.cat([block.flatten(0, 1) for block in side]) for side in (self.keys, self.values)
        )
        where = torch.tensor(offsets, dtype=torch.int32, device=keys.device)
        return kernels.History(keys, values, where)

    def heads(self) -> list[Tensor]:
        """The rotated keys of each KV head: [1, length, head_dim]."""
        return [k for block in self.keys for k in block.split(1)]

    def value_heads(self) -> list[Tensor]:
        """The values of each KV head: [1, length, head_dim]."""
        return [v for block in self.values for v in block.split(1)]


def _slot_turns(cache: DocCache) -> Turns | None:
    """Cosine and sine of all slots of the longest head, if entries are read at their slots."""
    if cache.positions_mode == "original":
        return None
    longest = max(n for layer in cache.layers for n in layer.lengths)
    return cache.rotary.cos_sin(torch.arange(longest, device=cache.layers[0].positions.device))


def _readable(cache: DocCache, layer: LayerCache, turns: Turns | None) -> ReadLayer | FusedLayer:
    """As the backend reads it: as it is stored, or decoded and turned once for all questions."""
    from engine.fused import FusedLayer

    if kernels.fuses(layer.positions.device) and FusedLayer.fits(cache, layer):
        return FusedLayer.of(cache, layer)
    return ReadLayer.of(cache, layer, turns)


def _even_runs(lengths: list[int]) -> list[tuple[int, int, int]]:
    """(first head, number of heads, their length) for each run of equal neighbours."""
    runs: list[tuple[int, int, int]] = []
    for head, length in enumerate(lengths):
        if runs and runs[-1][2] == length:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, length)
        else:
            runs.append((head, 1, length))
    return runs


def _read_positions(
    cache: DocCache, layer: LayerCache, rows: slice, shape: tuple[int, int]
) -> Tensor:
    """Rotary positions of some heads' rows [n_heads, length] under the cache's rule."""
    if cache.positions_mode == "original":
        return layer.positions[rows].reshape(shape)
    return torch.arange(shape[1], device=layer.positions.device).expand(shape)


def first_free_positions(cache: DocCache, layer: LayerCache) -> Tensor:
    """Rotary position of the next token for each KV head: [n_kv_heads, 1] int64."""
    if cache.positions_mode == "original":
        values = [cache.n_seen] * cache.geometry.n_kv_heads
    else:
        values = layer.lengths
    return torch.tensor(values, device=layer.positions.device)[:, None]


def pack(q: Tensor, n_kv_heads: int) -> Tensor:
    """[n_q_heads, n, d] -> [n_kv_heads, group * n, d]: the query group becomes rows."""
    return q.reshape(n_kv_heads, -1, q.shape[-1])


def turned_together(
    rotary: Rotary, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries [n_q_heads, n, d] and keys [n_kv_heads, n, d] of the same tokens, rotated in one go.

    cos, sin  [n_kv_heads, 1, n, rotary_dim / 2]
    """
    grouped = q.reshape(len(k), -1, *q.shape[1:])
    turned = rotary.apply(torch.cat([grouped, k[:, None]], dim=1), cos, sin)
    return turned[:, :-1].reshape(q.shape), turned[:, -1]


def rotate_group(rotary: Rotary, q: Tensor, positions: Tensor) -> Tensor:
    """Rotate queries [n_q_heads, n, d] at their KV head's positions [n_kv_heads, n]."""
    grouped = q.reshape(positions.shape[0], -1, *q.shape[1:])
    return rotary.rotate(grouped, positions[:, None, :]).reshape(q.shape)


class CacheView:
    """A question on top of a frozen cache: shares its entries, appends its own, changes nothing.

    It is a `Store`: the model's forward passes append their keys and values to the view's tail.
    """

    wants_hidden = False

    def __init__(self, cache: DocCache, readable: list[ReadLayer | FusedLayer]) -> None:
        self.cache = cache
        self._readable = readable
        self._tail_k: list[Tensor | None] = [None] * len(readable)
        self._tail_v: list[Tensor | None] = [None] * len(readable)
        self._turned: tuple[tuple[int, int], Tensor, Tensor] | None = None

    @property
    def n_tail(self) -> int:
        """Tokens appended on top of the document."""
        tail = self._tail_k[-1]
        return 0 if tail is None else tail.shape[1]

    def entries(self, layer: int) -> ReadLayer | FusedLayer:
        """The document's entries of a layer as this view reads them."""
        return self._readable[layer]

    def fork(self) -> CacheView:
        """A second view that goes its own way from here, with a tail of its own."""
        twin = CacheView(self.cache, self._readable)
        for ours, theirs in ((self._tail_k, twin._tail_k), (self._tail_v, twin._tail_v)):
            theirs[:] = [None if t is None else t.clone() for t in ours]
        return twin

    def tails(self) -> list[tuple[Tensor | None, Tensor | None]]:
        """Keys, rotated, and values of the appended tokens, per layer [n_kv_heads, n, head_dim]."""
        return list(zip(self._tail_k, self._tail_v, strict=True))

    def lay_tail(self, keys: Tensor, values: Tensor, n_tail: int) -> None:
        """Let the tail be the first n_tail tokens of [n_layers, n_kv_heads, room, head_dim]."""
        for tail, buffers in ((self._tail_k, keys), (self._tail_v, values)):
            tail[:] = buffers[:, :, :n_tail].unbind()

    def tail_is_in(self, keys: Tensor, values: Tensor) -> bool:
        """Whether the tail lies where `lay_tail` would lay it."""
        pairs = ((self._tail_k, keys), (self._tail_v, values))
        return all(
            t is not None and t.data_ptr() == buffer.data_ptr()
            for tail, buffers in pairs
            for t, buffer in zip(tail, buffers, strict=True)
        )

    def crop(self, n_tail: int) -> None:
        """Forget everything after the first `n_tail` appended tokens."""
        if not 0 <= n_tail <= self.n_tail:
            raise AssertionError(f"cannot crop a tail of {self.n_tail} tokens to {n_tail}")
        for tail in (self._tail_k, self._tail_v):
            tail[:] = [None if t is None else t[:, :n_tail] for t in tail]

    def see_hidden(self, layer: int, hidden: Tensor) -> None:
        """Store protocol; a view has no use for it."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Store protocol: document entries, then the tail so far, then causally the new tokens."""
        geometry = self.cache.geometry
        entries = self._readable[layer]
        past_k, past_v = self._tail_k[layer], self._tail_v[layer]
        n_past = 0 if past_k is None else past_k.shape[1]
        q, k = self._rotate(layer, q, k, n_past)
        if past_k is not None and past_v is not None:
            tail_k, tail_v = torch.cat([past_k, k], dim=1), torch.cat([past_v, v], dim=1)
        else:
            tail_k, tail_v = k.contiguous(), v.contiguous()
        self._tail_k[layer], self._tail_v[layer] = tail_k, tail_v
        packed = pack(q, geometry.n_kv_heads)
        parts = [entries.attend(packed, scale)]
        if k.shape[1] == 1:
            parts.append(kernels.attend(packed, tail_k, tail_v, scale))
        else:
            if past_k is not None and past_v is not None and n_past:
                parts.append(kernels.attend(packed, past_k, past_v, scale))
            parts.append(attend_within(q, k, v, scale, geometry.n_kv_heads))
        return merged(parts).reshape(q.shape)

    def _rotate(self, layer: int, q: Tensor, k: Tensor, n_past: int) -> tuple[Tensor, Tensor]:
        """Turn new queries and keys to their positions, in one go: they stand at the same ones."""
        cos, sin = self._turns(n_past, k.shape[1])
        return turned_together(self.cache.rotary, q, k, cos[layer], sin[layer])

    def _turns(self, n_past: int, n: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of n tokens after n_past, of all layers, computed once for a forward.

        Each [n_layers, n_kv_heads, 1, n, rotary_dim / 2].
        """
        if self._turned is None or self._turned[0] != (n_past, n):
            starts = torch.stack([entries.start for entries in self._readable])
            positions = starts + torch.arange(n_past, n_past + n, device=starts.device)
            cos, sin = self.cache.rotary.cos_sin(positions[:, :, None])
            self._turned = ((n_past, n), cos, sin)
        return self._turned[1:]


def attend_within(
    q: Tensor, k: Tensor, v: Tensor, scale: float, n_kv_heads: int
) -> tuple[Tensor, Tensor]:
    """New tokens causally over themselves, packed: [n_kv_heads, group * n, d] and lse."""
    out, lse = kernels.attend_causal(q, k, v, scale)
    return pack(out, n_kv_heads), lse.reshape(n_kv_heads, -1)


def merged(parts: list[tuple[Tensor, Tensor] | None]) -> Tensor:
    """Join attentions over disjoint keys; None stands for no keys."""
    present = [part for part in parts if part is not None]
    out, lse = present[0]
    for other_out, other_lse in present[1:]:
        out, lse = kernels.merge(out, lse, other_out, other_lse)
    return out
