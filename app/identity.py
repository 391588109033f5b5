"""What makes two readings the same: a session's name follows from all that shaped it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from app.prompts import LAYOUT_VERSION

if TYPE_CHECKING:
    from engine.loader import LoadedModel
    from engine.prefill import PrefillConfig
    from engine.scoring import Scorer

ID_LETTERS = 24


def identity_of(
    sha256: str,
    pages: tuple[int, int],
    model: LoadedModel,
    config: PrefillConfig,
    scorer: Scorer,
    parser_version: str,
    read_twice: bool = False,
) -> dict[str, Any]:
    """Everything that shapes a cache, as plain JSON values.

    The model's fingerprint names the format of its weights too: a document read in bf16 and in nf4
    makes two sessions. A reading without a second one, a refit or quantised entries has no field
    of it, so that sessions from before there was such a choice keep their names; and a finished one
    whose last 128 tokens are in 16 bits, as they once stayed, is as good as one of today.
    """
    from dataclasses import asdict

    eviction = asdict(config.eviction)
    if eviction.get("profile") is not None:
        profile = json.dumps(eviction["profile"])
        eviction["profile"] = hashlib.sha256(profile.encode()).hexdigest()
    if eviction.pop("refit"):
        from engine.refit import REFIT_KEY
        from heads import second_reading

        eviction["refit"] = second_reading.REFIT_KEY if read_twice else REFIT_KEY
    identity = {
        "document": sha256,
        "pages": list(pages),
        "parser": parser_version,
        "layout": LAYOUT_VERSION,
        "model": dict(model.fingerprint),
        "scorer": scorer.digest(),
        "chunk_tokens": config.chunk_tokens,
        "kv_dtype": config.kv_dtype,
        "eviction": eviction,
    }
    if config.quant.on:
        identity["quantisation"] = asdict(config.quant)
    if read_twice:
        from heads.second_reading import FIRST_PASS_FACTOR, PIECE_TOKENS, REPLAY_SHARE

        second = {
            "first_pass_factor": FIRST_PASS_FACTOR,
            "piece_tokens": PIECE_TOKENS,
            "replay_share": REPLAY_SHARE,
        }
        identity["second_reading"] = second
    return identity


def session_id_of(identity: dict[str, Any]) -> str:
    """The session's name: the first letters of the identity's SHA-256."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:ID_LETTERS]


def flat(identity: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """An identity with nested names joined by dots, so that two can be compared field by field."""
    fields: dict[str, Any] = {}
    for name, value in identity.items():
        if isinstance(value, dict):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields
