"""Query statistics of a model, gathered once and kept beside it, for expected attention.

The text they come from is the project's own licence: English prose that every copy of the
program carries, so that every machine finds the same statistics.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ScorerUnavailable
from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig, prefill
from engine.scorers.expected_attention import (
    ExpectedAttentionScorer,
    QueryStatistics,
    QueryStatisticsScorer,
)
from heads.tensor_file import write_tensors

if TYPE_CHECKING:
    from engine.loader import LoadedModel

CALIBRATION_TOKENS = 2048
_log = logging.getLogger("longread")
_TEXT_FILE = Path(__file__).resolve().parent.parent / "LICENSE"


def expected_attention(
    model: LoadedModel, state_dir: Path | None, token_ids: list[int] | None = None
) -> ExpectedAttentionScorer:
    """The scorer for a model; gathers the statistics if they are not in `state_dir` yet.

    A file of them that is damaged is logged and replaced.
    Raises ScorerUnavailable if there is no text to gather them from.
    """
    path = None if state_dir is None else state_dir / _file_name(model)
    if path is not None and path.exists():
        kept = _load(path, model)
        if kept is not None:
            return ExpectedAttentionScorer(kept, model.rotary)
        _log.warning("%s is damaged: the query statistics are gathered anew.", path.name)
    statistics = gather(model, token_ids or calibration_ids(model))
    if path is not None:
        _save(path, statistics)
    return ExpectedAttentionScorer(statistics, model.rotary)


def calibration_ids(model: LoadedModel) -> list[int]:
    """The first CALIBRATION_TOKENS tokens of the calibration text."""
    if not _TEXT_FILE.exists():
        raise ScorerUnavailable(
            "Expected attention learns a model's queries from the file LICENSE, which is missing.",
            "Restore the file LICENSE, or choose another scorer.",
        )
    text = _TEXT_FILE.read_text(encoding="utf-8")
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids[:CALIBRATION_TOKENS]


def gather(model: LoadedModel, token_ids: list[int]) -> QueryStatistics:
    """Read a text with nothing evicted and return the statistics of its queries."""
    scorer = QueryStatisticsScorer()
    config = PrefillConfig(512, EvictionConfig(budget_tokens=None, positions="original"))
    prefill(model, token_ids, config, scorer)
    return scorer.statistics()


def _file_name(model: LoadedModel) -> str:
    raw = "".join(f"{k}={v};" for k, v in sorted(model.fingerprint.items()))
    return f"query-statistics-{hashlib.sha256(raw.encode()).hexdigest()[:16]}.safetensors"


def _load(path: Path, model: LoadedModel) -> QueryStatistics | None:
    """The statistics in a file, or None if it is damaged: its name says that they are this model's.

    Gathering them takes one short reading, so there is nothing for the user to decide.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except SafetensorError:
        return None
    g = model.geometry
    mean_shape = (g.n_layers, g.n_q_heads, g.head_dim)
    expected = {"mean": mean_shape, "covariance": (*mean_shape, g.head_dim)}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected:
        return None
    return QueryStatistics(tensors["mean"], tensors["covariance"])


def _save(path: Path, statistics: QueryStatistics) -> None:
    tensors = {"mean": statistics.mean, "covariance": statistics.covariance}
    write_tensors(path, tensors, "The query statistics of a model")
