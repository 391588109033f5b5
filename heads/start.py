"""Heads that a training goes on from: those of the model that is trained for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ScorerUnavailable
from engine.registry import find
from heads.retaining import HeadScorer, load_heads

if TYPE_CHECKING:
    from engine.loader import LoadedModel


def load_start(path: Path, model: LoadedModel) -> HeadScorer:
    """The heads in a file, for `train` to go on from.

    Raises ScorerUnavailable if they cannot be loaded, or if their card names another model; heads
    that name none are taken.
    """
    found = load_heads(path, model)
    made_for = found.card.base_model
    if made_for and _known_as(made_for) != _known_as(model.name):
        raise ScorerUnavailable(
            f"The heads in {path.name} were made for {made_for}, not for {model.name}.",
            f"Go on from heads of {model.name}, or name {made_for} as the model.",
        )
    return found


def _known_as(name: str) -> str:
    """One name for all that a known model goes by."""
    spec = find(name)
    return name if spec is None else spec.name
