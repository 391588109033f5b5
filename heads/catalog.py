"""Every scorer by its name, and which one reads a document when nobody chooses."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import InvalidSetting, ScorerUnavailable
from engine.scorers.accumulated import AccumulatedAttentionScorer
from engine.scorers.key_norm import KeyNormScorer
from engine.scorers.keydiff import KeyDiffScorer
from engine.scorers.recency import RecencyScorer
from engine.scorers.surprisal import SurprisalScorer
from engine.scorers.uniform_random import RandomScorer
from engine.scoring import Scorer

if TYPE_CHECKING:
    from engine.loader import LoadedModel

# heads/LEADERBOARD.md: trained heads first; without them the best of the others at equal entries.
TRAINED_SCORER = "retaining"
UNTRAINED_SCORER = "keydiff"
SHIPPED_HEADS = Path(__file__).resolve().parent / "weights"
_TRAINED = ("retaining", "locret")
_HEAD_SUFFIXES = (".safetensors", ".bin")

_SIMPLE: dict[str, Callable[[], Scorer]] = {
    "recency": RecencyScorer,
    "key_norm": KeyNormScorer,
    "keydiff": KeyDiffScorer,
    "surprisal": SurprisalScorer,
    "accumulated": AccumulatedAttentionScorer,
}


def scorer_names() -> list[str]:
    """The names `make_scorer` knows for every model; heads are known where a file of them is."""
    return sorted([*_SIMPLE, "random", "expected_attention"])


def head_name(kind: str, model_name: str) -> str:
    """The file name of a model's heads of a kind."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model_name)}.{kind}.safetensors"


def head_file(kind: str, model_name: str, state_dir: Path | None = None) -> Path | None:
    """Where heads of a kind ("retaining", "locret") for a model lie: the user's own, then ours."""
    name = head_name(kind, model_name)
    for folder in (state_dir, SHIPPED_HEADS):
        if folder is not None and (folder / name).is_file():
            return folder / name
    return None


def is_head_file(name: str) -> bool:
    """Whether a scorer's name is a path to a file of heads."""
    return name.endswith(_HEAD_SUFFIXES)


def default_scorer(model_name: str, state_dir: Path | None = None) -> str:
    """The scorer that reads with this model when nobody chooses."""
    trained = head_file(TRAINED_SCORER, model_name, state_dir)
    return UNTRAINED_SCORER if trained is None else TRAINED_SCORER


def make_scorer(
    name: str,
    model: LoadedModel,
    *,
    seed: int = 0,
    state_dir: Path | None = None,
    calibration_ids: list[int] | None = None,
) -> Scorer:
    """A fresh scorer for one document.

    name             of `scorer_names`, "retaining", "locret", or a file of heads
    state_dir        where a user's heads lie, and where expected attention keeps a model's query
                     statistics between runs
    calibration_ids  the text it gathers them from the first time, see heads.calibration
    Raises           InvalidSetting, listing the names, if there is no such scorer, and
                     ScorerUnavailable if it is not to be had for this model
    """
    check_scorer_name(name)
    if name in _SIMPLE:
        return _SIMPLE[name]()
    if name == "random":
        return RandomScorer(seed)
    if name == "expected_attention":
        from heads.calibration import expected_attention

        return expected_attention(model, state_dir, calibration_ids)
    return _trained(name, model, state_dir)


def check_scorer_name(name: str) -> None:
    """Raise InvalidSetting, listing the names, unless one of them is `name` or it is a file's.

    Costs nothing, so that it can be refused before a document is opened and a model loaded.
    """
    names = [*scorer_names(), *_TRAINED]
    if name not in names and not is_head_file(name):
        raise InvalidSetting(
            f"There is no scorer '{name}'.",
            f"Choose one of: {', '.join(names)}; or name a file of heads.",
        )


def _trained(name: str, model: LoadedModel, state_dir: Path | None) -> Scorer:
    from heads.published import published_heads
    from heads.retaining import load_heads

    if is_head_file(name):
        return load_heads(Path(name), model)
    path = head_file(name, model.name, state_dir)
    if path is None and name == "locret":
        path = published_heads(model, state_dir)
    if path is None:
        raise ScorerUnavailable(
            f"There are no {name} heads for the model {model.name}.",
            f"Train them with `python launch.py train-heads {model.name}`, "
            f"or choose one of: {', '.join(scorer_names())}.",
        )
    return load_heads(path, model)
