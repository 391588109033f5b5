"""Entries and bits together: what a cache of so many bytes should hold.

More entries in fewer bits answer better than fewer in 16, down to 8 bits for keys and 4 for values;
below that they do not (heads/LEADERBOARD.md, equal bytes). So the ladder ends there.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from engine.errors import InvalidSetting
from engine.geometry import ModelGeometry
from engine.memory import POSITION_BYTES, SCORE_BYTES
from engine.quantisation import QuantConfig, parse_kv_bits

# From the finest to the one with the best answers at equal bytes.
LADDER = ("16", "8", "k8v4")
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
) -> Holding:
    """The finest bits in which all n_tokens fit, or the most entries in the last of the ladder.

    kv_bits  only these bits
    Raises   InvalidSetting if fewer than LEAST_TOKENS entries fit
    """
    for name in LADDER if kv_bits is None else (kv_bits,):
        quant = parse_kv_bits(name, geometry)
        budget = fitting_tokens(cache_nbytes, geometry, quant, fine_bytes)
        if budget >= n_tokens:
            return Holding(budget, quant)
    if budget < LEAST_TOKENS:
        # So few are all among the newest tokens, which stay in 16 bits.
        least = LEAST_TOKENS * entry_nbytes(geometry, QuantConfig(), fine_bytes) / 1e6
        raise InvalidSetting(
            f"A cache of {cache_nbytes / 1e6:.1f} MB holds {budget} entries a head.",
            f"Allow at least {ceil(least)} MB.",
        )
    return Holding(budget, quant)


def fitting_tokens(
    cache_nbytes: int, geometry: ModelGeometry, quant: QuantConfig, fine_bytes: int = 2
) -> int:
    """Most entries per layer and KV head in so many bytes; the newest tokens' stay in 16 bits."""
    entry = entry_nbytes(geometry, quant, fine_bytes)
    fine = entry_nbytes(geometry, QuantConfig(), fine_bytes)
    recent = quant.recent_tokens if quant.on else 0
    n_fine = min(recent, int(cache_nbytes / fine))
    return n_fine + int((cache_nbytes - n_fine * fine) / entry)
