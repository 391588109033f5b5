"""The choices made before a document is read, and how they become engine settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from engine.eviction import Allocation, EvictionConfig, Positions, Profile

MAX_DOCUMENT_TOKENS = 131_072
DEFAULT_CHUNK_TOKENS = 1024
CHECKPOINT_EVERY_CHUNKS = 8
# At equal bytes the best answers while a quarter or more of a document is kept
# (heads/LEADERBOARD.md); a refit needs values in 16 bits.
DEFAULT_KV_BITS = "k8v4"
# Of a document, unless a budget is named: half of it loses twice as much (heads/LEADERBOARD.md).
LEAST_KEPT = 1 / 16
# Sessions from before there was such a choice were read in these.
_KV_BITS_OF_OLD = "16"


@dataclass(frozen=True)
class ReadSettings:
    """What to read with. None means: the default of the model or of the catalogue of scorers.

    budget_tokens 0 keeps every entry.
    read_twice      read into a larger cache, and repeat the document to choose what stays
                    (heads.second_reading)
    refit           kept values take over what evicted entries gave (engine.refit)
    kv_bits         bits of keys and values (engine.quantisation.KV_BITS)
    cache_mb        megabytes for the kept entries: entries and bits are chosen together to fill
                    them (engine.byte_budget), and settings that name a session hold these instead
    """

    model: str | None = None
    weights: str = "auto"
    budget_tokens: int | None = None
    allocation: str | None = None
    scorer: str | None = None
    positions: str = "auto"
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    read_twice: bool = False
    refit: bool = False
    kv_bits: str | None = None
    cache_mb: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the library and for JSON; cache_mb only where it is set."""
        values = asdict(self)
        if self.cache_mb is None:
            del values["cache_mb"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ReadSettings:
        """Build from stored values; unknown keys (of a newer version) are left out."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(**{"kv_bits": _KV_BITS_OF_OLD, **known})

    @property
    def sized(self) -> bool:
        """Whether somebody said how much is to be kept."""
        return self.budget_tokens is not None or self.cache_mb is not None

    @property
    def default_kv_bits(self) -> str:
        """The bits of a reading that does not ask for any."""
        return "16" if self.refit else DEFAULT_KV_BITS

    def meets(self, wanted: ReadSettings, resolved: ReadSettings) -> bool:
        """Whether a session read with these settings serves somebody who wants others.

        resolved  what is wanted, with today's defaults; bits that nobody asked for may be finer,
                  as they were by default once
        """
        finer = wanted.kv_bits is None and wanted.cache_mb is None and self.kv_bits == "16"
        return replace(self, kv_bits=resolved.kv_bits) == resolved if finer else self == resolved

    def resolved(
        self, default_budget: int, scorer: str, default_allocation: Allocation
    ) -> ReadSettings:
        """Fill every None with its default, so that the settings can name a session.

        default_budget      what `default_budget` gives for the model and document
        scorer              the chosen scorer, or the model's own (heads.catalog.default_scorer)
        default_allocation  the scorer's own
        """
        from engine.registry import default_model

        return replace(
            self,
            model=self.model or default_model(),
            budget_tokens=default_budget if self.budget_tokens is None else self.budget_tokens,
            allocation=self.allocation or default_allocation,
            scorer=scorer,
            kv_bits=self.kv_bits or self.default_kv_bits,
        )


def default_budget(own: int, n_tokens: int, window: int) -> int:
    """Entries a head where nobody says how many: the model's own number, and for a long document
    LEAST_KEPT of it, as far as a quarter of the trained window holds them.

    own       the model's own number (engine.models.toml)
    n_tokens  of the document
    window    the model's, in tokens: entries of a document beyond it are read at slots inside it
    """
    return max(own, min(ceil(LEAST_KEPT * n_tokens), window // 4))


def eviction_config(settings: ReadSettings, profile: Profile | None = None) -> EvictionConfig:
    """Engine settings for one reading; `settings` must be resolved.

    profile  of the scorer, for the allocation of that name

    Only the first tokens are kept by rule; the rest of the header (system prompt, opening of the
    user's turn) is scored like the text, because holding it in every head cost more than it gave
    at small budgets. Raises engine.errors.InvalidSetting if the numbers cannot work together.
    """
    from engine.errors import InvalidSetting
    from engine.eviction import EvictionConfig

    if settings.read_twice and not settings.budget_tokens:
        raise InvalidSetting(
            "A second reading chooses what stays, and a budget of 'all' leaves no choice.",
            "Set a number with --budget, or read once.",
        )
    assert settings.budget_tokens is not None and settings.allocation is not None
    return EvictionConfig(
        budget_tokens=settings.budget_tokens or None,
        allocation=cast("Allocation", settings.allocation),
        positions=cast("Positions", settings.positions),
        profile=profile if settings.allocation == "profile" else None,
        refit=settings.refit,
    )
