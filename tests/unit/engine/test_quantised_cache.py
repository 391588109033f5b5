"""Entries in 8, 4 or 2 bits: quantised once, kept and dropped one by one, saved and restored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache import DocCache
from engine.errors import InvalidSetting, PrefillStopped, SnapshotCorrupt
from engine.eviction import EvictionConfig
from engine.generate import Sampling, forward, generate
from engine.geometry import ModelGeometry
from engine.prefill import PrefillConfig, prefill
from engine.pruning import pruned
from engine.quantisation import KV_BITS, TAIL_TOKENS, QuantConfig, parse_kv_bits
from engine.rows import Rows
from engine.scorers.uniform_random import RandomScorer
from engine.snapshot import load_snapshot, save_snapshot
from tests.fakes import tiny_model, tokens

N, RECENT = 300, 24
TEXT = tokens(N)
K8V4 = QuantConfig(8, 4, RECENT)


def config(quant: QuantConfig, chunk: int = 32, **changes: Any) -> PrefillConfig:
    base: dict[str, Any] = {"stabilizer_tokens": 8, "local_tokens": 4, "sink_tokens": 2}
    base |= {"budget_tokens": 60, "allocation": "global"}
    eviction = EvictionConfig(**{**base, **changes})
    return PrefillConfig(chunk, eviction, "fp16", quant)


def read(model: Any, quant: QuantConfig, chunk: int = 32, **changes: Any) -> DocCache:
    return prefill(model, TEXT, config(quant, chunk, **changes), RandomScorer(1))


def answer(model: Any, cache: DocCache) -> list[int]:
    return generate(model, cache.view(), tokens(5, 9), Sampling(max_new_tokens=20)).token_ids


def same(a: DocCache, b: DocCache) -> bool:
    for x, y in zip(a.layers, b.layers, strict=True):
        pairs = [(x.positions, y.positions)]
        for one, other in ((x.keys, y.keys), (x.values, y.values)):
            pairs += [
                (one.floats(h, torch.float32), other.floats(h, torch.float32)) for h in (0, 1)
            ]
        if not all(torch.equal(*pair) for pair in pairs):
            return False
    return True


def assert_settled(cache: DocCache, before: int, bits: tuple[int, int]) -> None:
    """Of every head exactly the entries at positions below `before` are codes."""
    for layer in cache.layers:
        for head in range(2):
            settled = int((layer.positions[layer.rows(head)] < before).sum())
            assert 0 < settled < layer.lengths[head]
            for rows, width in zip((layer.keys, layer.values), bits, strict=True):
                assert rows.n_coded[head] == (0 if width == 16 else settled)


@pytest.mark.parametrize("bits", [(8, 8), (8, 4), (4, 4), (2, 2), (16, 8), (8, 16)])
def test_what_fell_behind_the_newest_tokens_is_quantised_and_at_the_end_all_but_the_tail(
    bits: tuple[int, int],
) -> None:
    places: list[int] = []

    def look(cache: DocCache) -> None:
        if RECENT < cache.n_seen < N:
            places.append(cache.n_seen)
            assert_settled(cache, cache.n_seen - RECENT, bits)

    rules = config(QuantConfig(*bits, RECENT))
    cache = prefill(
        tiny_model(), TEXT, rules, RandomScorer(1), on_checkpoint=look, checkpoint_every_chunks=1
    )
    cache.check()
    assert len(places) > 2
    assert_settled(cache, N - TAIL_TOKENS, bits)


def test_a_document_that_is_all_recent_stays_in_16_bits() -> None:
    cache = read(tiny_model(), QuantConfig(4, 4, N))
    assert all(layer.keys.codes is layer.values.codes is None for layer in cache.layers)
    whole = read(tiny_model(), QuantConfig()).quantised(QuantConfig(4, 4, N))
    assert all(layer.keys.codes is layer.values.codes is None for layer in whole.layers)


def test_who_looks_at_whole_chunks_does_not_keep_the_end_from_settling() -> None:
    seen: list[int] = []
    cache = prefill(
        tiny_model(), TEXT, config(K8V4), RandomScorer(1), see_whole=lambda c: seen.append(c.n_seen)
    )
    assert seen[-1] == N
    assert_settled(cache, N - TAIL_TOKENS, (8, 4))


def test_fewer_bits_are_fewer_bytes_and_a_larger_error() -> None:
    model: Any = tiny_model(hidden_size=256, num_attention_heads=4)
    whole = read(model, QuantConfig(), chunk=N, budget_tokens=None)
    question = tokens(7, 3)
    expected = forward(model, whole.view(), question)
    sizes, errors = [whole.nbytes], []
    for bits in ((8, 8), (8, 4), (4, 4), (2, 2)):
        cache = read(model, QuantConfig(*bits, RECENT), chunk=N, budget_tokens=None)
        sizes.append(cache.nbytes)
        errors.append(float((forward(model, cache.view(), question) - expected).abs().max()))
    assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors)
    assert errors[0] < 0.02 * float(expected.max() - expected.min())


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 90), st.sampled_from([(8, 8), (8, 4), (2, 2)]))
def test_an_entry_is_quantised_once(chunk: int, bits: tuple[int, int]) -> None:
    """Its codes after any number of chunks are those of the one time it settled."""
    model: Any = tiny_model()
    seen: dict[tuple[int, int, int], bytes] = {}

    def look(cache: DocCache) -> None:
        for number, layer in enumerate(cache.layers):
            for head in range(2):
                codes = layer.values.codes
                places = layer.positions[layer.rows(head)].tolist()
                for row in range(layer.values.n_coded[head]):
                    assert codes is not None
                    at = layer.values.codes_of(head).start + row
                    data = bytes(codes.codes[at].tolist()) + codes.step[at].numpy().tobytes()
                    key = (number, head, places[row])
                    assert seen.setdefault(key, data) == data

    rules = config(QuantConfig(*bits, RECENT), chunk)
    cache = prefill(
        model, TEXT, rules, RandomScorer(1), on_checkpoint=look, checkpoint_every_chunks=1
    )
    look(cache)
    cache.check()
    assert seen


def test_a_reading_that_was_cut_off_goes_on_to_the_same_cache(tmp_path: Path) -> None:
    model: Any = tiny_model()
    rules = config(K8V4)
    done: list[int] = []
    with pytest.raises(PrefillStopped) as stopped:
        prefill(
            model, TEXT, rules, RandomScorer(1),
            on_progress=lambda n, _: done.append(n), stop=lambda: len(done) == 5,
        )  # fmt: skip
    save_snapshot(
        tmp_path / "s", stopped.value.cache, model=model, scorer="r", config=rules, extra={}
    )
    beginning, _ = load_snapshot(tmp_path / "s", model=model)
    finished = prefill(model, TEXT, rules, RandomScorer(1), resume=beginning)
    assert same(finished, read(model, K8V4)) and finished.quant == K8V4
    beginning, _ = load_snapshot(tmp_path / "s", model=model)
    with pytest.raises(InvalidSetting, match="other bits"):
        prefill(model, TEXT, config(QuantConfig()), RandomScorer(1), resume=beginning)


@pytest.mark.parametrize("bits", [(8, 8), (8, 4), (4, 4), (2, 2)])
def test_a_snapshot_goes_on_decoding_and_is_smaller(bits: tuple[int, int], tmp_path: Path) -> None:
    model: Any = tiny_model(hidden_size=256)
    fine, quant = QuantConfig(), QuantConfig(*bits, RECENT)
    sizes = []
    for name, how in (("fine", fine), ("coded", quant)):
        cache = read(model, how)
        sizes.append(
            save_snapshot(
                tmp_path / name, cache, model=model, scorer="r", config=config(how), extra={}
            )
        )
        loaded, manifest = load_snapshot(tmp_path / name, model=model)
        assert same(loaded, cache) and loaded.nbytes == cache.nbytes
        assert answer(model, loaded) == answer(model, cache)
        assert manifest["quantisation"]["k_bits"] == how.k_bits
    assert sizes[1] < sizes[0]


def test_a_snapshot_of_the_first_version_is_read(tmp_path: Path) -> None:
    from engine import manifest as manifests

    model: Any = tiny_model()
    cache = read(model, QuantConfig())
    folder = tmp_path / "s"
    save_snapshot(folder, cache, model=model, scorer="r", config=config(QuantConfig()), extra={})
    old = manifests.read(folder)
    del old["n_coded"]
    old |= {"version": 1, "quantisation": {"k_bits": 16, "v_bits": 16, "dtype": "torch.float16"}}
    manifests.write(folder, old)
    loaded, _ = load_snapshot(folder, model=model)
    assert same(loaded, cache)


@pytest.mark.parametrize("wrong", [{"keys": []}, None, "many"])
def test_impossible_counts_are_refused(wrong: Any, tmp_path: Path) -> None:
    from engine import manifest as manifests

    model: Any = tiny_model()
    folder = tmp_path / "s"
    save_snapshot(folder, read(model, K8V4), model=model, scorer="r", config=config(K8V4), extra={})
    manifest = manifests.read(folder)
    if wrong == "many":
        manifest["n_coded"]["keys"][0][0] += 10**6
    else:
        manifest["n_coded"] = wrong or {"keys": [[1]], "values": [[1]]}
    manifests.write(folder, manifest)
    with pytest.raises(SnapshotCorrupt, match="quantised"):
        load_snapshot(folder, model=model)


@pytest.mark.parametrize("bits", [(8, 8), (8, 4), (4, 4), (2, 2)])
def test_views_fork_and_crop_on_it(bits: tuple[int, int]) -> None:
    model: Any = tiny_model()
    cache = read(model, QuantConfig(*bits, RECENT))
    view = cache.view()
    forward(model, view, tokens(6, 4))
    twin = view.fork()
    expected = forward(model, view, [5])
    forward(model, twin, tokens(3, 8))
    twin.crop(6)
    torch.testing.assert_close(forward(model, twin, [5]), expected)


@pytest.mark.parametrize("bits", [(8, 4), (2, 2)])
def test_pruning_takes_rows_and_changes_none(bits: tuple[int, int]) -> None:
    cache = read(tiny_model(), QuantConfig(*bits, RECENT))
    small = pruned(cache, None, replace(config(K8V4).eviction, budget_tokens=30))
    small.check()
    for whole, part in zip(cache.layers, small.layers, strict=True):
        for head in range(2):
            places = part.positions[part.rows(head)]
            index = torch.searchsorted(whole.positions[whole.rows(head)], places)
            for a, b in ((whole.keys, part.keys), (whole.values, part.values)):
                assert torch.equal(
                    a.floats(head, torch.float32)[index], b.floats(head, torch.float32)
                )


def test_quantising_a_finished_cache_is_what_one_chunk_gives() -> None:
    model: Any = tiny_model()
    one = read(model, K8V4, chunk=N, budget_tokens=None)
    other = read(model, QuantConfig(), chunk=N, budget_tokens=None).quantised(K8V4)
    assert same(one, other)


def test_a_refit_of_quantised_values_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="rounded"):
        config(K8V4, refit=True)
    config(QuantConfig(8, 16), refit=True)


def test_a_head_without_rows_is_no_trouble() -> None:
    rows = Rows.of_floats(torch.randn(5, 16), (0, 0, 5)).settled([0, 3], 4)
    assert rows.n_coded == (0, 3) and rows.floats(0, torch.float32).shape == (0, 16)
    none = rows.taken([torch.empty(0, dtype=torch.int64), torch.tensor([4])], [(0, 0), (0, 1)])
    none.check(16)
    assert len(none) == 1 and none.codes is None


def geometry(n_q_heads: int, n_kv_heads: int) -> ModelGeometry:
    return ModelGeometry(2, n_q_heads, n_kv_heads, 64, 64 * n_q_heads, 4096)


def test_what_users_write() -> None:
    wide, narrow = geometry(14, 2), geometry(8, 2)
    assert parse_kv_bits("4", wide) == QuantConfig(8, 4) == parse_kv_bits("k8v4", wide)
    assert parse_kv_bits("4", narrow) == QuantConfig(4, 4) == parse_kv_bits("k4v4", wide)
    assert parse_kv_bits("2", wide) == QuantConfig(8, 2)
    assert not parse_kv_bits("16").on and parse_kv_bits("k8v4").name == "k8v4"
    assert [parse_kv_bits(text).name for text in KV_BITS[:4]] == ["16", "8", "k8v4", "k8v2"]
    for quant in (QuantConfig(k, v) for k in (16, 8, 4, 2) for v in (16, 8, 4, 2)):
        assert parse_kv_bits(quant.name, wide) == quant  # what was chosen is what is read
    for wrong in ("3", "k8", "8v4", "", "k8v5", "kv"):
        with pytest.raises(InvalidSetting, match="kv-bits"):
            parse_kv_bits(wrong)


def test_bytes_as_planned_are_bytes_as_kept() -> None:
    model: Any = tiny_model(hidden_size=256)
    cache = read(model, QuantConfig(8, 4, 0), chunk=N, budget_tokens=None, local_tokens=0)
    numbers = 2 * N * model.geometry.n_slots * model.geometry.head_dim
    frame = 2 * 4 * model.geometry.n_slots * model.geometry.head_dim
    index = 8 * N * model.geometry.n_slots
    planned = QuantConfig(8, 4).bytes_per_value(model.geometry.head_dim) * numbers
    assert cache.nbytes == planned + frame + index


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    model: Any = tiny_model()
    folder = tmp_path / "s"
    save_snapshot(folder, read(model, K8V4), model=model, scorer="r", config=config(K8V4), extra={})
    found = json.loads((folder / "manifest.json").read_text())
    assert found["version"] == 4 and found["quantisation"]["recent_tokens"] == RECENT
