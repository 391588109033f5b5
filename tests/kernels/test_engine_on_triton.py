"""The engine on the Triton kernels: a document read and asked as on the CPU."""

from __future__ import annotations

import gc
import weakref
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from engine.captured import CapturedDecoder
from engine.eviction import EvictionConfig
from engine.fused import FusedLayer
from engine.generate import forward
from engine.lean import LeanDecoder
from engine.prefill import PrefillConfig, prefill
from engine.pruning import pruned
from engine.quantisation import QuantConfig
from engine.read_layer import ReadLayer
from engine.scorers.keydiff import KeyDiffScorer
from heads.retaining import HeadCard, HeadScorer, LocretHead, RetainingHead
from tests.fakes import tiny_model, tokens
from tests.kernels import aot

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if aot.interpret_without_gpu() != "cpu":
    reason = "interprets on the CPU; on a card test_engine_on_a_card has the engine run there"
    pytest.skip(reason, allow_module_level=True)

import kernels
from kernels import (
    triton_chunk,
    triton_quantise,
    triton_retaining,
    triton_selection,
)

KERNELS: dict[Any, tuple[str, ...]] = {
    triton_chunk: ("attend_chunk",),
    triton_quantise: ("quantise", "dequantise"),
    triton_retaining: ("retaining_scores", "locret_scores"),
    triton_selection: ("keep_mask", "compact"),
}

TEXT, QUESTION = tokens(90), tokens(3, 5)
BITS = [(16, 16), (8, 4), (2, 2)]


def read(model: Any, bits: tuple[int, int], positions: Any, scorer: Any = None) -> Any:
    eviction = EvictionConfig(
        40, "global", positions=positions, sink_tokens=2, stabilizer_tokens=4, local_tokens=4
    )
    quant = QuantConfig(*bits, recent_tokens=10)
    return prefill(
        model, TEXT, PrefillConfig(48, eviction, "fp16", quant), scorer or KeyDiffScorer()
    )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("positions", ["original", "compact", "shared"])
def test_the_logits_are_those_of_the_cpu(bits: tuple[int, int], positions: str) -> None:
    model: Any = tiny_model(hidden_size=256)  # heads of 64
    cache = read(model, bits, positions)
    assert isinstance(cache.view().entries(0), ReadLayer)
    expected = forward(model, cache.view(), QUESTION)
    cache._readable = []
    with kernels.force("triton"):
        view = cache.view()
        assert isinstance(view.entries(0), FusedLayer)
        found = forward(model, view, QUESTION)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("positions", ["original", "compact", "shared"])
def test_the_step_that_a_card_records_reads_codes_as_they_lie(
    bits: tuple[int, int], positions: str
) -> None:
    """Run anew in place of played: a tape holds torch's operations only, not these kernels."""
    model: Any = tiny_model(hidden_size=256)
    cache = read(model, bits, positions).freeze()
    lean = LeanDecoder(model, "same")

    def again(run: Any) -> Any:
        out = run()
        return (lambda: out.copy_(run())), out

    expected = [lean.forward(view, [t]) for view in [cache.view()] for t in QUESTION]
    cache._readable = []
    with kernels.force("triton"), torch.inference_mode():
        player, view = CapturedDecoder(lean, again), cache.view()
        assert isinstance(view.entries(0), FusedLayer)
        found = [player.forward(view, [t]) for t in QUESTION]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), atol=2e-3, rtol=2e-3)


def test_a_closed_document_gives_its_memory_back_at_once() -> None:
    cache = read(tiny_model(hidden_size=256), (8, 4), "original").freeze()
    with kernels.force("triton"):
        view = cache.view()
        assert isinstance(view.entries(0), FusedLayer)
    gone = weakref.ref(cache)
    gc.disable()
    try:
        del cache, view
        assert gone() is None
    finally:
        gc.enable()


def scorer_of(name: str, model: Any) -> Any:
    torch.manual_seed(3)
    kinds = {"retaining": RetainingHead, "locret": LocretHead}
    if name not in kinds:
        return KeyDiffScorer()
    head = kinds[name](model.geometry, width=40).requires_grad_(False)
    return HeadScorer(head, HeadCard(), "random")


def watch(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the Triton kernels that are called from here on."""
    used: set[str] = set()

    def counted(name: str, call: Any) -> Any:
        def counting(*given: Any, **named: Any) -> Any:
            used.add(name)
            return call(*given, **named)

        return counting

    for module, names in KERNELS.items():
        for name in names:
            monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return used


@pytest.mark.parametrize("scorer", ["keydiff", "retaining", "locret"])
def test_a_document_is_read_to_the_same_cache(scorer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model(hidden_size=256)
    expected = read(model, (8, 4), "original", scorer_of(scorer, model))
    used = watch(monkeypatch)
    with kernels.force("triton"):
        found = read(model, (8, 4), "original", scorer_of(scorer, model))
    head = {"retaining_scores", "locret_scores"} & {f"{scorer}_scores"}
    assert used == {"keep_mask", "quantise", "dequantise", "attend_chunk", *head}
    for a, b in zip(expected.layers, found.layers, strict=True):
        assert torch.equal(a.positions, b.positions)
        for head in range(2):
            for x, y in ((a.keys, b.keys), (a.values, b.values)):
                one, other = (rows.floats(head, torch.float32) for rows in (x, y))
                torch.testing.assert_close(other, one, atol=0.03, rtol=0.03)
    torch.testing.assert_close(found.last_logits, expected.last_logits, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("bits", [(16, 16), (8, 4)])
def test_a_whole_cache_is_pruned_alike(
    bits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model(hidden_size=256)
    whole = read(model, bits, "original")
    scores: Any = {
        n: [torch.rand(length, generator=torch.Generator().manual_seed(n)) for length in lengths]
        for n, lengths in enumerate(layer.lengths for layer in whole.layers)
    }
    rules = EvictionConfig(20, "global", sink_tokens=2, stabilizer_tokens=4, local_tokens=4)
    expected = pruned(whole, scores, rules)
    used = watch(monkeypatch)
    with kernels.force("triton"):
        found = pruned(whole, scores, rules)
    # Codes and fine rows lie apart, so that entries with codes are gathered head by head.
    assert used == ({"keep_mask", "compact"} if bits == (16, 16) else {"keep_mask"})
    for a, b in zip(expected.layers, found.layers, strict=True):
        assert a.offsets == b.offsets and torch.equal(a.positions, b.positions)
        assert torch.equal(a.scores, b.scores)
        for x, y in ((a.keys, b.keys), (a.values, b.values)):
            assert torch.equal(x.fine, y.fine)


@pytest.mark.parametrize("bits", [(8, 8), (8, 4), (2, 2)])
def test_views_fork_and_crop_on_codes_as_they_are_stored(bits: tuple[int, int]) -> None:
    model: Any = tiny_model(hidden_size=256)
    with kernels.force("triton"):
        view = read(model, bits, "original").view()
        assert isinstance(view.entries(0), FusedLayer)
        forward(model, view, QUESTION)
        twin = view.fork()
        expected = forward(model, view, [5])
        forward(model, twin, tokens(2, 8))
        twin.crop(len(QUESTION))
        torch.testing.assert_close(forward(model, twin, [5]), expected)


def test_sides_that_settle_differently_are_decoded_first() -> None:
    model: Any = tiny_model(hidden_size=256)
    cache = read(model, (8, 16), "original")
    with kernels.force("triton"):
        assert isinstance(cache.view().entries(0), ReadLayer)
