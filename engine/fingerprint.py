"""Digests that tell two loaded models apart, so that a saved cache is never read by another one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from engine import gguf
from engine.files import cached_sha256
from engine.rotary import Rotary

# Written by whichever library saved the file; they change nothing a model computes.
VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures")


def fingerprint_of(
    folder: Path, weights: str, tokenizer: Any, rotary: Rotary, cache_dir: Path
) -> dict[str, str]:
    """Digests of weights (with their format), config, rotary, tokenizer and chat template.

    Taken from the files, not from library objects, so that an update of a library does not
    invalidate saved sessions. cache_dir remembers the digests of large files.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key in VOLATILE:
        config.pop(key, None)
    return {
        "weights": f"{weights}:{weights_digest(folder, cache_dir)}",
        "config": _digest(json.dumps(config, sort_keys=True)),
        "rotary": rotary.digest(),
        "tokenizer": _tokenizer_digest(folder, tokenizer),
        "chat_template": _digest(json.dumps(tokenizer.chat_template, sort_keys=True)),
    }


def weights_digest(folder: Path, cache_dir: Path) -> str:
    """SHA-256 of the GGUF a folder was converted from, or over all its safetensors files."""
    if (source := gguf.source_digest(folder)) is not None:
        return source
    files = sorted(folder.glob("*.safetensors"))
    lines = [f"{file.name} {cached_sha256(file, cache_dir)}" for file in files]
    return _digest("\n".join(lines))


def _tokenizer_digest(folder: Path, tokenizer: Any) -> str:
    file = folder / "tokenizer.json"
    if file.is_file():
        return hashlib.sha256(file.read_bytes()).hexdigest()
    return _digest(tokenizer.backend_tokenizer.to_str())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
