"""A session file from anywhere: tensors of another form are refused, whatever their sums say."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from engine import manifest as manifests
from engine.errors import SnapshotError
from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig, prefill
from engine.quantisation import QuantConfig
from engine.scorers.recency import RecencyScorer
from engine.snapshot import load_snapshot, save_snapshot
from tests.fakes import tiny_model, tokens

BENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "one number": lambda t: t.reshape(-1)[0].clone(),
    "nothing": lambda t: t[:0].clone(),
    "one row less": lambda t: t[:-1].clone(),
    "64-bit integers": lambda t: t.to(torch.int64),
    "truth values": lambda t: t.bool(),
    "a dimension more": lambda t: t[None].clone(),
    "all alike": lambda t: torch.full_like(t, 120),
    "all below zero": lambda t: torch.full_like(t, -5) if t.dtype.is_signed else t.clone(),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of codes."""
    model: Any = tiny_model()
    folder = tmp_path_factory.mktemp("snapshots") / "good"
    quant = QuantConfig(8, 4)
    config = PrefillConfig(64, EvictionConfig(100, "global"), quant=quant)
    cache = prefill(model, tokens(300), config, RecencyScorer())
    save_snapshot(folder, cache, model=model, scorer="recency", config=config, extra={})
    return folder


def sealed(good: Path, place: Path, name: str, parts: dict[str, Tensor]) -> Path:
    """The snapshot with other tensors in one file, and sums that fit them."""
    shutil.copytree(good, place)
    data = save(parts)
    (place / name).write_bytes(data)
    manifest = json.loads((place / manifests.MANIFEST_NAME).read_text())
    manifest.pop("digest")
    manifest["files"][name] = {"nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifests.write(place, manifest)
    return place


@pytest.mark.parametrize("bend", BENDS)
def test_a_tensor_of_another_form_is_refused_or_harmless(
    bend: str, good: Path, tmp_path: Path
) -> None:
    model: Any = tiny_model()
    refused = 0
    for name in sorted(p.name for p in good.glob("*.safetensors")):
        whole = load((good / name).read_bytes())
        for key in (k for k in whole if not k.startswith("001.")):
            parts = {**whole, key: BENDS[bend](whole[key])}
            folder = sealed(good, tmp_path / f"{name}-{key}", name, parts)
            try:
                load_snapshot(folder, model=model)
            except SnapshotError:
                refused += 1
    assert refused > 8


@pytest.mark.parametrize("key", ["000.keys.odd", "odd", "x.keys"])
def test_a_tensor_of_no_known_name_is_refused(key: str, good: Path, tmp_path: Path) -> None:
    name = "state.safetensors"
    parts = {**load((good / name).read_bytes()), key: torch.zeros(3)}
    with pytest.raises(SnapshotError, match="no known name"):
        load_snapshot(sealed(good, tmp_path / "x", name, parts), model=tiny_model())  # type: ignore[arg-type]
