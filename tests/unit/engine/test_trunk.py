"""The decoder stack gives the stock modules' output, whichever way it takes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import pytest
import torch

from engine import packing, trunk
from engine.attention import decoder_of
from engine.cache import DocCache
from engine.decoding import choose_decoder
from engine.errors import NotLean
from engine.geometry import SERVED_FAMILIES
from engine.lean import LeanDecoder
from engine.prefill import PrefillConfig, prefill
from engine.scorers.recency import RecencyScorer
from engine.trunk import MANY_TOKENS, hidden_after
from tests.fakes import cache_of, filled, tiny_model, tokens


def stock_hidden(model: Any, cache: DocCache, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        out = decoder_of(model.model)(input_ids=ids[None], use_cache=False, store=cache.view())
    return out.last_hidden_state[0]


@pytest.mark.parametrize("family", SERVED_FAMILIES)
def test_every_row_is_that_of_the_stock_modules(family: str) -> None:
    model: Any = filled(family)
    cache, ids = cache_of(model), torch.tensor(tokens(600, seed=3))
    assert trunk._lean_of(model) is not None
    found = hidden_after(model, ids, cache.view())
    torch.testing.assert_close(found, stock_hidden(model, cache, ids), atol=1e-5, rtol=1e-4)


def test_a_store_that_wants_it_sees_the_input_of_every_attention() -> None:
    model: Any = filled("qwen2")
    cache, ids = cache_of(model), torch.tensor(tokens(9))
    seen: list[list[torch.Tensor]] = [[], []]
    for way, hidden in enumerate(seen):
        view: Any = cache.view()
        view.wants_hidden = True
        view.see_hidden = lambda layer, x, hidden=hidden: hidden.append(x.clone())
        if way == 0:
            hidden_after(model, ids, view)
        else:
            with torch.inference_mode():
                decoder_of(model.model)(input_ids=ids[None], use_cache=False, store=view)
    assert len(seen[0]) == len(seen[1]) == 2
    for ours, stock in zip(*seen, strict=True):
        torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-4)


def test_a_model_that_is_more_than_its_weights_runs_through_its_modules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotLean("There is more to it.")

    monkeypatch.setattr(trunk, "LeanDecoder", refuse)
    model: Any = tiny_model()
    cache, ids = cache_of(model), torch.tensor(tokens(9))
    assert torch.equal(hidden_after(model, ids, cache.view()), stock_hidden(model, cache, ids))


def test_a_model_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model()
    first = trunk._lean_of(model)
    monkeypatch.setattr(trunk, "LeanDecoder", lambda *_: pytest.fail("looked at again"))
    assert trunk._lean_of(model) is first is not None


def test_elsewhere_than_on_the_cpu_the_stock_modules_read() -> None:
    model: Any = tiny_model()
    assert trunk._lean_of(model) is not None
    model.device = "cuda"
    assert trunk._lean_of(model) is None


needs_fp16 = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines,
    reason="this torch build has no product with weights in fp16",
)


def reads_packed() -> Any:
    model: Any = filled("qwen2")
    model.reads_packed = True
    return model


def reading_packed() -> Any:
    """It has a long text before it."""
    return trunk.for_a_text(reads_packed(), trunk.LONG_TEXT_TOKENS)


@needs_fp16
def test_many_tokens_run_from_packed_weights_and_few_from_the_models_own() -> None:
    model = reading_packed()
    cache, ids = cache_of(model), torch.tensor(tokens(MANY_TOKENS, seed=3))
    stock = stock_hidden(model, cache, ids)
    found = hidden_after(model, ids, cache.view())
    torch.testing.assert_close(found, stock, atol=0.01, rtol=0.01)
    assert not torch.equal(
        found, hidden_after(replace(model, reads_packed=False), ids, cache.view())
    )
    few = ids[: MANY_TOKENS - 1]
    own = hidden_after(replace(model, reads_packed=False), few, cache.view())
    assert torch.equal(hidden_after(model, few, cache.view()), own)


@needs_fp16
def test_a_short_text_is_not_worth_copies_and_takes_those_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trunk, "LONG_TEXT_TOKENS", 2 * MANY_TOKENS)
    model = reads_packed()
    config = PrefillConfig(chunk_tokens=MANY_TOKENS)

    def read(n_tokens: int) -> bool:
        prefill(model, tokens(n_tokens, seed=4), config, RecencyScorer())
        return packing.is_packed(model, "fp16")

    assert not read(2 * MANY_TOKENS - 1)
    assert read(2 * MANY_TOKENS)
    assert trunk.for_a_text(model, 1) is model


@needs_fp16
def test_many_tokens_outside_a_reading_make_no_copies() -> None:
    """As several questions side by side do."""
    model = reads_packed()
    cache, ids = cache_of(model), torch.tensor(tokens(MANY_TOKENS, seed=3))
    own = hidden_after(replace(model, reads_packed=False), ids, cache.view())
    assert torch.equal(hidden_after(model, ids, cache.view()), own)
    assert not packing.is_packed(model, "fp16")


@needs_fp16
def test_copies_that_do_not_fit_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "available_memory", lambda device: 1000)
    monkeypatch.setattr(packing, "LeanDecoder", lambda *_: pytest.fail("copied"))
    assert not reading_packed().reads_packed


@needs_fp16
def test_reading_and_answering_share_their_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for at once by two threads, too."""
    model = reads_packed()
    made: list[str] = []

    def make(model: Any, format: Any) -> LeanDecoder:
        made.append(format)
        time.sleep(0.05)
        return LeanDecoder(model, format)

    monkeypatch.setattr(packing, "LeanDecoder", make)
    with ThreadPoolExecutor(2) as pool:
        answering = pool.submit(choose_decoder, model, "fp16")
        reading = trunk.for_a_text(model, trunk.LONG_TEXT_TOKENS)
    assert made == ["fp16"]
    assert answering.result().decoder is trunk._for_many_tokens(reading)


@needs_fp16
def test_a_chunk_does_not_wait_while_answers_are_packed() -> None:
    model = reading_packed()
    cache, ids = cache_of(model), torch.tensor(tokens(MANY_TOKENS, seed=3))
    with ThreadPoolExecutor(1) as pool:
        with packing._PACKING:
            reading = pool.submit(hidden_after, model, ids, cache.view())
            done, _ = wait([reading], timeout=20)
        assert done == {reading}
