"""Every scorer by its name, and which one reads a document when nobody chooses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ScorerUnavailable
from engine.eviction import Allocation
from engine.scorers.accumulated import AccumulatedAttentionScorer
from engine.scorers.key_norm import KeyNormScorer
from engine.scorers.keydiff import KeyDiffScorer
from engine.scorers.recency import RecencyScorer
from engine.scorers.surprisal import SurprisalScorer
from engine.scorers.uniform_random import RandomScorer
from engine.scoring import Scorer

if TYPE_CHECKING:
    from engine.loader import LoadedModel

# The best of those below at equal entries: heads/LEADERBOARD.md.
DEFAULT_SCORER = "keydiff"
DEFAULT_ALLOCATION: Allocation = "global"

_SIMPLE: dict[str, Callable[[], Scorer]] = {
    "recency": RecencyScorer,
    "key_norm": KeyNormScorer,
    "keydiff": KeyDiffScorer,
    "surprisal": SurprisalScorer,
    "accumulated": AccumulatedAttentionScorer,
}


def scorer_names() -> list[str]:
    """The names `make_scorer` knows."""
    return sorted([*_SIMPLE, "random", "expected_attention"])


def make_scorer(
    name: str,
    model: LoadedModel,
    *,
    seed: int = 0,
    state_dir: Path | None = None,
    calibration_ids: list[int] | None = None,
) -> Scorer:
    """A fresh scorer for one document.

    state_dir        where expected attention keeps a model's query statistics between runs
    calibration_ids  the text it gathers them from the first time, see heads.calibration
    Raises           ScorerUnavailable, listing the names, if there is no such scorer
    """
    if name in _SIMPLE:
        return _SIMPLE[name]()
    if name == "random":
        return RandomScorer(seed)
    if name == "expected_attention":
        from heads.calibration import expected_attention

        return expected_attention(model, state_dir, calibration_ids)
    raise ScorerUnavailable(
        f"There is no scorer '{name}'.", f"Choose one of: {', '.join(scorer_names())}."
    )


def scorer_digest(scorer: Scorer) -> str:
    """A scorer's identity in fingerprints: name, settings and weights, as one short text."""
    text = scorer.digest()
    return text if len(text) < 80 else hashlib.sha256(text.encode()).hexdigest()
