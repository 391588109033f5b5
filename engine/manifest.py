"""The manifest of a snapshot: what it says, how it is written, and what makes it trustworthy."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cache import DocCache
from engine.errors import SnapshotCorrupt, SnapshotMismatch
from engine.geometry import ModelGeometry
from engine.manifest_form import SIDES, fault_of
from engine.prefill import PrefillConfig
from engine.quantisation import RECENT_TOKENS

if TYPE_CHECKING:
    from engine.loader import LoadedModel

FORMAT = "longread-snapshot"
# 1 knew no quantised entries, 2 stored positions, scores and logits in full, 3 all floats.
VERSION = 4
MANIFEST_NAME = "manifest.json"
_MAX_MANIFEST_BYTES = 64 * 1024 * 1024


def describe(
    cache: DocCache,
    *,
    model: LoadedModel,
    scorer: str,
    config: PrefillConfig,
    extra: dict[str, Any],
    files: dict[str, dict[str, Any]],
    tensors: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Everything a later load must know or compare, as plain JSON values."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": model.name,
        "fingerprint": dict(model.fingerprint),
        "geometry": asdict(cache.geometry),
        "positions_mode": cache.positions_mode,
        "complete": cache.frozen,
        "n_seen": cache.n_seen,
        "token_ids_sha256": hashlib.sha256(cache.token_ids.numpy().tobytes()).hexdigest(),
        "offsets": [list(layer.offsets) for layer in cache.layers],
        "scorer": scorer,
        "chunk_tokens": config.chunk_tokens,
        "eviction": asdict(config.eviction),
        "n_coded": {
            side: [list(getattr(layer, side).n_coded) for layer in cache.layers] for side in SIDES
        },
        "quantisation": {**asdict(cache.quant), "dtype": str(cache.layers[0].keys.fine.dtype)},
        "files": files,
        "tensors": tensors,
        "extra": extra,
    }


def write(folder: Path, manifest: dict[str, Any]) -> Path:
    """Write the manifest with its own digest inside; returns the file."""
    path = folder / MANIFEST_NAME
    sealed = {**manifest, "digest": _digest(manifest)}
    path.write_text(json.dumps(sealed, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def read(folder: Path) -> dict[str, Any]:
    """Read and verify the manifest itself; one of an earlier version is returned as of this one.

    Raises SnapshotCorrupt if it is missing, unreadable, altered or of another form;
    SnapshotMismatch if it was written by another version of the format.
    """
    path = folder / MANIFEST_NAME
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise SnapshotCorrupt(MANIFEST_NAME, "is too large to be a manifest")
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SnapshotCorrupt(MANIFEST_NAME, "is missing") from None
    except (ValueError, OSError, RecursionError) as error:
        raise SnapshotCorrupt(MANIFEST_NAME, f"cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise SnapshotCorrupt(MANIFEST_NAME, "is not a snapshot's manifest")
    if not _unsealed(manifest):
        raise SnapshotCorrupt(MANIFEST_NAME, "was altered after it was written")
    version = manifest.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise SnapshotMismatch("version", version, VERSION)
    fault = fault_of(manifest, quantised=version > 1)
    if fault is not None:
        raise SnapshotCorrupt(MANIFEST_NAME, fault)
    if version == 1:
        manifest = _from_version_1(manifest)
    # The tensors of versions 2 and 3 tell by their names how they are stored.
    return {**manifest, "version": VERSION}


def _from_version_1(manifest: dict[str, Any]) -> dict[str, Any]:
    """Before entries could be quantised: every one of them is fine."""
    none = [[0] * (len(row) - 1) for row in manifest["offsets"]]
    quantisation = {**manifest["quantisation"], "recent_tokens": RECENT_TOKENS}
    coded = dict.fromkeys(SIDES, none)
    return {**manifest, "n_coded": coded, "quantisation": quantisation}


def check_fit(manifest: dict[str, Any], model: LoadedModel, expect: dict[str, Any]) -> None:
    """Compare what the snapshot was made with against what is here; names the first difference."""
    for key, wanted in model.fingerprint.items():
        stored = manifest["fingerprint"].get(key)
        if stored != wanted:
            raise SnapshotMismatch(key, _short(stored), _short(wanted))
    if manifest["geometry"] != asdict(model.geometry):
        raise SnapshotMismatch("geometry", manifest["geometry"], asdict(model.geometry))
    for key, wanted in expect.items():
        stored = manifest["extra"].get(key, manifest.get(key))
        if stored != wanted:
            raise SnapshotMismatch(key, _short(stored), _short(wanted))


def check_shapes(manifest: dict[str, Any], geometry: ModelGeometry) -> None:
    """Bounds of every size in the manifest, before anything is allocated for it."""
    offsets = manifest["offsets"]
    sound = len(offsets) == geometry.n_layers and all(
        len(row) == geometry.n_kv_heads + 1
        and row[0] == 0
        and all(b >= a for a, b in pairwise(row))
        for row in offsets
    )
    if not sound:
        raise SnapshotCorrupt(MANIFEST_NAME, "holds impossible entry counts")
    coded = manifest["n_coded"]
    sound = all(
        len(rows) == len(offsets)
        and all(
            len(row) == geometry.n_kv_heads
            and all(0 <= m <= b - a for m, (a, b) in zip(row, pairwise(lengths), strict=True))
            for row, lengths in zip(rows, offsets, strict=True)
        )
        for rows in coded.values()
    )
    if not sound:
        raise SnapshotCorrupt(MANIFEST_NAME, "holds impossible counts of quantised entries")
    if any(b - a > manifest["n_seen"] for row in offsets for a, b in pairwise(row)):
        raise SnapshotCorrupt(MANIFEST_NAME, "holds more entries than tokens")


def _unsealed(manifest: dict[str, Any]) -> bool:
    """Take the digest out of a manifest; whether it was that of the rest."""
    stated = manifest.pop("digest", None)
    try:
        return bool(stated == _digest(manifest))
    except (UnicodeEncodeError, RecursionError):  # nothing that was ever written
        return False


def _digest(manifest: dict[str, Any]) -> str:
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def _short(value: object) -> object:
    """Digests by their first twelve letters: enough to tell apart, short enough to read."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else value
