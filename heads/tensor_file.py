"""Tensors that a long computation leaves on disk: written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from engine.files import disk_full, is_disk_full


def write_tensors(
    path: Path, tensors: dict[str, Tensor], what: str, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically; its folder is made.

    what    begins the sentence that says who filled the disk
    Raises  NotEnoughDisk if the disk is full; nothing half written is left on it
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata)
        temporary.replace(path)
    except (SafetensorError, OSError) as problem:
        if is_disk_full(problem):
            raise disk_full(what) from problem
        raise
    finally:
        temporary.unlink(missing_ok=True)  # there only if something failed
