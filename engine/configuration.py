"""Reads a model folder's config.json and refuses, by name, what the engine cannot serve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from engine.errors import EngineError, ModelCorrupt
from engine.files import is_disk_full
from engine.geometry import SERVED_FAMILIES, ModelGeometry, check_counts, geometry_of


def read_config(folder: Path) -> tuple[Any, ModelGeometry]:
    """The transformers configuration in a folder, and its geometry.

    Raises UnsupportedArchitecture for families, attention kinds and rotary rules that cannot be
    served (also those transformers does not know), ModelCorrupt if the file makes no sense.
    """
    from transformers import AutoConfig

    with readable(folder, "config.json"):
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = raw.get("model_type", "unknown")
        if family not in SERVED_FAMILIES:
            geometry_of(SimpleNamespace(model_type=family))
        check_counts(raw)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return config, geometry_of(config)


@contextmanager
def readable(folder: Path, what: str) -> Iterator[None]:
    """Inside, whatever a library says of a damaged file is ModelCorrupt.

    There is no list of what they raise: a number of the wrong kind fails wherever it is used.
    Refusals of our own, a full disk and memory that ran out stay what they are.
    """
    try:
        yield
    except (EngineError, MemoryError):
        raise
    except Exception as problem:
        if is_disk_full(problem):
            raise
        raise corrupt(folder, what, problem) from problem


def corrupt(folder: Path, what: str, problem: Exception) -> ModelCorrupt:
    """The refusal of one damaged part of a model folder, with the first line of the reason."""
    return ModelCorrupt(
        f"{what} of {folder} cannot be read: {first_line(problem)}", "Download the model again."
    )


def first_line(problem: Exception) -> str:
    """The first line of an error's text, or its class if it has none."""
    lines = str(problem).strip().splitlines() or [type(problem).__name__]
    return lines[0].rstrip(" :")
