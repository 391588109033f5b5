"""Answering: a prompt on top of a cache view, then token by token."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from engine.errors import InvalidSetting, NoRoom
from engine.places import Places
from engine.trunk import through_modules
from engine.view import CacheView

if TYPE_CHECKING:
    from transformers import LogitsProcessorList

    from engine.loader import LoadedModel
    from engine.speculation import Drafter

_PROMPT_CHUNK_TOKENS = 512
LEAST_TEMPERATURE = 1e-5  # below it a draw takes the likeliest token, or divides to infinity
PENALTIES = (0.01, 100.0)  # least and most; beyond them nothing is left of the logits


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. seed makes a draw repeatable.

    temperature  below LEAST_TEMPERATURE the likeliest token is taken
    Raises       InvalidSetting for what cannot be drawn with
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InvalidSetting(f"max_new_tokens {self.max_new_tokens} is below 1.")
        if not 0 <= self.temperature < math.inf:
            raise InvalidSetting(f"temperature {self.temperature} is not a number from 0 on.")
        if not 0 < self.top_p <= 1:
            raise InvalidSetting(f"top_p {self.top_p} is not above 0 and at most 1.")
        least, most = PENALTIES
        if not least <= self.repetition_penalty <= most:
            raise InvalidSetting(
                f"repetition_penalty {self.repetition_penalty} is not between {least} and {most}.",
                "1 is no penalty; a little more keeps answers from repeating themselves.",
            )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < LEAST_TEMPERATURE


@dataclass(frozen=True)
class Generation:
    """An answer: its tokens (without the stop token), the work it took, and why it ended.

    reused_tokens is the mean number of cache entries per layer and KV head that were already
    there; ttft_s counts from the call to the first token. decode_tok_s counts every token chosen
    after the first, the stop token too: it took a pass like the others. forwards are the model's
    passes after the prompt: fewer than tokens where drafts held.
    """

    token_ids: list[int]
    prefilled_tokens: int
    reused_tokens: int
    ttft_s: float
    decode_tok_s: float
    finish: Literal["eos", "length", "stop"]
    forwards: int = 0


class Decoder(Protocol):
    """What runs the model on a view; the stock modules do, and engine.lean."""

    def forward(self, store: CacheView, token_ids: Sequence[int]) -> Tensor:
        """Append tokens; the logits after the last one, [vocab] fp32."""
        ...

    def forward_all(self, store: CacheView, token_ids: Sequence[int]) -> Tensor:
        """Append tokens; the logits after each of them, [n, vocab] fp32."""
        ...


class StockDecoder:
    """The model through its own modules."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    def forward(self, store: CacheView, token_ids: Sequence[int]) -> Tensor:
        """See Decoder."""
        return forward(self._model, store, token_ids)

    @torch.inference_mode()
    def forward_all(self, store: CacheView, token_ids: Sequence[int]) -> Tensor:
        """See Decoder."""
        logits: Tensor = self._model.model.lm_head(_hidden(self._model, store, token_ids)).float()
        return logits


@torch.inference_mode()
def forward(model: LoadedModel, view: CacheView, token_ids: Sequence[int] | Tensor) -> Tensor:
    """Append tokens to a view; returns the logits after the last one, [vocab] fp32."""
    logits: Tensor = model.model.lm_head(_hidden(model, view, token_ids)[-1]).float()
    return logits


def _hidden(model: LoadedModel, view: CacheView, token_ids: Sequence[int] | Tensor) -> Tensor:
    """Append tokens to a view, many of them in pieces; the last layer's output [n, hidden_size]."""
    ids = torch.as_tensor(token_ids, dtype=torch.int64)
    if not len(ids):
        raise InvalidSetting("A prompt needs at least one token.")
    return torch.cat([through_modules(model, p, view) for p in ids.split(_PROMPT_CHUNK_TOKENS)])


@torch.inference_mode()
def generate(
    model: LoadedModel,
    view: CacheView,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    *,
    on_token: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    decoder: Decoder | None = None,
    drafter: Drafter | None = None,
) -> Generation:
    """Prefill a prompt on a view and answer it.

    on_token  gets each token as it is chosen, stop tokens excepted
    stop      asked before each token after the first
    decoder   runs the model; None: its own modules
    drafter   guesses ahead (engine.speculation); None: a pass for every token
    The repetition penalty looks at prompt and answer, not at the document, so that quoting the
    book costs nothing. Changes the view: prompt and answer are appended.
    """
    reused = round(view.cache.kept_tokens) + view.n_tail
    check_room(view, len(prompt_ids) + sampling.max_new_tokens)
    started = time.perf_counter()
    decoder = decoder or StockDecoder(model)
    logits = decoder.forward(view, prompt_ids)
    chooser = _Chooser(sampling, prompt_ids)
    chosen: list[int] = []
    first_at = started
    finish: Literal["eos", "length", "stop"] = "length"
    steps = _Steps(decoder, view, drafter)
    n_chosen = 0
    for n_chosen, token in enumerate(steps.tokens(logits, chooser, sampling.max_new_tokens), 1):
        if n_chosen == 1:
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
    steps.forget_drafts()
    decode_s = time.perf_counter() - first_at
    rate = (n_chosen - 1) / decode_s if n_chosen > 1 and decode_s > 0 else 0.0
    return Generation(chosen, len(prompt_ids), reused, first_at - started, rate, finish, steps.n)


def check_room(view: CacheView, n_wanted: int) -> None:
    """Refuse what would leave the trained window, instead of answering from nowhere."""
    cache = view.cache
    room = cache.geometry.window - Places(cache).end - view.n_tail
    if n_wanted > room:
        raise NoRoom(
            f"Question and answer need {n_wanted} tokens; the model's window has room for {room}.",
            "Ask a shorter question, or for a shorter answer.",
        )


class _Steps:
    """Runs the model along an answer, a pass for each token or for a token and its drafts.

    n       passes so far
    drafts  tokens that are in the view and not yet chosen
    """

    def __init__(self, decoder: Decoder, view: CacheView, drafter: Drafter | None) -> None:
        self.decoder, self.view, self.drafter = decoder, view, drafter
        self.n = 0
        self.drafts: list[int] = []

    def tokens(self, logits: Tensor, chooser: _Chooser, n_max: int) -> Iterator[int]:
        """Choose, yield, and only then run the model on the chosen token if another is wanted."""
        rows: list[Tensor] = []
        for n in range(n_max):
            token = chooser.choose(logits)
            yield token
            if n + 1 == n_max:
                return
            held = bool(self.drafts) and self.drafts[0] == token
            if self.drafter is not None:
                self.drafter.add(token, drafted=held)
            if held:
                self.drafts.pop(0)
            else:
                self.forget_drafts()
                rows = self._run(token, n_max - n - 2)
            logits = rows.pop(0)

    def forget_drafts(self) -> None:
        """Take back from the view what was drafted and not chosen."""
        if self.drafts:
            self.view.crop(self.view.n_tail - len(self.drafts))
        self.drafts = []

    def _run(self, token: int, n_room: int) -> list[Tensor]:
        """Append a token and drafts after it; the logits after each, as rows."""
        self.n += 1
        drafter = self.drafter
        self.drafts = [] if drafter is None else drafter.draft(n_room)
        if not self.drafts:
            return [self.decoder.forward(self.view, [token])]
        return list(self.decoder.forward_all(self.view, [token, *self.drafts]))


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
        if self.sampling.greedy:
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
    if not sampling.greedy:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
    return processors
