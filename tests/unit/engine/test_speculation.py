"""Drafts from the text: the same answers, fewer passes, nothing left behind in the view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.eviction import EvictionConfig
from engine.generate import Generation, Sampling, StockDecoder, generate
from engine.prefill import PrefillConfig, prefill
from engine.scorers.keydiff import KeyDiffScorer
from engine.speculation import LONGEST_DRAFT, Drafter
from engine.view import CacheView
from tests.fakes import tiny_model, tokens

PROMPT = tokens(5, 9)
# The tiny model soon repeats itself, so that drafts hold; the penalty makes it go on and on.
CHOICES = [
    Sampling(40),
    Sampling(40, repetition_penalty=1.3),
    Sampling(40, temperature=0.9, seed=3),
    Sampling(40, temperature=0.3, top_p=0.8, seed=4),
    Sampling(1),
    Sampling(2),
]


def view_of(model: Any) -> CacheView:
    config = PrefillConfig(64, EvictionConfig(40, "global", stabilizer_tokens=8, local_tokens=4))
    return prefill(model, tokens(150), config, KeyDiffScorer()).view()


def answered(model: Any, view: CacheView, sampling: Sampling, drafts: bool) -> Generation:
    drafter = Drafter(view.cache.token_ids, PROMPT) if drafts else None
    return generate(model, view, PROMPT, sampling, drafter=drafter)


@pytest.mark.parametrize("sampling", CHOICES)
def test_drafts_change_no_answer(sampling: Sampling) -> None:
    model: Any = tiny_model()
    plain_view, view = view_of(model), view_of(model)
    plain = answered(model, plain_view, sampling, False)
    quick = answered(model, view, sampling, True)
    assert quick.token_ids == plain.token_ids and quick.finish == plain.finish
    assert (
        view.n_tail
        == plain_view.n_tail
        == len(PROMPT) + len(plain.token_ids) - (plain.finish == "length")
    )
    assert plain.forwards == max(len(plain.token_ids) - (plain.finish == "length"), 0)
    assert quick.forwards <= plain.forwards


def test_an_answer_that_quotes_takes_fewer_passes() -> None:
    model: Any = tiny_model()
    plain = answered(model, view_of(model), Sampling(120), False)
    quick = answered(model, view_of(model), Sampling(120), True)
    assert quick.token_ids == plain.token_ids and len(plain.token_ids) == 120
    assert quick.forwards < 0.7 * plain.forwards


def test_what_comes_after_goes_on_from_a_clean_view() -> None:
    model: Any = tiny_model()
    for stop_after in range(1, 12):
        views = view_of(model), view_of(model)
        said: list[Generation] = []
        for view, drafts in zip(views, (False, True), strict=True):
            drafter = Drafter(view.cache.token_ids, PROMPT) if drafts else None
            heard: list[int] = []
            said.append(
                generate(
                    model, view, PROMPT, Sampling(40), drafter=drafter, on_token=heard.append,
                    stop=lambda heard=heard: len(heard) == stop_after,
                )
            )  # fmt: skip
        assert said[0].token_ids == said[1].token_ids and views[0].n_tail == views[1].n_tail
        follow = [StockDecoder(model).forward(view, tokens(3, 4)) for view in views]
        torch.testing.assert_close(follow[1], follow[0], atol=1e-4, rtol=1e-4)


def test_logits_of_all_places_end_with_those_of_the_last() -> None:
    model: Any = tiny_model()
    decoder = StockDecoder(model)
    rows = decoder.forward_all(view_of(model), tokens(6, 2))
    one_by_one = view_of(model)
    expected = [decoder.forward(one_by_one, [t]) for t in tokens(6, 2)]
    torch.testing.assert_close(rows, torch.stack(expected), atol=1e-4, rtol=1e-4)


def drafts_of(text: Sequence[int], n_most: int = 100) -> list[int]:
    return Drafter(torch.tensor(text[:-1]), text[-1:]).draft(n_most)


def test_the_longest_and_latest_match_is_followed() -> None:
    assert drafts_of([1, 2, 3, 4, 9, 9, 3, 4, 7, 7, 2, 3, 4]) == [9, 9, 3, 4]  # 2 3 4 over 3 4
    assert drafts_of([3, 4, 5, 0, 3, 4, 6, 0, 3, 4]) == [6, 0, 3, 4]
    assert drafts_of([1, 2, 3, 1]) == []  # one token alone is no match
    assert drafts_of([1, 2, 3, 1, 2], 1) == [3]
    assert drafts_of([1, 2, 3, 1, 2], 0) == [] and drafts_of([5]) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 20))
def test_a_draft_is_what_followed_before(text: list[int], n_most: int) -> None:
    found = drafts_of(text, n_most)
    assert len(found) <= min(n_most, LONGEST_DRAFT)
    if found:
        joined = [*text[-2:], *found]
        whole = [*text]
        assert any(whole[i : i + len(joined)] == joined for i in range(len(whole)))


def test_drafts_that_fail_become_rare_and_those_that_hold_become_long() -> None:
    drafter = Drafter(torch.tensor([1, 2] * 40), [1, 2])
    lengths = []
    for _ in range(12):
        draft = drafter.draft(100)
        lengths.append(len(draft))
        for token in draft:
            drafter.add(token, drafted=True)
    assert lengths[:3] == [4, 8, LONGEST_DRAFT] and min(lengths) > 0
    lengths = []
    for _ in range(30):
        lengths.append(len(drafter.draft(100)))
        drafter.add(1, drafted=False)
        drafter.add(2, drafted=False)
    assert lengths[0] == LONGEST_DRAFT and lengths.count(0) > len(lengths) / 2
