"""Answering: settings that cannot draw are refused, rates count what was computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from engine import generate as generating
from engine.errors import InvalidSetting
from engine.generate import Sampling, StockDecoder, generate
from engine.view import CacheView
from tests.fakes import cache_of, tiny_model, tokens


@pytest.mark.parametrize("name", ["temperature", "top_p", "repetition_penalty"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_settings_that_are_no_numbers_are_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidSetting, match=name):
        Sampling(**{name: value})


@pytest.mark.parametrize("value", [1e-40, 1e-6, 1e6])
def test_a_penalty_that_leaves_nothing_to_draw_from_is_refused(value: float) -> None:
    with pytest.raises(InvalidSetting, match="repetition_penalty"):
        Sampling(repetition_penalty=value)


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-30, 1e-9])
def test_a_temperature_too_small_to_divide_by_takes_the_likeliest(temperature: float) -> None:
    model: Any = tiny_model()
    cache, prompt = cache_of(model), tokens(5)
    greedy = generate(model, cache.view(), prompt, Sampling(8)).token_ids
    cold = Sampling(8, temperature=temperature, top_p=0.9, seed=1)
    assert generate(model, cache.view(), prompt, cold).token_ids == greedy


@pytest.mark.parametrize("penalty", [0.01, 100.0])
@pytest.mark.parametrize("temperature", [1e-5, 1e5])
def test_the_bounds_themselves_can_be_drawn_with(penalty: float, temperature: float) -> None:
    model: Any = tiny_model()
    sampling = Sampling(8, temperature, top_p=1e-9, repetition_penalty=penalty, seed=1)
    assert generate(model, cache_of(model).view(), tokens(5), sampling).token_ids


class Clocked:
    """A decoder that says what it was told to, a second of a clock of its own each pass."""

    def __init__(self, script: Sequence[int]) -> None:
        self.script = iter(script)
        self.now = 0.0

    def forward(self, store: CacheView, token_ids: Sequence[int]) -> torch.Tensor:
        self.now += 1.0
        return torch.nn.functional.one_hot(torch.tensor(next(self.script)), 97).float()

    def forward_all(self, store: CacheView, token_ids: Sequence[int]) -> torch.Tensor:
        raise AssertionError("nothing is drafted here")

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("script", "rate"), [([5, 6, 7, 2], 1.0), ([5, 2], 1.0), ([2], 0.0), ([5, 6, 7, 8], 1.0)]
)
def test_the_pass_that_ends_an_answer_counts_as_a_token(
    script: list[int], rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model()
    decoder = Clocked(script)
    monkeypatch.setattr(generating, "time", decoder)
    view = cache_of(model).view()
    made = generate(model, view, [3], Sampling(len(script)), decoder=decoder)
    assert made.token_ids == [token for token in script if token != 2]
    assert made.decode_tok_s == rate and made.ttft_s == 1.0


def test_a_long_input_has_a_row_for_each_of_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model()
    cache, ids = cache_of(model), tokens(20)
    decoder = StockDecoder(model)
    whole = decoder.forward_all(cache.view(), ids)
    monkeypatch.setattr(generating, "_PROMPT_CHUNK_TOKENS", 7)
    rows = decoder.forward_all(cache.view(), ids)
    assert rows.shape == (20, 97)
    torch.testing.assert_close(rows, whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rows[-1], decoder.forward(cache.view(), ids), atol=1e-4, rtol=1e-4)
