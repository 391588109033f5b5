"""Second reading: a document is read into a larger cache first, and repeated to choose what stays.

The first pass keeps FIRST_PASS_FACTOR times the budget, by what a scorer expects. Then the model is
asked to repeat the document piece by piece, from the kept entries alone; what they give is
measured (`kvzip_plus`, see heads.labels), and the cache is cut down to its budget by that and by
what the scorer expected, each brought to mean 0 and deviation 1 over all entries.
KVzip (2505.23416) chooses so from a full cache; here memory stays bounded, and so is the choice:
what the first pass dropped is gone. One piece is held at a time. With a refit, some queries of the
replay are noted, and the values that stay answer them as all entries of the first pass did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.errors import NoRoom, PrefillStopped
from engine.eviction import EvictionConfig, compact_ceiling
from engine.places import Places
from engine.prefill import PrefillConfig, stored
from engine.pruning import pruned
from engine.read_layer import ReadLayer
from engine.refit import OLDER, RIDGE, References, joined, refitted
from engine.rows import Rows
from engine.trunk import for_a_text
from heads.labels import Kind, Labels, Probe, measure, output_grams
from heads.layout import Layout
from heads.replay import most_request_tokens, request_ids

if TYPE_CHECKING:
    from engine.cache import DocCache
    from engine.loader import LoadedModel

FIRST_PASS_FACTOR = 2.5  # entries of the first pass over those that stay
PIECE_TOKENS = 1024
# The replay's part of what an entry is worth; the scorer's is the rest (heads/LOG.md).
REPLAY_SHARE = 0.25
N_NOTED = 512  # replayed tokens noted for a refit, over the whole document
_LEAST_NOTED = 4  # of each piece
REFIT_KEY = ["replay", N_NOTED, _LEAST_NOTED, RIDGE]  # what a second reading's refit depends on
_KIND: Kind = "kvzip_plus"
_LEAST_PIECE = 64  # a reading in smaller pieces would take too long to be worth its name


def first_budget(budget_tokens: int) -> int:
    """Entries per layer and head that the first pass keeps for a final budget."""
    return round(FIRST_PASS_FACTOR * budget_tokens)


def first_pass(config: PrefillConfig) -> PrefillConfig:
    """How the first pass reads for a final `config`."""
    budget = config.eviction.budget_tokens
    if budget is None:
        return config
    eviction = replace(config.eviction, budget_tokens=first_budget(budget), refit=False)
    return replace(config, eviction=eviction)


def check_room(window: int, layout: Layout, n_tokens: int, config: PrefillConfig) -> None:
    """Raise NoRoom, before the first pass, if n_tokens leave no room to be repeated."""
    if config.eviction.resolve_positions(n_tokens, window) == "original":
        room = window - n_tokens
    else:
        room = window - compact_ceiling(window, config.chunk_tokens)  # which prefill leaves free
    _piece_tokens(room, most_request_tokens(layout), _LEAST_PIECE, window)


def read_again(
    model: LoadedModel,
    cache: DocCache,
    layout: Layout,
    n_header: int,
    config: EvictionConfig,
    *,
    piece_tokens: int = PIECE_TOKENS,
    on_progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> DocCache:
    """The frozen cache of a first pass, cut down to `config` by what a replay needs and by what
    its scores expected; frozen.

    n_header     tokens of the layout in front of the document; they are not repeated
    config       the final budget and rules; positions are the cache's own
    on_progress  (tokens done, tokens in all), after each piece
    stop         asked before each piece; true raises PrefillStopped with the cache as it was
    Raises       NoRoom if the window has no room for a piece beside the kept entries
    """
    if config.budget_tokens is None:
        return cache
    ids = cache.token_ids.tolist()
    model = for_a_text(model, len(ids))
    scores = [
        [torch.full((n,), -torch.inf, device=layer.scores.device) for n in layer.lengths]
        for layer in cache.layers
    ]
    grams = output_grams(model)
    noted: list[list[References]] = []
    per_piece = max(N_NOTED * piece_tokens // len(ids), _LEAST_NOTED) if config.refit else 0
    first = 0
    while first < len(ids):
        if stop is not None and stop():
            raise PrefillStopped(cache, first, len(ids))
        request = request_ids(layout, ids, n_header, first)
        n = _piece_tokens(_room(cache), len(request), piece_tokens, cache.geometry.window)
        end = min(first + n, len(ids))
        labels = Labels([_KIND], cache.geometry.n_layers, cache.geometry.n_kv_heads, end - first)
        piece = ids[max(first, n_header) : end]
        rows = len(request) + _spread(len(piece), per_piece) if config.refit else None
        probe = Probe([*request, *piece], noted_rows=rows)
        noted += measure(model, cache, grams, [probe], labels, first=first, n_sinks=n_header)
        _take_in(scores, cache, labels.finished()[_KIND], first)
        first = end
        if on_progress is not None:
            on_progress(first, len(ids))
    small = pruned(cache, dict(enumerate(blended(scores, cache))), config)
    return _refitted(small, cache, noted) if config.refit else small


def blended(replayed: list[list[Tensor]], cache: DocCache) -> list[list[Tensor]]:
    """What entries are worth, [kept] of each layer and head: the replay and the scorer together.

    What the replay did not see is worth minus infinity, as before.
    """
    expected = [
        [layer.scores[layer.rows(head)] for head in range(len(layer.lengths))]
        for layer in cache.layers
    ]
    pairs = zip(_standardised(replayed), _standardised(expected), strict=True)
    return [
        [REPLAY_SHARE * a + (1 - REPLAY_SHARE) * b for a, b in zip(row_a, row_b, strict=True)]
        for row_a, row_b in pairs
    ]


def _standardised(scores: list[list[Tensor]]) -> list[list[Tensor]]:
    """Less the mean, over the deviation, of all finite scores; all alike become zeros."""
    whole = torch.cat([row for heads in scores for row in heads])
    finite = whole[torch.isfinite(whole)]
    mean, deviation = finite.mean(), finite.std(correction=0).clamp(min=1e-6)
    return [[(row - mean) / deviation for row in heads] for heads in scores]


def _spread(n: int, wanted: int) -> Tensor:
    """At most `wanted` of n rows, evenly spaced: int64."""
    m = min(n, wanted)
    return torch.arange(m) * n // max(m, 1)


def _refitted(small: DocCache, large: DocCache, noted: list[list[References]]) -> DocCache:
    """The chosen entries with values that answer what was noted as the large cache did."""
    layers = []
    for number, layer in enumerate(small.layers):
        references = joined([piece[number] for piece in noted])
        entries, whole = ReadLayer.of(large, large.layers[number]), large.layers[number]
        values = []
        heads = zip(entries.heads(), entries.value_heads(), strict=True)
        for head, (keys, old) in enumerate(heads):
            positions = layer.positions[layer.rows(head)]
            index = torch.searchsorted(whole.positions[whole.rows(head)], positions)
            places = torch.full_like(index, OLDER)
            values.append(refitted(references, head, keys[0, index], old[0, index], places))
        new = stored(torch.cat(values), layer.values.fine.dtype)
        layers.append(replace(layer, values=Rows.of_floats(new, layer.offsets)))
    return replace(small, layers=layers, _readable=[])


def _room(cache: DocCache) -> int:
    """Positions of the trained window that the cache leaves to a probe."""
    return cache.geometry.window - Places(cache).end


def _piece_tokens(room: int, n_request: int, wanted: int, window: int) -> int:
    """Tokens of a piece that fit into `room` after the request, at most `wanted`."""
    fitting = min(wanted, room - n_request)
    if fitting < min(wanted, _LEAST_PIECE):
        raise NoRoom(
            f"The model's window of {window} tokens has no room to repeat the document beside "
            "what is kept of it.",
            "Read it once, or with compact positions and a smaller budget.",
        )
    return fitting


def _take_in(scores: list[list[Tensor]], cache: DocCache, found: Tensor, first: int) -> None:
    """Give the entries at positions first to first + n what was measured: [layers, heads, n]."""
    n = found.shape[-1]
    for number, layer in enumerate(cache.layers):
        for head, row in enumerate(scores[number]):
            places = layer.positions[layer.rows(head)].long() - first
            here = (places >= 0) & (places < n)
            row[here] = found[number, head].to(row.device)[places[here]]
