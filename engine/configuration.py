"""Reads a model folder's config.json and refuses, by name, what the engine cannot serve."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from engine.errors import ModelCorrupt
from engine.geometry import SERVED_FAMILIES, ModelGeometry, geometry_of


def read_config(folder: Path) -> tuple[Any, ModelGeometry]:
    """The transformers configuration in a folder, and its geometry.

    Raises UnsupportedArchitecture for families, attention kinds and rotary rules that cannot be
    served (also those transformers does not know), ModelCorrupt if the file makes no sense.
    """
    from transformers import AutoConfig

    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = raw.get("model_type", "unknown")
    except (OSError, ValueError, AttributeError) as problem:
        raise _corrupt(folder, problem) from problem
    if family not in SERVED_FAMILIES:
        geometry_of(SimpleNamespace(model_type=family))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return config, geometry_of(config)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise _corrupt(folder, problem) from problem


def _corrupt(folder: Path, problem: Exception) -> ModelCorrupt:
    reason = str(problem).strip().splitlines() or [type(problem).__name__]
    return ModelCorrupt(
        f"config.json of {folder} cannot be read: {reason[0]}", "Download the model again."
    )
