"""A sealed manifest that is not what it should be is refused: the seal proves no origin."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import manifest as manifests
from engine.cache import DocCache
from engine.errors import SnapshotCorrupt, SnapshotError
from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig, prefill
from engine.quantisation import QuantConfig
from engine.scorers.recency import RecencyScorer
from engine.snapshot import load_snapshot, save_snapshot
from tests.fakes import tiny_model, tokens

Place = tuple[str | int, ...]
ODD = (None, True, -1, 7, 0.5, "x", [], {}, [[]], [None], {"a": None})
_kept = TemporaryDirectory()
FOLDER = Path(_kept.name) / "s"


@cache
def model() -> Any:
    return tiny_model()


@cache
def good() -> tuple[dict[str, Any], DocCache]:
    """A snapshot in FOLDER: its manifest without the seal, and its cache."""
    how = PrefillConfig(
        32,
        EvictionConfig(budget_tokens=40, allocation="global"),
        quant=QuantConfig(8, 4, 16),
    )
    found = prefill(model(), tokens(150), how, RecencyScorer())
    save_snapshot(FOLDER, found, model=model(), scorer="r", config=how, extra={"a": [1]})
    manifest = json.loads((FOLDER / "manifest.json").read_text())
    manifest.pop("digest")
    return manifest, found


def loaded(manifest: dict[str, Any]) -> DocCache:
    """The cache under another manifest, sealed anew."""
    manifests.write(FOLDER, manifest)
    return load_snapshot(FOLDER, model=model(), expect={"a": [1]})[0]


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where everything inside a manifest stands."""
    if at:
        yield at
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*at, key))


def changed(manifest: dict[str, Any], at: Place, *value: Any) -> dict[str, Any]:
    """A copy with another value at a place, or nothing there."""
    found = copy.deepcopy(manifest)
    parent: Any = found
    for key in at[:-1]:
        parent = parent[key]
    if value:
        parent[at[-1]] = value[0]
    else:
        del parent[at[-1]]
    return found


def same(a: DocCache, b: DocCache) -> bool:
    pairs = list(zip(a.layers, b.layers, strict=True))
    return (
        (a.positions_mode, a.quant, a.frozen) == (b.positions_mode, b.quant, b.frozen)
        and torch.equal(a.token_ids, b.token_ids)
        and all(x.offsets == y.offsets for x, y in pairs)
        and all(x.keys.n_coded == y.keys.n_coded for x, y in pairs)
        and all(torch.equal(x.keys.fine, y.keys.fine) for x, y in pairs)
        and all(torch.equal(x.positions, y.positions) for x, y in pairs)
    )


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_whatever_is_missing_or_of_another_kind_loads_equal_or_is_refused(data: Any) -> None:
    manifest, expected = good()
    at = data.draw(st.sampled_from(sorted(places(manifest), key=str)))
    old: Any = manifest
    for key in at:
        old = old[key]
    other = [[value] for value in ODD if type(value) is not type(old)]
    value = data.draw(st.sampled_from([[], *other]))
    try:
        found = loaded(changed(manifest, at, *value))
    except SnapshotError:
        return
    assert same(found, expected)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_so_does_a_manifest_of_the_first_version(data: Any) -> None:
    manifest, _ = good()
    manifest = {**manifest, "version": 1}
    del manifest["n_coded"]
    at = data.draw(st.sampled_from([("offsets",), ("offsets", 0), ("quantisation",), ("n_seen",)]))
    value = data.draw(st.sampled_from([[], *([value] for value in ODD)]))
    with pytest.raises(SnapshotError):
        loaded(changed(manifest, at, *value))


MISSING = [
    "fingerprint", "geometry", "positions_mode", "complete", "n_seen", "token_ids_sha256",
    "offsets", "n_coded", "quantisation", "files", "tensors", "extra",
]  # fmt: skip


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_named(name: str) -> None:
    with pytest.raises(SnapshotCorrupt, match=f"has no {name}"):
        loaded(changed(good()[0], (name,)))


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (("positions_mode",), "x"),
        (("complete",), 1),
        (("n_seen",), -1),
        (("n_seen",), True),
        (("n_seen",), 2**31),
        (("offsets", 0, 1), -1),
        (("offsets", 0, 1), 1.0),
        (("offsets", 0), []),
        (("n_coded", "keys", 0, 0), -1),
        (("n_coded", "values"), [3]),
        (("quantisation", "k_bits"), 7),
        (("quantisation", "v_bits"), "8"),
        (("quantisation", "recent_tokens"), -1),
        (("quantisation", "dtype"), "x"),
        (("quantisation", "dtype"), None),
        (("files", "state.safetensors", "nbytes"), "8"),
        (("files", "state.safetensors", "sha256"), None),
        (("tensors", "token_ids"), 5),
        (("extra",), []),
    ],
)
def test_what_is_of_another_kind_is_named(at: Place, value: Any) -> None:
    with pytest.raises(SnapshotCorrupt, match=str(at[0])):
        loaded(changed(good()[0], at, value))


def test_offsets_that_fall_are_refused() -> None:
    manifest, _ = good()
    falling = [row[::-1] for row in manifest["offsets"]]
    with pytest.raises(SnapshotCorrupt, match="entry counts"):
        loaded({**manifest, "offsets": falling})


def test_an_unfinished_reading_that_says_it_is_complete_has_no_probe(tmp_path: Path) -> None:
    manifest, _ = good()
    whole = prefill(model(), tokens(64), how := PrefillConfig(32), RecencyScorer())
    whole.frozen = False
    save_snapshot(tmp_path / "p", whole, model=model(), scorer="r", config=how, extra={})
    manifest = manifests.read(tmp_path / "p")
    manifests.write(tmp_path / "p", {**manifest, "complete": True})
    with pytest.raises(SnapshotCorrupt, match="probe"):
        load_snapshot(tmp_path / "p", model=model())


@pytest.mark.parametrize("text", ["[" * 10**5, '{"format": "longread-snapshot", "a": "\\ud800"}'])
def test_json_that_cannot_be_taken_in_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(SnapshotCorrupt, match=r"manifest\.json"):
        manifests.read(tmp_path)
