"""A finished session's cache without the reading: random entries of the model's geometry.

Speed depends on how many entries there are and where, not on what they say; but a snapshot in 16
bits is smaller where a channel's numbers are alike in size, as these are and a model's are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.cache import DocCache, LayerCache
from engine.errors import InvalidSetting
from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig
from engine.quantisation import QuantConfig
from engine.rows import Rows

if TYPE_CHECKING:
    from engine.loader import LoadedModel

RAGGED = 0.5  # heads hold up to this share more or less than the mean
HOW = (
    "random keys and values; heads hold up to half more or less than the mean; positions are drawn "
    "from the whole document"
)


def session_cache(
    model: LoadedModel,
    n_tokens: int,
    kept_tokens: int,
    *,
    room_tokens: int = 0,
    quant: QuantConfig | None = None,
) -> DocCache:
    """A frozen cache as a reading of n_tokens leaves it.

    kept_tokens  mean entries per layer and KV head; at most n_tokens
    room_tokens  that a question and its answer must still find in the trained window
    quant        how finely entries are kept; None: in 16 bits
    Raises       InvalidSetting if the window is too small
    """
    geometry = model.geometry
    mode = EvictionConfig(budget_tokens=None).resolve_positions(n_tokens, geometry.window)
    most = n_tokens
    if mode != "original":
        most = min(n_tokens, geometry.window - room_tokens)
    if kept_tokens > most:
        raise InvalidSetting(
            f"{kept_tokens} entries and {room_tokens} new tokens exceed the model's window of "
            f"{geometry.window}."
        )
    cache = DocCache.empty(
        geometry,
        model.rotary,
        mode,
        compute_dtype=model.compute_dtype,
        kv_dtype=PrefillConfig().storage_dtype(model.compute_dtype),
        device=torch.device(model.device),
    )
    generator = torch.Generator().manual_seed(0)
    spread = min(RAGGED, most / kept_tokens - 1)
    cache.layers = [
        _layer(layer, cache, n_tokens, _lengths(cache, number, kept_tokens, spread), generator)
        for number, layer in enumerate(cache.layers)
    ]
    vocab = geometry.vocab_size or int(model.model.lm_head.out_features)
    cache.token_ids = torch.randint(vocab, (n_tokens,), generator=generator)
    cache.last_logits = torch.zeros(vocab)
    cache.check()
    cache.freeze()
    return cache.quantised(quant) if quant is not None and quant.on else cache


def _lengths(cache: DocCache, layer: int, kept_tokens: int, spread: float) -> list[int]:
    """Entries of each head: pairs of heads share two means unevenly, more so in later layers."""
    n_heads, n_layers = cache.geometry.n_kv_heads, cache.geometry.n_layers
    extra = int(kept_tokens * spread * (layer + 1) / n_layers)
    lengths = [kept_tokens] * n_heads
    for head in range(0, n_heads - 1, 2):
        lengths[head] += extra
        lengths[head + 1] -= extra
    return lengths


def _layer(
    empty: LayerCache,
    cache: DocCache,
    n_tokens: int,
    lengths: list[int],
    generator: torch.Generator,
) -> LayerCache:
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    shape = (offsets[-1], cache.geometry.head_dim)
    like, fine = empty.positions, empty.keys.fine
    places = [torch.randperm(n_tokens, generator=generator)[:n].sort().values for n in lengths]
    keys, values = (
        torch.randn(shape, generator=generator).to(fine.device, fine.dtype) for _ in range(2)
    )
    return LayerCache(
        keys=Rows.of_floats(keys, offsets),
        values=Rows.of_floats(values, offsets),
        positions=torch.cat(places).to(like.device, like.dtype),
        scores=torch.rand(offsets[-1], generator=generator).to(like.device),
    )
