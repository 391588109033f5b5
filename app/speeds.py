"""How fast documents were read on this machine, by the kind of reading: what plans go by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.paths import DataPaths

if TYPE_CHECKING:
    from app.reading import Job

FILE_NAME = "speeds.json"
# A shorter reading is over before its speed is that of a long one.
LEAST_TOKENS = 2048


def kind_of(job: Job) -> str:
    """Readings of one kind are about equally fast: same model, weights, device, threads, chunks;
    and where long texts are read from packed weights, long or not.
    """
    import torch

    from engine.trunk import LONG_TEXT_TOKENS

    model, chunk = job.model, job.settings.chunk_tokens
    threads = torch.get_num_threads()
    kind = f"{model.name}|{model.weights}|{model.device}|{threads} threads|{chunk} a chunk"
    short = model.reads_packed and len(job.prefix.token_ids) < LONG_TEXT_TOKENS
    return f"{kind}|short" if short else kind


def remember_speed(paths: DataPaths, job: Job, n_tokens: int, tok_s: float) -> None:
    """Note the speed of a reading that has ended, if it was long enough to tell."""
    from engine.files import read_json, remember

    if n_tokens >= LEAST_TOKENS and tok_s > 0:
        file = paths.root / FILE_NAME
        remember(file, {**(read_json(file) or {}), kind_of(job): tok_s})


def known_speed(paths: DataPaths, job: Job) -> float | None:
    """Tokens per second of the latest reading of this kind, or None."""
    from engine.files import read_json

    found = (read_json(paths.root / FILE_NAME) or {}).get(kind_of(job))
    return found if isinstance(found, float) and found > 0 else None
