"""Heads that others published: fetched once, checked, converted, kept beside the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.hub import fetch_file
from engine.registry import find
from heads.retaining import load_heads, save_heads

if TYPE_CHECKING:
    from engine.loader import LoadedModel


def published_heads(model: LoadedModel, state_dir: Path | None) -> Path | None:
    """The converted file of a model's published Locret heads; None if none are known.

    Raises ModelDownloadFailed if they cannot be fetched, ScorerUnavailable if they do not fit.
    """
    spec = find(model.name)
    if spec is None or not spec.heads or state_dir is None:
        return None
    source = fetch_file(spec.heads, (".bin", ".safetensors"), state_dir.parent)
    return convert(source, model, state_dir / f"{spec.name}.locret.safetensors")


def convert(source: Path, model: LoadedModel, target: Path) -> Path:
    """Read a published file strictly and write it in our format."""
    scorer = load_heads(source, model)
    save_heads(target, scorer.head, scorer.card)
    return target
