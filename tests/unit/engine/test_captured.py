"""A recorded step gives what a computed one gives, whatever has changed since the recording.

No card is here: `recorded` stands for a CUDA graph and is as strict as one. It keeps the operations
with the tensors and numbers of the recording and runs them again on the same memory, so that
whatever a step takes from the host is frozen.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine import captured
from engine.captured import CapturedDecoder, try_captured
from engine.decoding import choose_decoder
from engine.errors import CaptureFailed, InvalidSetting
from engine.eviction import EvictionConfig
from engine.generate import Sampling, generate
from engine.lean import LeanDecoder
from engine.prefill import PrefillConfig, prefill
from engine.quantisation import QuantConfig
from engine.scorers.keydiff import KeyDiffScorer
from engine.speculation import Drafter
from tests.fakes import cache_of, filled, in_bf16, tiny_model, tokens

ASKS_THE_DEVICE = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"}


class Tape(TorchDispatchMode):
    """Every operation inside, in order, with what it was given and what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        assert func.overloadpacket.__name__ not in ASKS_THE_DEVICE, f"{func} waits for the device"
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def play(self) -> None:
        for func, args, kwargs, out in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def recorded(run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    tape = Tape()
    with tape:
        out = run()
    return tape.play, out


def decoders(model: Any) -> tuple[LeanDecoder, CapturedDecoder]:
    lean = LeanDecoder(model, "same")
    return lean, CapturedDecoder(lean, recorded)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-4)


def test_a_model_in_bf16_is_played_too() -> None:
    model = in_bf16(filled("llama"))
    lean, player = decoders(model)
    cache = cache_of(model)
    mine, theirs = cache.view(), cache.view()
    for token in tokens(5, seed=2):
        found, expected = player.forward(mine, [token]), lean.forward(theirs, [token])
        assert float((found - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3"])
def test_tokens_are_played_as_they_would_be_computed(family: str) -> None:
    model = filled(family)
    lean, player = decoders(model)
    cache = cache_of(model)
    mine, theirs = cache.view(), cache.view()
    for view, decoder in ((mine, player), (theirs, lean)):
        decoder.forward(view, tokens(9, seed=1))
    for token in tokens(12, seed=2):
        close(player.forward(mine, [token]), lean.forward(theirs, [token]))
        assert mine.n_tail == theirs.n_tail
    for (k, v), (other_k, other_v) in zip(mine.tails(), theirs.tails(), strict=True):
        close(k, other_k)
        close(v, other_v)


@pytest.mark.parametrize("positions", ["original", "compact", "shared"])
def test_on_an_evicted_cache_of_codes(positions: Any) -> None:
    model = tiny_model()
    rules = EvictionConfig(30, "global", positions=positions, stabilizer_tokens=8, local_tokens=4)
    config = PrefillConfig(32, rules, "fp32", QuantConfig(8, 4, recent_tokens=4))
    cache = prefill(model, tokens(100), config, KeyDiffScorer()).freeze()
    assert cache.layers[0].keys.codes is not None
    lean, player = decoders(model)
    mine, theirs = cache.view(), cache.view()
    for token in tokens(6, seed=2):
        close(player.forward(mine, [token]), lean.forward(theirs, [token]))


def test_one_recording_serves_the_questions_of_a_document_and_crops_and_forks() -> None:
    model = tiny_model()
    lean = LeanDecoder(model, "same")
    cache = cache_of(model)
    recordings: list[int] = []

    def counted(run: Any) -> Any:
        recordings.append(1)
        return recorded(run)

    player = CapturedDecoder(lean, counted)

    def said(decoder: Any, view: Any, ids: list[int]) -> list[torch.Tensor]:
        return [decoder.forward(view, [t]) for t in ids]

    pairs = [(player, cache.view(), cache.view()), (lean, cache.view(), cache.view())]
    found = []
    for decoder, first, second in pairs:
        out = [decoder.forward(first, tokens(5, 1))]
        out += said(decoder, first, tokens(4, 2))
        twin = first.fork()
        out += said(decoder, second, tokens(3, 3))  # moves the first one's tail out
        out += said(decoder, first, tokens(2, 4))
        first.crop(6)
        out += said(decoder, first, tokens(3, 5))
        out += [decoder.forward_all(first, tokens(3, 6))[-1]]  # as drafts are: tails move
        out += said(decoder, second, tokens(2, 10))  # the first one's has moved out by itself
        out += said(decoder, first, tokens(2, 7)) + said(decoder, twin, tokens(2, 8))
        out += said(decoder, second, tokens(2, 9))
        assert (first.n_tail, second.n_tail, twin.n_tail) == (6 + 3 + 3 + 2, 7, 9 + 2)
        found.append(out)
    for mine, theirs in zip(*found, strict=True):
        close(mine, theirs)
    assert len(recordings) == 1


def test_another_document_and_a_tail_without_room_are_recorded_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(captured, "ROOM_TOKENS", 3)
    monkeypatch.setattr(captured, "BLOCK_TOKENS", 2)
    model = tiny_model()
    lean = LeanDecoder(model, "same")
    recordings: list[int] = []

    def counted(run: Any) -> Any:
        recordings.append(1)
        return recorded(run)

    player = CapturedDecoder(lean, counted)
    for cache in (cache_of(model), cache_of(model, 60)):
        mine, theirs = cache.view(), cache.view()
        for token in tokens(15, seed=2):
            close(player.forward(mine, [token]), lean.forward(theirs, [token]))
    # room for 4, 8, 12 and 16 tokens: the token that is recorded and three after it, and so on
    assert len(recordings) == 2 * 4


def test_a_recording_does_not_keep_a_closed_document_open() -> None:
    model = tiny_model()
    lean = LeanDecoder(model, "same")

    def quiet(run: Any) -> Any:  # a graph holds no Python objects, a tape would
        out = run()
        return (lambda: None), out

    player = CapturedDecoder(lean, quiet)
    cache = cache_of(model)
    player.forward(cache.view(), [5])
    gone = weakref.ref(cache)
    del cache
    gc.collect()
    assert gone() is None
    other = cache_of(model)
    close(player.forward(other.view(), [7]), lean.forward(other.view(), [7]))


def test_answers_and_drafts_are_the_same() -> None:
    model = tiny_model()
    lean, player = decoders(model)
    cache = cache_of(model)
    prompt = tokens(7, 1)
    said = []
    for decoder in (lean, player):
        for drafting in (False, True):
            drafter = Drafter(cache.token_ids, prompt) if drafting else None
            made = generate(
                model, cache.view(), prompt, Sampling(max_new_tokens=30),
                decoder=decoder, drafter=drafter,
            )  # fmt: skip
            said.append(made.token_ids)
    assert len(said[0]) > 1 and all(ids == said[0] for ids in said)


def test_a_recording_that_says_something_else_is_refused() -> None:
    model = tiny_model()

    def wrong(run: Any) -> Any:
        play, out = recorded(run)

        def spoilt() -> None:
            play()
            out.mul_(-1)

        return spoilt, out

    player = CapturedDecoder(LeanDecoder(model, "same"), wrong)
    with pytest.raises(CaptureFailed, match="differs"):
        player.forward(cache_of(model).view(), [5])


def test_a_recording_that_fails_on_a_document_is_told_in_a_sentence() -> None:
    def full(_: Any) -> Any:
        raise torch.OutOfMemoryError("no room for a recording")

    player = CapturedDecoder(LeanDecoder(tiny_model(), "same"), full)
    with pytest.raises(CaptureFailed, match="no room for a recording"):
        player.forward(cache_of(tiny_model()).view(), [5])


def test_where_nothing_can_be_recorded_the_choice_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    model = tiny_model()
    model.device = "cuda"  # by name only: the choice is of a card
    monkeypatch.setattr(captured, "made_up_cache", lambda _: cache_of(tiny_model()))
    for record, format in ((refused, "same"), (recorded, "captured")):
        monkeypatch.setattr(captured, "cuda_graph", record)
        choice = choose_decoder(model, "captured")
        assert choice.format == format
        assert ("stream is capturing)" in choice.reason) == (format == "same")
    with pytest.raises(InvalidSetting, match="of a card"):
        choose_decoder(tiny_model(), "captured")


def test_the_trial_runs_on_every_family() -> None:
    for family in ("llama", "qwen3", "phi3"):
        model = filled(family)
        cache = captured.made_up_cache(model)
        cache.check()
        lean, player = decoders(model)
        close(player.forward(cache.view(), [5]), lean.forward(cache.view(), [5]))
    assert callable(try_captured)
