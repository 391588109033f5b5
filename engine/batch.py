"""Several questions in one forward pass: their tokens lie side by side in a single row.

The model itself knows no positions and does no masking, all of that is the store's. So one row
may hold the tokens of many sequences, as long as each slice of it attends through its own view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from engine.attention import Store
from engine.errors import InvalidSetting
from engine.generate import check_room
from engine.trunk import hidden_after
from engine.view import CacheView

if TYPE_CHECKING:
    from engine.loader import LoadedModel

_LOGIT_ROWS = 256  # rows of vocabulary logits held at once


class SideBySide:
    """The `Store` of a row of tokens: its i-th slice, of lengths[i] tokens, belongs to views[i]."""

    wants_hidden = False

    def __init__(self, views: Sequence[Store], lengths: Sequence[int]) -> None:
        self.views = list(views)
        self.lengths = list(lengths)

    def see_hidden(self, layer: int, hidden: Tensor) -> None:
        """Store protocol; views have no use for it."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Store protocol: every slice attends to its own view, and to nothing of its neighbours."""
        slices = (x.split(self.lengths, dim=1) for x in (q, k, v))
        return torch.cat(
            [
                view.attend(layer, *parts, scale)
                for view, *parts in zip(self.views, *slices, strict=True)
            ],
            dim=1,
        )


@torch.inference_mode()
def generate_together(
    model: LoadedModel,
    views: Sequence[CacheView],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    max_batch_tokens: int = 1024,
    max_batch: int = 16,
) -> list[list[int]]:
    """Answer prompts[i] on views[i], greedily; returns the new tokens without the stop token.

    max_batch_tokens  prompt tokens read in one forward; a longer prompt is read alone
    max_batch         sequences answered at the same time
    Changes the views: prompt and answer are appended. They may belong to different caches.
    """
    if max_new_tokens < 1:
        raise InvalidSetting(f"max_new_tokens {max_new_tokens} is below 1.")
    for view, prompt in zip(views, prompts, strict=True):
        check_room(view, len(prompt) + max_new_tokens)
    chosen: list[list[int]] = [[] for _ in prompts]
    for batch in _batches([len(p) for p in prompts], max_batch * max_batch_tokens, max_batch):
        following: dict[int, int] = {}
        for part in _batches([len(prompts[i]) for i in batch], max_batch_tokens, max_batch):
            members = [batch[i] for i in part]
            following |= _next_tokens(model, views, {i: prompts[i] for i in members})
        _decode(model, views, following, chosen, max_new_tokens)
    return chosen


@torch.inference_mode()
def nll_together(
    model: LoadedModel,
    views: Sequence[CacheView],
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    max_batch_tokens: int = 1024,
) -> list[float]:
    """Mean negative log-likelihood per token of answers[i] after prompts[i] on views[i], in nats.

    max_batch_tokens  tokens of prompts and answers read in one forward; a longer pair goes alone
    Changes the views: prompt and answer, without its last token, are appended.
    """
    rows = []
    for view, prompt, answer in zip(views, prompts, answers, strict=True):
        if not prompt or not answer:
            raise InvalidSetting("A likelihood needs a prompt and an answer with tokens.")
        rows.append([*prompt, *answer[:-1]])
        check_room(view, len(rows[-1]))
    found: list[float] = []
    for batch in _batches([len(row) for row in rows], max_batch_tokens, len(rows)):
        hidden = _hidden(model, [views[i] for i in batch], [rows[i] for i in batch])
        needed = torch.cat([h[len(prompts[i]) - 1 :] for i, h in zip(batch, hidden, strict=True)])
        wanted = torch.tensor([t for i in batch for t in answers[i]], device=needed.device)
        losses = [
            cross_entropy(model.model.lm_head(h).float(), t, reduction="none")
            for h, t in zip(needed.split(_LOGIT_ROWS), wanted.split(_LOGIT_ROWS), strict=True)
        ]
        each = torch.cat(losses).split([len(answers[i]) for i in batch])
        found += [float(loss.mean()) for loss in each]
    return found


def _decode(
    model: LoadedModel,
    views: Sequence[CacheView],
    following: dict[int, int],
    chosen: list[list[int]],
    max_new_tokens: int,
) -> None:
    """Go on from each sequence's next token until all have ended; `chosen` grows in place."""
    for n in range(max_new_tokens):
        following = {i: t for i, t in following.items() if t not in model.stop_token_ids}
        for i, token in following.items():
            chosen[i].append(token)
        if not following or n + 1 == max_new_tokens:
            return
        following = _next_tokens(model, views, {i: [t] for i, t in following.items()})


def _next_tokens(
    model: LoadedModel, views: Sequence[CacheView], pieces: dict[int, Sequence[int]]
) -> dict[int, int]:
    """Append each piece to the view of its number; returns the most likely token after each."""
    hidden = _hidden(model, [views[i] for i in pieces], list(pieces.values()))
    logits = model.model.lm_head(torch.stack([h[-1] for h in hidden])).float()
    return dict(zip(pieces, logits.argmax(-1).tolist(), strict=True))


def _hidden(
    model: LoadedModel, views: Sequence[CacheView], pieces: Sequence[Sequence[int]]
) -> list[Tensor]:
    """One forward over all pieces; the decoder's output [n, hidden_size] of each."""
    lengths = [len(piece) for piece in pieces]
    if not all(lengths):
        raise InvalidSetting("A prompt needs at least one token.")
    ids = torch.tensor([t for piece in pieces for t in piece], device=model.device)
    return list(hidden_after(model, ids, SideBySide(views, lengths)).split(lengths))


def _batches(lengths: Sequence[int], max_tokens: int, max_members: int) -> Iterator[list[int]]:
    """Neighbouring numbers whose lengths add up to at most max_tokens; an over-long one alone."""
    batch: list[int] = []
    total = 0
    for number, length in enumerate(lengths):
        if batch and (total + length > max_tokens or len(batch) == max_members):
            yield batch
            batch, total = [], 0
        batch.append(number)
        total += length
    if batch:
        yield batch
