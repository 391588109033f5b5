"""How finely a cache keeps its entries: bits of keys and values, and when an entry settles."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import InvalidSetting
from engine.geometry import ModelGeometry
from kernels.quantise import row_nbytes

BITS = (16, 8, 4, 2)
KV_BITS = ("16", "8", "k8v4", "k8v2", "4", "2", "k4v4", "k4v2", "k2v2")  # what users are shown
RECENT_TOKENS = 128
TAIL_TOKENS = 16
# From so many query heads on one key-value head on, keys stay at 8 bits unless asked otherwise:
# an error in a key is then an error in that many attentions. Where megabytes are asked for,
# engine.byte_budget goes below: the entries that fit then are worth more (measured, group of 7).
WIDE_GROUP = 6


@dataclass(frozen=True)
class QuantConfig:
    """Bits of keys and values; 16 keeps them in the storage dtype.

    recent_tokens  the newest tokens of the reading, whose entries stay in 16 bits; an entry that
                   falls behind them settles: it is quantised, once, and never touched again.
                   When the document ends all but its last TAIL_TOKENS settle
    """

    k_bits: int = 16
    v_bits: int = 16
    recent_tokens: int = RECENT_TOKENS

    def __post_init__(self) -> None:
        for name in ("k_bits", "v_bits"):
            if getattr(self, name) not in BITS:
                raise InvalidSetting(f"{name} {getattr(self, name)} is none of {BITS}.")
        if self.recent_tokens < 0:
            raise InvalidSetting(f"recent_tokens {self.recent_tokens} is negative.")

    @property
    def on(self) -> bool:
        """Whether anything is quantised."""
        return min(self.k_bits, self.v_bits) < 16

    @property
    def tail_tokens(self) -> int:
        """The last tokens of a finished document, whose entries stay in 16 bits."""
        return min(TAIL_TOKENS, self.recent_tokens)

    def settled_before(self, n_read: int, *, last: bool) -> int:
        """The position below which entries have settled, after n_read tokens; 0 for none.

        last  whether the document ends here; one no longer than recent_tokens stays in 16 bits
        """
        if n_read <= self.recent_tokens:
            return 0
        return n_read - (self.tail_tokens if last else self.recent_tokens)

    @property
    def name(self) -> str:
        """As users write it, and as `parse_kv_bits` reads it for any model: "8", "k8v4", "k4v4"."""
        plain = self.k_bits == self.v_bits >= 8
        return str(self.k_bits) if plain else f"k{self.k_bits}v{self.v_bits}"

    def bytes_per_value(self, head_dim: int, fine_bytes: int = 2) -> float:
        """Mean bytes of a settled key's or value's number, steps included.

        fine_bytes  of a number that is not quantised
        """
        rows = [
            fine_bytes * head_dim if bits == 16 else row_nbytes(head_dim, bits)
            for bits in (self.k_bits, self.v_bits)
        ]
        return sum(rows) / (2 * head_dim)


def parse_kv_bits(text: str, geometry: ModelGeometry | None = None) -> QuantConfig:
    """What `--kv-bits` asks for: one number for both, or "k8v4" for keys and values by name.

    geometry  with a query group of WIDE_GROUP or more, one number below 8 is meant for the
              values, and keys stay at 8 bits; naming both overrides this
    Raises    InvalidSetting
    """
    named = text.startswith("k")
    keys, _, values = text.removeprefix("k").partition("v") if named else (text, "", text)
    if not (keys.isdigit() and values.isdigit()) or {int(keys), int(values)} - set(BITS):
        raise InvalidSetting(
            f"kv-bits '{text}' is not known.", f"Choose one of {', '.join(KV_BITS)}."
        )
    k_bits, v_bits = int(keys), int(values)
    if not named and geometry is not None and geometry.group_size >= WIDE_GROUP:
        k_bits = max(k_bits, 8)
    return QuantConfig(k_bits, v_bits)
