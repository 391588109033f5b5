"""What a model answers with a whole recorded document before it: lessons that nobody wrote.

A true answer is one path through what the model might say; a reader gets the model's own. Answers
are greedy, and kept beside the recording.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.batch import generate_together
from engine.cache import DocCache, LayerCache
from engine.rows import Rows
from heads.recordings import Recording
from heads.train import keys_values

if TYPE_CHECKING:
    from engine.loader import LoadedModel

OWN_TOKENS = 24  # longest own answer


def recorded_cache(model: LoadedModel, recording: Recording) -> DocCache:
    """A document's whole cache, as its recorded hidden states give it; frozen."""
    cache = DocCache.empty(
        model.geometry,
        model.rotary,
        "original",
        compute_dtype=model.compute_dtype,
        kv_dtype=model.compute_dtype,
        device=torch.device(model.device),
    )
    n, n_kv = recording.n_tokens, model.geometry.n_kv_heads
    offsets = [n * head for head in range(n_kv + 1)]
    positions = torch.arange(n, dtype=torch.int32, device=model.device).repeat(n_kv)
    scores = torch.zeros(n * n_kv, device=model.device)
    cache.layers = [
        LayerCache(
            Rows.of_floats(k.flatten(0, 1), offsets),
            Rows.of_floats(v.flatten(0, 1), offsets),
            positions,
            scores,
        )
        for k, v in zip(*keys_values(model, recording.hidden), strict=True)
    ]
    cache.token_ids = torch.zeros(n, dtype=torch.int64)  # nobody asks which tokens they were
    return cache.freeze()


def own_answers(
    model: LoadedModel, recording: Recording, tails: Sequence[list[int]], path: Path
) -> list[list[int]]:
    """Greedy answers' tokens after each tail, with the token that ended them if one did.

    path  where answers to just these questions lie, or are written to
    """
    key = hashlib.sha256(json.dumps([OWN_TOKENS, list(tails)]).encode()).hexdigest()
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["key"] == key:
            return [list(ids) for ids in known["answers"]]
    cache = recorded_cache(model, recording)
    found = generate_together(model, [cache.view() for _ in tails], tails, OWN_TOKENS)
    stop = min(model.stop_token_ids, default=None)
    ended = [ids if len(ids) == OWN_TOKENS or stop is None else [*ids, stop] for ids in found]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps({"key": key, "answers": ended}), encoding="utf-8")
    temporary.replace(path)
    return ended
