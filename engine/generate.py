"""Answering: a prompt on top of a cache view, then token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from engine.attention import decoder_of
from engine.cache import CacheView
from engine.errors import InvalidSetting

if TYPE_CHECKING:
    from transformers import LogitsProcessorList

    from engine.loader import LoadedModel

_PROMPT_CHUNK_TOKENS = 512


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. temperature 0 is greedy; seed makes a draw repeatable."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InvalidSetting(f"max_new_tokens {self.max_new_tokens} is below 1.")
        if self.temperature < 0:
            raise InvalidSetting(f"temperature {self.temperature} is negative.")
        if not 0 < self.top_p <= 1:
            raise InvalidSetting(f"top_p {self.top_p} is not above 0 and at most 1.")
        if self.repetition_penalty <= 0:
            raise InvalidSetting(f"repetition_penalty {self.repetition_penalty} is not positive.")


@dataclass(frozen=True)
class Generation:
    """An answer: its tokens (without the stop token), the work it took, and why it ended.

    reused_tokens is the mean number of cache entries per layer and KV head that were already
    there; ttft_s counts from the call to the first token.
    """

    token_ids: list[int]
    prefilled_tokens: int
    reused_tokens: int
    ttft_s: float
    decode_tok_s: float
    finish: Literal["eos", "length", "stop"]


@torch.inference_mode()
def forward(model: LoadedModel, view: CacheView, token_ids: Sequence[int] | Tensor) -> Tensor:
    """Append tokens to a view; returns the logits after the last one, [vocab] fp32."""
    ids = torch.as_tensor(token_ids, dtype=torch.int64, device=model.device)
    if not len(ids):
        raise InvalidSetting("A prompt needs at least one token.")
    hidden = None
    for first in range(0, len(ids), _PROMPT_CHUNK_TOKENS):
        piece = ids[first : first + _PROMPT_CHUNK_TOKENS]
        hidden = decoder_of(model.model)(
            input_ids=piece[None], use_cache=False, store=view
        ).last_hidden_state[0]
    assert hidden is not None
    logits: Tensor = model.model.lm_head(hidden[-1]).float()
    return logits


@torch.inference_mode()
def generate(
    model: LoadedModel,
    view: CacheView,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    *,
    on_token: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Generation:
    """Prefill a prompt on a view and answer it.

    on_token  gets each token as it is chosen, stop tokens excepted
    stop      asked before each token after the first
    The repetition penalty looks at prompt and answer, not at the document, so that quoting the
    book costs nothing. Changes the view: prompt and answer are appended.
    """
    reused = round(view.cache.kept_tokens) + view.n_tail
    check_room(view, len(prompt_ids) + sampling.max_new_tokens)
    started = time.perf_counter()
    logits = forward(model, view, prompt_ids)
    chooser = _Chooser(sampling, prompt_ids)
    chosen: list[int] = []
    first_at = started
    finish: Literal["eos", "length", "stop"] = "length"
    for token in _tokens(model, view, logits, chooser, sampling.max_new_tokens):
        if not chosen:
            first_at = time.perf_counter()
        if token in model.stop_token_ids:
            finish = "eos"
            break
        chosen.append(token)
        if on_token is not None:
            on_token(token)
        if stop is not None and stop():
            finish = "stop"
            break
    decode_s = time.perf_counter() - first_at
    rate = (len(chosen) - 1) / decode_s if len(chosen) > 1 and decode_s > 0 else 0.0
    return Generation(chosen, len(prompt_ids), reused, first_at - started, rate, finish)


def check_room(view: CacheView, n_wanted: int) -> None:
    """Refuse what would leave the trained window, instead of answering from nowhere."""
    cache = view.cache
    used = (
        cache.n_seen
        if cache.positions_mode == "original"
        else max(max(layer.lengths) for layer in cache.layers)
    )
    room = cache.geometry.window - used - view.n_tail
    if n_wanted > room:
        raise InvalidSetting(
            f"Question and answer need {n_wanted} tokens; the model's window has room for {room}.",
            "Ask a shorter question, or for a shorter answer.",
        )


def _tokens(
    model: LoadedModel, view: CacheView, logits: Tensor, chooser: _Chooser, n_max: int
) -> Iterator[int]:
    """Choose, yield, and only then run the model on the chosen token if another is wanted."""
    for n in range(n_max):
        token = chooser.choose(logits)
        yield token
        if n + 1 < n_max:
            logits = forward(model, view, [token])


class _Chooser:
    """Draws tokens through transformers' own logits processors."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        self.sampling = sampling
        self._seen = torch.as_tensor(prompt_ids, dtype=torch.int64)[None]
        self._processors = _processors(sampling)
        self._generator: torch.Generator | None = None
        if sampling.seed is not None:
            self._generator = torch.Generator().manual_seed(sampling.seed)

    def choose(self, logits: Tensor) -> int:
        """logits [vocab] fp32 -> token id."""
        row = self._processors(self._seen, logits.cpu()[None])
        if self.sampling.temperature == 0:
            token = int(row.argmax(-1))
        else:
            weights = torch.softmax(row, dim=-1)
            token = int(torch.multinomial(weights, 1, generator=self._generator))
        self._seen = torch.cat([self._seen, torch.tensor([[token]])], dim=1)
        return token


def _processors(sampling: Sampling) -> LogitsProcessorList:
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopPLogitsWarper,
    )

    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature > 0:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
    return processors
