"""Entries and bits together: what a cache of so many bytes should hold.

Fewer bits make room for more entries. While much of a document is left out, an entry more is worth
more than the bits it takes from the others, down to 4 for keys and values; once a quarter of it is
kept, finer bits are worth more (heads/LEADERBOARD.md, equal bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from engine.errors import InvalidSetting
from engine.geometry import ModelGeometry
from engine.memory import POSITION_BYTES, SCORE_BYTES
from engine.quantisation import QuantConfig, parse_kv_bits

# From the finest on; each is taken if so much of the document fits.
LADDER = (("16", 1.0), ("8", 1.0), ("k8v4", 0.25), ("k4v4", 0.0))
LEAST_TOKENS = 64


@dataclass(frozen=True)
class Holding:
    """What fits: entries kept per layer and KV head on average, in these bits."""

    budget_tokens: int
    quant: QuantConfig


def entry_nbytes(geometry: ModelGeometry, quant: QuantConfig, fine_bytes: int = 2) -> float:
    """Bytes of one entry in every layer and head: key, value, position and score.

    fine_bytes  of a number that is not quantised
    """
    value_bytes = quant.bytes_per_value(geometry.head_dim, fine_bytes)
    overhead = geometry.n_slots * (POSITION_BYTES + SCORE_BYTES)
    return geometry.kv_bytes_per_token(value_bytes) + overhead


def holding(
    cache_nbytes: int,
    n_tokens: int,
    geometry: ModelGeometry,
    *,
    kv_bits: str | None = None,
    fine_bytes: int = 2,
    ceiling: int | None = None,
) -> Holding:
    """The finest bits in which as much of n_tokens fits as LADDER asks for.

    kv_bits  only these bits
    ceiling  most entries a head may hold, where positions are compact (engine.eviction)
    Raises   InvalidSetting if fewer than LEAST_TOKENS entries fit
    """
    for name, enough in LADDER if kv_bits is None else ((kv_bits, 0.0),):
        quant = parse_kv_bits(name, geometry)
        budget = fitting_tokens(cache_nbytes, n_tokens, geometry, quant, fine_bytes)
        if ceiling is not None:
            budget = min(budget, ceiling)
        if budget >= enough * n_tokens or budget == ceiling:
            break
    if budget < LEAST_TOKENS:
        least = cache_nbytes_of(LEAST_TOKENS, n_tokens, geometry, quant, fine_bytes) / 1e6
        raise InvalidSetting(
            f"A cache of {cache_nbytes / 1e6:.1f} MB holds {budget} entries a head.",
            f"Allow at least {ceil(least)} MB.",
        )
    return Holding(budget, quant)


def fitting_tokens(
    cache_nbytes: int,
    n_tokens: int,
    geometry: ModelGeometry,
    quant: QuantConfig,
    fine_bytes: int = 2,
) -> int:
    """Most entries per layer and KV head in so many bytes, of a document of n_tokens."""
    fixed = cache_nbytes_of(0, n_tokens, geometry, quant, fine_bytes)
    fine = entry_nbytes(geometry, QuantConfig(), fine_bytes)
    n_fine = _n_fine(n_tokens, quant)
    if cache_nbytes <= fixed + n_fine * fine:
        return max(int((cache_nbytes - fixed) / fine), 0)
    room = cache_nbytes - fixed - n_fine * fine
    return n_fine + int(room / entry_nbytes(geometry, quant, fine_bytes))


def cache_nbytes_of(
    n_entries: int,
    n_tokens: int,
    geometry: ModelGeometry,
    quant: QuantConfig,
    fine_bytes: int = 2,
) -> float:
    """Bytes of a finished cache of n_entries a head of a document of n_tokens.

    The document's tail stays in 16 bits, and one no longer than what is recent altogether; coded
    keys lie in a frame (kernels.quantise.Frame), two fp32 numbers a channel.
    """
    n_fine = min(n_entries, _n_fine(n_tokens, quant))
    framed = quant.k_bits < 16 and n_tokens > quant.recent_tokens
    return (
        n_fine * entry_nbytes(geometry, QuantConfig(), fine_bytes)
        + (n_entries - n_fine) * entry_nbytes(geometry, quant, fine_bytes)
        + (8 * geometry.n_slots * geometry.head_dim if framed else 0)
    )


def _n_fine(n_tokens: int, quant: QuantConfig) -> int:
    """The document's last tokens whose entries stay in 16 bits."""
    return n_tokens - quant.settled_before(n_tokens, last=True) if quant.on else n_tokens
