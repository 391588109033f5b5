"""The document's cache: ragged heads of un-rotated keys and values.

Slots and positions are different things: an entry's slot is where it lies in the cache, its
position is its index in the document. Keys are stored un-rotated; where they are turned to is
decided when they are read (engine.read_layer); questions are asked on views (engine.view).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.geometry import ModelGeometry
from engine.quantisation import QuantConfig
from engine.rotary import Rotary
from engine.rows import Rows
from engine.splits import settled_counts
from kernels.quantise import frame_of

if TYPE_CHECKING:
    from engine.eviction import PositionsMode
    from engine.view import CacheView, Readable


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
                    "compact", "shared": moved together (engine.places)
    token_ids       [n_seen] int64, everything read so far, kept or not
    last_logits     [vocab] fp32, the model's prediction after the last token read
    scorer_state    what the scorer needs to go on
    quant           how finely entries are kept
    """

    geometry: ModelGeometry
    rotary: Rotary
    positions_mode: PositionsMode
    compute_dtype: torch.dtype
    layers: list[LayerCache]
    token_ids: Tensor
    last_logits: Tensor | None = None
    scorer_state: dict[str, Tensor] = field(default_factory=dict)
    quant: QuantConfig = field(default_factory=QuantConfig)
    frozen: bool = False
    _readable: list[Readable] = field(default_factory=list, repr=False)

    @classmethod
    def empty(
        cls,
        geometry: ModelGeometry,
        rotary: Rotary,
        positions_mode: PositionsMode,
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
        from engine.view import CacheView, readable_layers

        if not self._readable:
            self._readable = readable_layers(self)
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
