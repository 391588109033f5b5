"""The choices made before a document is read, and how they become engine settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from engine.eviction import Allocation, EvictionConfig, Positions, Profile

MAX_DOCUMENT_TOKENS = 131_072
DEFAULT_CHUNK_TOKENS = 1024
CHECKPOINT_EVERY_CHUNKS = 8


@dataclass(frozen=True)
class ReadSettings:
    """What to read with. None means: the default of the model or of the catalogue of scorers.

    budget_tokens 0 keeps every entry.
    read_twice      read into a larger cache, and repeat the document to choose what stays
                    (heads.second_reading)
    refit           kept values take over what evicted entries gave (engine.refit)
    kv_bits         bits of keys and values (engine.quantisation.KV_BITS)
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
    kv_bits: str = "16"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the library and for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ReadSettings:
        """Build from stored values; unknown keys (of a newer version) are left out."""
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(**known)

    def resolved(
        self, default_budget: int | None, scorer: str, default_allocation: Allocation
    ) -> ReadSettings:
        """Fill every None with its default, so that the settings can name a session.

        default_budget      the model's own, None for a model without a known one
        scorer              the chosen scorer, or the model's own (heads.catalog.default_scorer)
        default_allocation  the scorer's own
        """
        from engine.eviction import EvictionConfig
        from engine.registry import default_model

        default_budget = default_budget or EvictionConfig().budget_tokens
        return replace(
            self,
            model=self.model or default_model(),
            budget_tokens=default_budget if self.budget_tokens is None else self.budget_tokens,
            allocation=self.allocation or default_allocation,
            scorer=scorer,
        )


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
