"""Oracles: scores that need the whole cache, and may see the questions; bounds, not scorers.

An oracle cannot read a document in chunks of bounded memory, but it says how good a choice of
entries could have been. Evaluation accepts its name wherever it accepts a scorer's, and always
prunes the full cache with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.scoring import Scorer
from heads.labels import Kind, Labels, Probe, measure, output_grams
from heads.layout import Layout, Prefix, plain_ids
from heads.replay import most_request_tokens, replay_ids
from heads.self_asked import self_asked

if TYPE_CHECKING:
    from engine.cache import DocCache
    from engine.eviction import Allocation
    from engine.loader import LoadedModel


# A question's tokens after the prefix, and those of its first true answer.
Asked = tuple[list[int], list[int]]
# (model, full frozen cache, layout, prefix, questions)
# -> per layer [n_kv_heads, n] fp32, higher = keep.
Oracle = Callable[["LoadedModel", "DocCache", Layout, Prefix, Sequence[Asked]], dict[int, Tensor]]

PIECE_TOKENS = 2048  # the context is repeated in pieces of this length (KVzip, 2505.23416)


# Importance by attention has a scale of its own in every layer: heads cannot share a budget by it.
OWN_ALLOCATION: dict[str, Allocation] = {"cis_oracle": "uniform"}


def scorer_of_oracle(name: str) -> Scorer:
    """A scorer that says how an oracle's budget is shared out, and nothing else."""
    found = Scorer()
    found.allocation = OWN_ALLOCATION.get(name, found.allocation)
    return found


def replayed(
    model: LoadedModel,
    cache: DocCache,
    layout: Layout,
    prefix: Prefix,
    asked: Sequence[Asked],
    kind: Kind,
) -> dict[int, Tensor]:
    """What repeating the whole document needs: `kvzip` or `kvzip_plus`, questions unknown."""
    grams, ids = output_grams(model), prefix.token_ids
    room = model.geometry.window - len(ids) - most_request_tokens(layout)
    size = max(min(PIECE_TOKENS, room), 1)
    found = []
    for first in range(0, len(ids), size):
        end = min(first + size, len(ids))
        labels = _labels(model, kind, end - first)
        probe = Probe(replay_ids(layout, ids, prefix.n_header, first, end))
        measure(model, cache, grams, [probe], labels, first=first, n_sinks=prefix.n_header)
        found.append(labels.finished()[kind])
    return dict(enumerate(torch.cat(found, dim=-1)))


def answered(
    model: LoadedModel,
    cache: DocCache,
    layout: Layout,
    prefix: Prefix,
    asked: Sequence[Asked],
    kind: Kind,
) -> dict[int, Tensor]:
    """What the true questions with their true answers need: knows what nobody can know."""
    labels = _labels(model, kind, cache.n_seen)
    probes = [Probe([*tail, *answer], answer_row=len(tail)) for tail, answer in asked]
    measure(model, cache, output_grams(model), probes, labels, first=0, n_sinks=0)
    return dict(enumerate(labels.finished()[kind]))


def self_questioned(
    model: LoadedModel,
    cache: DocCache,
    layout: Layout,
    prefix: Prefix,
    asked: Sequence[Asked],
    kind: Kind,
) -> dict[int, Tensor]:
    """What the model's own questions and answers need (heads.self_asked), the true ones unknown."""
    tokenizer = layout.tokenizer
    own: list[Asked] = [
        (layout.tail(question), plain_ids(tokenizer, answer))
        for question, answer in self_asked(model, layout, cache, ())
        if answer.strip()
    ]
    return answered(model, cache, layout, prefix, own, kind)


def _labels(model: LoadedModel, kind: Kind, n: int) -> Labels:
    return Labels([kind], model.geometry.n_layers, model.geometry.n_kv_heads, n)


ORACLES: dict[str, Oracle] = {
    "kvzip_oracle": partial(replayed, kind="kvzip"),
    "kvzip_plus_oracle": partial(replayed, kind="kvzip_plus"),
    "self_asked_oracle": partial(self_questioned, kind="kvzip_plus"),
    "cis_oracle": partial(answered, kind="cis"),
    "answers_oracle": partial(answered, kind="kvzip_plus"),
}
