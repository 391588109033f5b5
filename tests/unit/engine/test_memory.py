"""Memory arithmetic against figures worked out by hand, and the choice of weight formats."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.memory import rss_bytes
from engine import weights as formats
from engine.errors import InvalidSetting
from engine.geometry import ModelGeometry
from engine.memory import available_memory, fits, give_back_freed, terms, total
from engine.numeric import Choice
from engine.registry import find
from engine.weights import choose_weights, weights_bytes

GIB = 2**30


def geometry(name: str) -> ModelGeometry:
    spec = find(name)
    assert spec is not None
    return spec.geometry


@pytest.mark.parametrize(
    ("name", "budget", "gib"),
    [
        ("llama-3.1-8b", 131_072, 16.0),
        ("llama-3.1-8b", 6_000, 0.73),
        ("llama-3.1-8b", 16_384, 2.0),
        ("phi-3-mini-128k", 131_072, 48.0),
        ("phi-3-mini-128k", 6_000, 2.2),
        ("qwen3-4b", 131_072, 18.0),
        ("qwen3-8b", 6_000, 0.82),
    ],
)
def test_the_cache_term_is_the_published_arithmetic(name: str, budget: int, gib: float) -> None:
    cache = terms(geometry(name), 0, budget, 1)["kv_cache"]
    assert cache / GIB == pytest.approx(gib, rel=0.005)


def test_four_bits_hold_three_and_a_half_times_the_entries() -> None:
    shape = geometry("llama-3.1-8b")
    wide = terms(shape, 0, 6000, 1)["kv_cache"]
    narrow = terms(shape, 0, 6000, 1, kv_bytes_per_value=4.5 / 8)["kv_cache"]
    assert wide / narrow == pytest.approx(3.56, abs=0.01)
    assert narrow / GIB == pytest.approx(0.21, abs=0.005)


def test_terms_of_a_tiny_model_by_hand() -> None:
    tiny = ModelGeometry(2, 4, 2, 8, 16, 128, intermediate_size=32, vocab_size=100)
    parts = terms(tiny, 1000, 10, 3, compute_bytes=4)
    assert parts["weights"] == 1000
    assert parts["kv_cache"] == 10 * 2 * 2 * 2 * 8 * 2
    assert parts["kv_index"] == 10 * 2 * 2 * 8
    assert parts["chunk_kv"] == 3 * 2 * 2 * 2 * 8 * 4
    assert parts["activations"] == 3 * ((4 * 16 + 3 * 32 + 2 * 32 + 2 * 16) * 4 + 4 * (32 + 16))
    assert parts["attention"] == 2 * 4 * 3 * 2 * 13
    assert parts["logits"] == 2 * 4 * 100


def test_attention_in_tiles_holds_a_stretch_and_what_queries_have() -> None:
    tiny = ModelGeometry(2, 4, 2, 8, 16, 128, intermediate_size=32, vocab_size=100)
    parts = terms(tiny, 1000, 10, 3, compute_bytes=4, in_tiles=True)
    assert parts["attention"] == 8 * (2 * 13 * (4 + 4) + 3 * 4 * 3 * 2)
    whole = terms(tiny, 1000, 10, 3, compute_bytes=4)
    assert {name for name in parts if parts[name] != whole[name]} == {"attention"}
    shape = geometry("qwen2.5-coder-0.5b")
    short, long = (terms(shape, 1, n, 1024, in_tiles=True) for n in (16_384, 32_768))
    assert short["attention"] == long["attention"]


def test_every_term_grows_with_what_it_depends_on() -> None:
    shape = geometry("qwen2.5-coder-0.5b")
    small, large = terms(shape, 1, 1000, 512), terms(shape, 1, 2000, 1024)
    for name in ("kv_cache", "kv_index", "chunk_kv", "activations", "attention"):
        assert large[name] > small[name], name
    assert fits(small, total(small)) and not fits(small, total(small) - 1)


def test_weight_formats_of_an_8b_model() -> None:
    shape = geometry("llama-3.1-8b")
    untied = {fmt: weights_bytes(shape, fmt, tied=False) for fmt in formats.LINEAR_BYTES}
    assert untied["bf16"] == pytest.approx(2 * 8.03e9, rel=0.001)
    assert untied["fp32"] == 2 * untied["bf16"]
    assert untied["int8"] / GIB == pytest.approx(8.5, abs=0.2)
    assert untied["nf4"] / GIB == pytest.approx(5.3, abs=0.2)


def test_some_memory_is_available_here() -> None:
    assert 2**20 < available_memory("cpu") < 2**62


def measured(name: str) -> Choice:
    return Choice(name, {}, f"{name} reads faster here.")


def test_auto_takes_the_measured_format_unless_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape = geometry("llama-3.1-8b")
    monkeypatch.setattr(formats, "pick_format", lambda file: measured("fp32"))
    monkeypatch.setattr(formats, "available_memory", lambda device: 64 * GIB)
    choice = choose_weights("auto", "cpu", shape)
    assert (choice.weights, choice.compute_dtype) == ("fp32", torch.float32)
    monkeypatch.setattr(formats, "available_memory", lambda device: 24 * GIB)
    choice = choose_weights("auto", "cpu", shape)
    assert (choice.weights, choice.compute) == ("bf16", "bf16") and "GiB" in choice.reason


def test_packed_formats_compute_in_the_measured_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "pick_format", lambda file: measured("fp32"))
    monkeypatch.setattr(formats, "check_bitsandbytes", lambda weights: None)
    choice = choose_weights("nf4", "cpu", geometry("qwen3-4b"))
    assert (choice.weights, choice.compute) == ("nf4", "fp32")


@pytest.mark.parametrize(
    ("capability", "free_gib", "expected"),
    [((8, 6), 24, ("bf16", "bf16")), ((8, 6), 8, ("nf4", "bf16")), ((7, 5), 48, ("fp32", "fp32"))],
)
def test_on_a_gpu_bf16_where_it_fits(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    free_gib: int,
    expected: tuple[str, str],
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(formats, "available_memory", lambda device: free_gib * GIB)
    monkeypatch.setattr(formats, "check_bitsandbytes", lambda weights: None)
    choice = choose_weights("auto", "cuda", geometry("llama-3.1-8b"), tied=False)
    assert (choice.weights, choice.compute) == expected


def test_a_format_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="fp16"):
        choose_weights("fp16", "cpu", geometry("qwen3-4b"))


def test_without_bitsandbytes_its_formats_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidSetting, match="bitsandbytes"):
        formats.check_bitsandbytes("nf4")


@pytest.mark.parametrize("name", ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"])
@pytest.mark.parametrize(("given", "expected"), [(None, "64"), ("300", "300")])
def test_few_shapes_of_products_are_remembered_unless_somebody_says_otherwise(
    name: str, given: str | None, expected: str
) -> None:
    env = {k: v for k, v in os.environ.items() if k != name} | ({name: given} if given else {})
    code = f"import engine, os; print(os.environ['{name}'])"
    made = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert made.stdout.strip() == expected, made.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be asked to")
def test_what_was_freed_is_given_back() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library is not glibc")
    blocks = [torch.ones(8192) for _ in range(3000)]
    above = torch.ones(8192)  # keeps the library from shrinking its heap by itself
    del blocks
    before = rss_bytes()
    give_back_freed()
    assert rss_bytes() < before - (60 << 20)
    assert above.sum() == 8192
