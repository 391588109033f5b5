"""The engine on a CUDA card: a document read, saved, gone on with and asked as on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.decoding import choose_decoder
from engine.errors import PrefillStopped
from engine.eviction import EvictionConfig
from engine.generate import StockDecoder, forward
from engine.lean import LeanDecoder
from engine.prefill import PrefillConfig, prefill
from engine.quantisation import QuantConfig
from engine.scorers.keydiff import KeyDiffScorer
from engine.snapshot import load_snapshot, save_snapshot
from tests.fakes import tiny_model, tokens

pytestmark = pytest.mark.gpu

TEXT, QUESTION = tokens(90), tokens(3, 5)
BITS = [(16, 16), (8, 4), (4, 4)]


def on(device: str) -> Any:
    return tiny_model(device=device, hidden_size=256)  # heads of 64


def config(bits: tuple[int, int], budget: int | None) -> PrefillConfig:
    eviction = EvictionConfig(
        budget, "global", positions="original", sink_tokens=2, stabilizer_tokens=4, local_tokens=4
    )
    return PrefillConfig(16, eviction, "fp16", QuantConfig(*bits, recent_tokens=10))


@pytest.mark.parametrize("bits", BITS)
def test_the_logits_are_those_of_the_cpu(bits: tuple[int, int]) -> None:
    found = []
    for device in ("cpu", "cuda"):
        model = on(device)
        cache = prefill(model, TEXT, config(bits, None), KeyDiffScorer()).freeze()
        assert cache.layers[0].positions.device.type == device
        found.append(forward(model, cache.view(), QUESTION).cpu())
    torch.testing.assert_close(found[1], found[0], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("bits", BITS)
def test_a_reading_that_was_cut_off_goes_on_to_the_same_cache(
    bits: tuple[int, int], tmp_path: Path
) -> None:
    """KeyDiff goes on from sums: they have to be where the next chunk's keys are."""
    model, how = on("cuda"), config(bits, 40)
    whole = prefill(model, TEXT, how, KeyDiffScorer())
    done: list[int] = []
    with pytest.raises(PrefillStopped) as stopped:
        prefill(
            model, TEXT, how, KeyDiffScorer(),
            on_progress=lambda n, _: done.append(n), stop=lambda: len(done) == 3,
        )  # fmt: skip
    half = stopped.value.cache
    save_snapshot(tmp_path / "s", half, model=model, scorer="k", config=how, extra={})
    beginning, _ = load_snapshot(tmp_path / "s", model=model)
    assert all(t.device.type == "cuda" for t in beginning.scorer_state.values())
    finished = prefill(model, TEXT, how, KeyDiffScorer(), resume=beginning)
    assert finished.layers[0].positions.device.type == "cuda"
    for a, b in zip(whole.layers, finished.layers, strict=True):
        assert torch.equal(a.positions, b.positions)
    torch.testing.assert_close(finished.last_logits, whole.last_logits, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(("weights", "close"), [("same", 1e-3), ("nf4", 0.3)])
def test_asked_for_weights_answer(weights: str, close: float) -> None:
    model = on("cuda")
    cache = prefill(model, TEXT, config((8, 4), None), KeyDiffScorer()).freeze()
    expected = StockDecoder(model).forward(cache.view(), QUESTION)
    found = choose_decoder(model, weights).decoder.forward(cache.view(), QUESTION)
    span = float(expected.max() - expected.min())
    assert float((found - expected).abs().max()) < close * span


@pytest.mark.parametrize("bits", BITS)
def test_a_token_as_one_launch_is_the_token_computed(bits: tuple[int, int]) -> None:
    model = on("cuda")
    choice = choose_decoder(model, "captured")
    assert choice.format == "captured", choice.reason
    lean = LeanDecoder(model, "same")
    for budget in (None, 40):
        cache = prefill(model, TEXT, config(bits, budget), KeyDiffScorer()).freeze()
        for seed in (1, 2):  # two questions on one recording
            mine, theirs = cache.view(), cache.view()
            for decoder, view in ((choice.decoder, mine), (lean, theirs)):
                decoder.forward(view, QUESTION)
            for token in tokens(20, seed):
                found, expected = (
                    choice.decoder.forward(mine, [token]),
                    lean.forward(theirs, [token]),
                )
                torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_what_torch_holds_unused_counts_as_free() -> None:
    from engine.memory import available_memory

    before = available_memory("cuda")
    block = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    assert available_memory("cuda") <= before - (60 << 20)
    del block
    assert available_memory("cuda") >= before - (4 << 20)
