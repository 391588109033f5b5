"""One reading rated by many gives each scorer the scores of its own reading."""

from __future__ import annotations

import torch

from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig, prefill
from engine.scorers.accumulated import AccumulatedAttentionScorer
from engine.scorers.keydiff import KeyDiffScorer
from engine.scorers.recency import RecencyScorer
from engine.scorers.several import SeveralScorers
from engine.scorers.surprisal import SurprisalScorer
from engine.scoring import Scorer
from tests.fakes import tiny_model, tokens

KINDS: list[type[Scorer]] = [
    AccumulatedAttentionScorer,
    KeyDiffScorer,
    RecencyScorer,
    SurprisalScorer,
]
CONFIG = PrefillConfig(32, EvictionConfig(budget_tokens=None), "fp32")


def test_every_scorer_gives_what_it_gives_alone_also_for_the_next_document() -> None:
    model = tiny_model()
    several = SeveralScorers({kind.name: kind() for kind in KINDS})
    for text in (tokens(90), tokens(70, seed=1)):
        prefill(model, text, CONFIG, several)
        for kind in KINDS:
            alone = prefill(model, text, CONFIG, kind())
            expected = {n: c.scores.reshape(2, -1) for n, c in enumerate(alone.layers)}
            torch.testing.assert_close(several.scores(kind.name), expected)
