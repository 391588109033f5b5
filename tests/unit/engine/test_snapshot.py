"""A snapshot goes on decoding as if nothing had happened, and says when it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine import snapshot
from engine.cache import DocCache
from engine.errors import NotEnoughDisk, PrefillStopped, SnapshotCorrupt, SnapshotMismatch
from engine.eviction import EvictionConfig
from engine.generate import Sampling, generate
from engine.prefill import PrefillConfig, prefill
from engine.scorers.keydiff import KeyDiffScorer
from engine.snapshot import check_files, load_snapshot, save_snapshot
from engine.stored_floats import packed_floats
from tests.fakes import TinyModel, tiny_model, tokens

EVICTION = EvictionConfig(
    budget_tokens=40, allocation="global", stabilizer_tokens=8, local_tokens=4
)
CONFIG = PrefillConfig(32, EVICTION)
TEXT = tokens(300)


def saved(folder: Path, model: TinyModel) -> DocCache:
    cache = prefill(model, TEXT, CONFIG, KeyDiffScorer())
    save_snapshot(folder, cache, model=model, scorer="keydiff", config=CONFIG, extra={"doc": "abc"})
    return cache


def answer(model: TinyModel, cache: DocCache) -> list[int]:
    return generate(model, cache.view(), tokens(5, 9), Sampling(max_new_tokens=20)).token_ids


def test_a_loaded_cache_decodes_the_same_tokens(tmp_path: Path) -> None:
    model = tiny_model()
    cache = saved(tmp_path / "s", model)
    loaded, manifest = load_snapshot(tmp_path / "s", model=model, expect={"doc": "abc"})
    assert answer(model, loaded) == answer(model, cache)
    assert loaded.nbytes == cache.nbytes
    assert manifest["extra"] == {"doc": "abc"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


def test_saving_again_replaces_the_old_one(tmp_path: Path) -> None:
    model = tiny_model()
    saved(tmp_path / "s", model)
    saved(tmp_path / "s", model)
    load_snapshot(tmp_path / "s", model=model)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_a_crash_between_the_renames_is_undone(tmp_path: Path) -> None:
    model = tiny_model()
    cache = saved(tmp_path / "s", model)
    (tmp_path / "s").rename(tmp_path / "s.old")
    loaded, _ = load_snapshot(tmp_path / "s", model=model)
    assert answer(model, loaded) == answer(model, cache)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("name", ["manifest.json", "layers-000.safetensors", "state.safetensors"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    model = tiny_model()
    saved(tmp_path / "s", model)
    path = tmp_path / "s" / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(SnapshotCorrupt, match=name):
        load_snapshot(tmp_path / "s", model=model)


@pytest.mark.parametrize("name", ["manifest.json", "layers-000.safetensors", "state.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_flipped_bit_is_refused_by_name(tmp_path: Path, name: str, share: float) -> None:
    model = tiny_model()
    saved(tmp_path / "s", model)
    path = tmp_path / "s" / name
    data = bytearray(path.read_bytes())
    data[int(share * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    with pytest.raises(SnapshotCorrupt, match=name):
        load_snapshot(tmp_path / "s", model=model)


@pytest.mark.parametrize("name", ["manifest.json", "layers-000.safetensors", "state.safetensors"])
def test_a_missing_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    model = tiny_model()
    saved(tmp_path / "s", model)
    (tmp_path / "s" / name).unlink()
    with pytest.raises(SnapshotCorrupt, match=name):
        load_snapshot(tmp_path / "s", model=model)


def test_another_model_is_refused_by_field(tmp_path: Path) -> None:
    model = tiny_model()
    saved(tmp_path / "s", model)
    other = tiny_model()
    other.fingerprint = {"weights": "other"}
    with pytest.raises(SnapshotMismatch, match="weights"):
        load_snapshot(tmp_path / "s", model=other)
    with pytest.raises(SnapshotMismatch, match="doc"):
        load_snapshot(tmp_path / "s", model=model, expect={"doc": "xyz"})


def test_the_probe_catches_a_model_that_only_claims_to_be_the_same(tmp_path: Path) -> None:
    saved(tmp_path / "s", tiny_model(seed=0))
    with pytest.raises(SnapshotCorrupt, match="probe"):
        load_snapshot(tmp_path / "s", model=tiny_model(seed=1))


def test_a_manifest_cannot_reach_outside(tmp_path: Path) -> None:
    model = tiny_model()
    saved(tmp_path / "s", model)
    path = tmp_path / "s" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("digest")
    manifest["files"]["../evil.safetensors"] = manifest["files"].pop("state.safetensors")
    snapshot.manifests.write(tmp_path / "s", manifest)
    with pytest.raises(SnapshotCorrupt, match="outside"):
        load_snapshot(tmp_path / "s", model=model)
    with pytest.raises(SnapshotCorrupt, match="outside"):
        check_files(tmp_path / "s")


@pytest.mark.parametrize("name", ["x" * 400, "nowhere.safetensors"])
def test_a_file_that_cannot_be_looked_at_is_damage(tmp_path: Path, name: str) -> None:
    saved(tmp_path / "s", tiny_model())
    check_files(tmp_path / "s")
    path = tmp_path / "s" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("digest")
    manifest["files"][name] = manifest["files"].pop("state.safetensors")
    snapshot.manifests.write(tmp_path / "s", manifest)
    with pytest.raises(SnapshotCorrupt, match=name):
        check_files(tmp_path / "s")


def test_a_single_altered_byte_is_seen_without_a_model(tmp_path: Path) -> None:
    saved(tmp_path / "s", tiny_model())
    check_files(tmp_path / "s")
    path = tmp_path / "s" / "layers-000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(SnapshotCorrupt, match=r"layers-000.*checksum"):
        check_files(tmp_path / "s")


def test_a_full_disk_is_announced_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    cache = prefill(model, TEXT, CONFIG, KeyDiffScorer())
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(snapshot.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(NotEnoughDisk, match="Saving the session needs"):
        save_snapshot(tmp_path / "s", cache, model=model, scorer="keydiff", config=CONFIG, extra={})
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_reading_goes_on_from_disk_to_the_same_cache(tmp_path: Path) -> None:
    model = tiny_model()
    whole = prefill(model, TEXT, CONFIG, KeyDiffScorer())
    done: list[int] = []
    with pytest.raises(PrefillStopped) as stopped:
        prefill(
            model,
            TEXT,
            CONFIG,
            KeyDiffScorer(),
            on_progress=lambda n, _: done.append(n),
            stop=lambda: len(done) >= 5,
        )
    save_snapshot(
        tmp_path / "p", stopped.value.cache, model=model, scorer="keydiff", config=CONFIG, extra={}
    )
    partial, manifest = load_snapshot(tmp_path / "p", model=model)
    assert not manifest["complete"] and partial.n_seen == 160
    resumed = prefill(model, TEXT, CONFIG, KeyDiffScorer(), resume=partial)
    for a, b in zip(whole.layers, resumed.layers, strict=True):
        assert a.offsets == b.offsets
        assert torch.equal(a.positions, b.positions)
        assert torch.equal(a.keys.fine, b.keys.fine)
    assert answer(model, resumed) == answer(model, whole)


def test_a_snapshot_that_stored_everything_in_full_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 2: positions, scores and all of the probe's logits as they are."""
    model = tiny_model()

    def in_full(positions: torch.Tensor, scores: torch.Tensor, *_: object, **__: object) -> object:
        return {"positions": positions, "scores": scores}

    with monkeypatch.context() as before:
        before.setattr(snapshot, "packed_entries", in_full)
        before.setattr(snapshot, "_SOME", slice(None))
        before.setattr(snapshot.manifests, "VERSION", 2)
        cache = saved(tmp_path / "s", model)
    loaded, manifest = load_snapshot(tmp_path / "s", model=model)
    assert manifest["version"] == 4, "read as what it is now"
    assert answer(model, loaded) == answer(model, cache)
    for a, b in zip(loaded.layers, cache.layers, strict=True):
        assert torch.equal(a.scores, b.scores) and torch.equal(a.positions, b.positions)


def test_a_snapshot_of_floats_as_they_are_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 3: keys and values whole."""
    model = tiny_model()
    with monkeypatch.context() as before:
        before.setattr(snapshot, "packed_floats", lambda name, rows: {name: rows})
        before.setattr(snapshot.manifests, "VERSION", 3)
        cache = saved(tmp_path / "s", model)
    loaded, manifest = load_snapshot(tmp_path / "s", model=model)
    assert manifest["version"] == 4 and answer(model, loaded) == answer(model, cache)


@pytest.mark.parametrize(
    "harm",
    [
        lambda parts: parts.pop("keys.high"),
        lambda parts: parts.update({"keys.high": parts["keys.high"][:-9]}),
        lambda parts: parts.update({"keys.low": parts["keys.low"][:-1]}),
        lambda parts: parts.update({"keys.low": parts["keys.low"][:0]}),
        lambda parts: parts.update({"keys.low": parts["keys.low"].float()}),
    ],
)
def test_packed_floats_that_do_not_fit_together_are_refused(
    harm: Callable[[dict[str, torch.Tensor]], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sealed like any other, as an imported file could be."""
    model = tiny_model()

    def harmed(name: str, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = packed_floats("keys", rows)
        assert set(parts) == {"keys.low", "keys.high"}
        if name == "001.keys":
            harm(parts)
        return {part.replace("keys", name): tensor for part, tensor in parts.items()}

    with monkeypatch.context() as patched:
        patched.setattr(snapshot, "packed_floats", harmed)
        patched.setattr("engine.stored_floats.LEAST_NBYTES", 0)
        saved(tmp_path / "s", model)
    with pytest.raises(SnapshotCorrupt):
        load_snapshot(tmp_path / "s", model=model)


@pytest.mark.parametrize("dtype", [["torch.float32"], {"a": 1}, 7, "torch.int8"])
def test_a_sealed_manifest_of_odd_floats_is_refused(
    dtype: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.stored_floats.LEAST_NBYTES", 0)
    model = tiny_model()
    saved(tmp_path / "s", model)
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    manifest.pop("digest")
    manifest["quantisation"]["dtype"] = dtype
    snapshot.manifests.write(tmp_path / "s", manifest)
    with pytest.raises(SnapshotCorrupt):
        load_snapshot(tmp_path / "s", model=model)


def test_files_are_packed_one_after_the_other_in_a_few_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packed copies of a large cache would double it; torch's threads would multiply."""
    monkeypatch.setattr("engine.stored_floats.LEAST_NBYTES", 0)
    monkeypatch.setattr(snapshot, "LAYERS_PER_FILE", 1)
    monkeypatch.setattr(snapshot.torch, "get_num_threads", lambda: 64)
    events: list[str] = []
    write, pack = snapshot._write_tensors, snapshot.packed_floats
    workers: list[int] = []
    pool = snapshot.ThreadPoolExecutor

    def noted(name: str, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        events.append(name)
        return pack(name, rows)

    def written(path: Path, parts: dict[str, torch.Tensor]) -> object:
        events.append(path.name)
        return write(path, parts)

    def counted(n: int) -> object:
        workers.append(n)
        return pool(n)

    monkeypatch.setattr(snapshot, "packed_floats", noted)
    monkeypatch.setattr(snapshot, "_write_tensors", written)
    monkeypatch.setattr(snapshot, "ThreadPoolExecutor", counted)
    saved(tmp_path / "s", tiny_model())
    assert sorted(events[:2]) == ["000.keys", "000.values"]
    assert events[2] == "layers-000.safetensors" and events[5] == "layers-001.safetensors"
    assert max(workers) <= 4


def test_a_finished_session_in_16_bits_is_smaller_than_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.stored_floats.LEAST_NBYTES", 0)
    model = tiny_model()
    cache = prefill(model, TEXT, CONFIG, KeyDiffScorer())
    sizes = []
    for goes_on in (True, False):
        kept = {"model": model, "scorer": "keydiff", "config": CONFIG, "extra": {}}
        save_snapshot(tmp_path / "s", cache, **kept, goes_on=goes_on)
        sizes.append(sum(p.stat().st_size for p in (tmp_path / "s").glob("layers-*")))
        loaded, _ = load_snapshot(tmp_path / "s", model=model)
        for a, b in zip(loaded.layers, cache.layers, strict=True):
            assert torch.equal(a.keys.fine, b.keys.fine)
            assert torch.equal(a.values.fine, b.values.fine)
        assert answer(model, loaded) == answer(model, cache)
    assert sizes[1] < 0.95 * sizes[0]


def test_scores_of_a_finished_session_are_kept_well_enough_to_prune_by(tmp_path: Path) -> None:
    model = tiny_model()
    cache = saved(tmp_path / "s", model)
    loaded, _ = load_snapshot(tmp_path / "s", model=model)
    for a, b in zip(loaded.layers, cache.layers, strict=True):
        assert torch.equal(a.positions, b.positions)
        torch.testing.assert_close(a.scores, b.scores, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "gaps", [torch.tensor(3, dtype=torch.uint16), torch.ones(999, dtype=torch.uint16)]
)
def test_gaps_of_another_size_are_refused(
    gaps: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()

    def odd(_: torch.Tensor, scores: torch.Tensor, *__: object, **___: object) -> object:
        return {"gaps": gaps.clone(), "scores": scores}

    with monkeypatch.context() as patched:
        patched.setattr(snapshot, "packed_entries", odd)
        saved(tmp_path / "s", model)
    with pytest.raises(SnapshotCorrupt):
        load_snapshot(tmp_path / "s", model=model)


def test_what_goes_on_keeps_its_scores_as_they_are(tmp_path: Path) -> None:
    model = tiny_model()
    cache = prefill(model, TEXT, CONFIG, KeyDiffScorer())
    for goes_on in (True, False):
        save_snapshot(
            tmp_path / "s",
            cache,
            model=model,
            scorer="keydiff",
            config=CONFIG,
            extra={},
            goes_on=goes_on,
        )
        loaded, _ = load_snapshot(tmp_path / "s", model=model)
        pairs = zip(loaded.layers, cache.layers, strict=True)
        assert all(torch.equal(a.scores, b.scores) for a, b in pairs) == goes_on
