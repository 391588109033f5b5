"""Reading a document: chunk by chunk into a cache of bounded size.

For each chunk, in every layer: attend to the kept entries and causally to the chunk, score the
new entries; after the whole forward, evict down to the budget (Locret, arXiv 2410.01805, alg. 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import kernels
from engine.cache import DocCache, LayerCache, settled_layers
from engine.errors import InvalidSetting, NoRoom, PrefillStopped
from engine.eviction import EvictionConfig, HeadEntries, compact_ceiling, select
from engine.memory import give_back_freed
from engine.places import Places
from engine.pruning import pruned
from engine.quantisation import QuantConfig
from engine.read_layer import ReadLayer, attend_within, history_of, pack, rotate_group
from engine.refit import References, refitted, set_aside
from engine.rows import Rows
from engine.scoring import LayerStep, Scorer, group_mean
from engine.splits import Split, settled_counts, splits_of
from engine.stretches import Stretches
from engine.trunk import for_a_text, hidden_after
from kernels.quantise import frame_of

if TYPE_CHECKING:
    from engine.loader import LoadedModel

_LOGIT_ROWS = 256  # rows of vocabulary logits held at once for scorers that want them
# What passing tensors leave free between lasting ones is hardly used again: it is given back after
# so many layers, which takes some milliseconds, and not where chunks are too short to leave much.
_LAYERS_BETWEEN_GIVING_BACK = 6
_TOKENS_WORTH_GIVING_BACK = 256


@dataclass(frozen=True)
class PrefillConfig:
    """How a document is read: tokens a forward pass, what stays, and how entries are stored.

    kv_dtype  "auto" stores 16 bits: the computing dtype if it has 16, else fp16, whose mantissa
              is finer than bf16's; "fp32" stores what was computed.
    """

    chunk_tokens: int = 1024
    eviction: EvictionConfig = field(default_factory=EvictionConfig)
    kv_dtype: str = "auto"
    quant: QuantConfig = field(default_factory=QuantConfig)

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise InvalidSetting(f"chunk_tokens {self.chunk_tokens} is below 1.")
        if self.kv_dtype not in ("auto", "fp32", "fp16", "bf16"):
            raise InvalidSetting(f"kv_dtype '{self.kv_dtype}' is none of auto, fp32, fp16, bf16.")
        if self.eviction.refit and self.quant.v_bits < 16:
            raise InvalidSetting(
                "A refit changes kept values after every chunk; quantised ones would be rounded "
                "again each time.",
                "Keep values in 16 bits, or read without a refit.",
            )

    def storage_dtype(self, compute_dtype: torch.dtype) -> torch.dtype:
        """The dtype keys and values are kept in."""
        if self.kv_dtype == "auto":
            return torch.float16 if compute_dtype == torch.float32 else compute_dtype
        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.kv_dtype]


@torch.inference_mode()
def prefill(
    model: LoadedModel,
    token_ids: Sequence[int],
    config: PrefillConfig,
    scorer: Scorer,
    *,
    resume: DocCache | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    on_checkpoint: Callable[[DocCache], None] | None = None,
    checkpoint_every_chunks: int = 8,
    see_whole: Callable[[DocCache], None] | None = None,
) -> DocCache:
    """Read `token_ids` into a frozen cache.

    resume         a cache of the same document's beginning, as given to `on_checkpoint`
    on_progress    (tokens done, tokens in all), after each chunk
    stop           asked before each chunk; true raises PrefillStopped, which carries the cache
    on_checkpoint  gets the cache every `checkpoint_every_chunks` chunks, not after the last
    see_whole      gets the cache after each chunk, frozen, before anything of it is evicted
    Raises         InvalidSetting if the document or the resumed state cannot be read this way
    """
    if see_whole is not None and config.eviction.refit:
        raise InvalidSetting("A reading whose whole chunks are looked at does not refit values.")
    ids = torch.as_tensor(token_ids, dtype=torch.int64)
    cache = _start(model, ids, config, scorer, resume)
    ceiling = _ceiling(cache, config)
    model = for_a_text(model, len(ids) - cache.n_seen)
    n_chunks = 0
    while cache.n_seen < len(ids):
        if stop is not None and stop():
            cache.scorer_state = scorer.state()
            raise PrefillStopped(cache, cache.n_seen, len(ids))
        chunk = ids[cache.n_seen : cache.n_seen + config.chunk_tokens]
        last = cache.n_seen + len(chunk) == len(ids)
        read_chunk(
            model, cache, chunk, config, scorer, last=last, ceiling=ceiling, see_whole=see_whole
        )
        n_chunks += 1
        if on_progress is not None:
            on_progress(cache.n_seen, len(ids))
        if on_checkpoint is not None and not last and n_chunks % checkpoint_every_chunks == 0:
            cache.scorer_state = scorer.state()
            on_checkpoint(cache)
    cache.scorer_state = scorer.state()
    if model.device == "cpu":
        give_back_freed()
    return cache.freeze()


def _start(
    model: LoadedModel,
    ids: Tensor,
    config: PrefillConfig,
    scorer: Scorer,
    resume: DocCache | None,
) -> DocCache:
    if not len(ids):
        raise InvalidSetting("There is nothing to read: the document has no tokens.")
    window = model.geometry.window
    mode = config.eviction.resolve_positions(len(ids), window)
    if resume is not None and config.eviction.positions == "auto" and mode == "shared":
        mode = resume.positions_mode  # it may have been begun when another was the rule
    if mode == "original" and len(ids) > window:
        raise NoRoom(
            f"{len(ids)} tokens at their original positions exceed the model's window of {window}.",
            "Use compact positions.",
        )
    scorer.reset()
    if resume is None:
        return DocCache.empty(
            model.geometry,
            model.rotary,
            mode,
            compute_dtype=model.compute_dtype,
            kv_dtype=config.storage_dtype(model.compute_dtype),
            device=torch.device(model.device),
            quant=config.quant,
        )
    if resume.quant != config.quant:
        raise InvalidSetting("The saved beginning was read with other bits.")
    if resume.positions_mode != mode or not torch.equal(resume.token_ids, ids[: resume.n_seen]):
        raise InvalidSetting("The saved beginning belongs to another document or setting.")
    scorer.load_state(resume.scorer_state)
    resume.frozen = False
    return resume


def _ceiling(cache: DocCache, config: PrefillConfig) -> int | None:
    """Most entries a head may hold; None for no such bound."""
    if cache.positions_mode == "original":
        return None
    if config.eviction.budget_tokens is None:
        raise InvalidSetting(
            "Compact positions need a budget: a whole text does not fit the trained window.",
            "Set a budget.",
        )
    ceiling = compact_ceiling(cache.geometry.window, config.chunk_tokens)
    if ceiling <= config.eviction.protected_tokens:
        reserve = cache.geometry.window - ceiling
        raise InvalidSetting(
            f"The model's window of {cache.geometry.window} tokens has no room for the "
            f"{config.eviction.protected_tokens} protected entries beside {reserve} new tokens.",
            "Use smaller chunks, or a model with a larger window.",
        )
    return ceiling


def read_chunk(
    model: LoadedModel,
    cache: DocCache,
    chunk: Tensor,
    config: PrefillConfig,
    scorer: Scorer,
    *,
    last: bool,
    ceiling: int | None = None,
    see_whole: Callable[[DocCache], None] | None = None,
) -> None:
    """Read one chunk [n] of token ids and evict down to the budget. Changes the cache in place.

    see_whole  gets the cache, frozen, while it still holds the whole chunk
    """
    step = ChunkStore(cache, scorer, len(chunk), refit=config.eviction.refit)
    chunk = chunk.to(model.device)
    hidden = hidden_after(model, chunk, step)
    if scorer.wants_logits:
        step.replace_scores(_prediction_scores(model, cache, hidden, chunk, scorer))
    cache.last_logits = model.model.lm_head(hidden[-1]).float()
    cache.token_ids = torch.cat([cache.token_ids, chunk.cpu()])
    step.give_back()
    if see_whole is None:
        step.evict(config.eviction, last=last, ceiling=ceiling)
        return
    step.evict(replace(config.eviction, budget_tokens=None), last=False, ceiling=None)
    see_whole(replace(cache, frozen=True))
    layers = pruned(cache, None, config.eviction, last=last, ceiling=ceiling).layers
    if config.quant.on:
        before = config.quant.settled_before(cache.n_seen, last=last)
        layers = settled_layers(layers, before, config.quant)
    cache.layers = layers


def _prediction_scores(
    model: LoadedModel, cache: DocCache, hidden: Tensor, chunk: Tensor, scorer: Scorer
) -> Tensor:
    """Scores of a chunk from the predictions of its tokens, a few rows of logits at a time."""
    scores = []
    for first in range(0, len(chunk), _LOGIT_ROWS):
        rows = range(first, min(first + _LOGIT_ROWS, len(chunk)))
        if first == 0:
            logits = model.model.lm_head(hidden[: rows.stop - 1]).float()
            before = cache.last_logits
            before = (
                logits.new_zeros(model.model.lm_head.out_features) if before is None else before
            )
            logits = torch.cat([before.to(logits.device)[None], logits])
        else:
            logits = model.model.lm_head(hidden[first - 1 : rows.stop - 1]).float()
        part = scorer.see_logits(logits, chunk[rows.start : rows.stop])
        assert part is not None
        scores.append(part)
    return torch.cat(scores)


class ChunkStore:
    """The `Store` of one chunk: reads the kept entries, holds the new ones until the eviction."""

    def __init__(self, cache: DocCache, scorer: Scorer, n_new: int, *, refit: bool = False) -> None:
        self.cache = cache
        self.scorer = scorer
        self.wants_hidden = scorer.wants_hidden
        device = cache.layers[0].positions.device
        self.positions = torch.arange(cache.n_seen, cache.n_seen + n_new, device=device)
        self._places = Places(cache)
        self._hidden: Tensor | None = None
        self._new = self._room(n_new)
        self._scores: list[list[Tensor]] = []  # per layer, per head: kept entries, then new ones
        self._refit = refit
        self._references: list[tuple[References | None, Tensor]] = []  # and where keys are turned

    def _room(self, n_new: int) -> Tensor:
        """For the chunk's keys and values: [n_layers, 2, n_kv_heads, n_new, head_dim].

        In one block, as they will be kept: they outlive the tensors that come and go beside them,
        and each by itself would lie between two gaps.
        """
        geometry, kept = self.cache.geometry, self.cache.layers[0].keys.fine
        shape = (geometry.n_layers, 2, geometry.n_kv_heads, n_new, geometry.head_dim)
        return torch.empty(shape, dtype=kept.dtype, device=kept.device)

    def give_back(self) -> None:
        """Return what lies freed to the system; a card's memory is torch's own affair."""
        if self.positions.device.type == "cpu" and len(self.positions) >= _TOKENS_WORTH_GIVING_BACK:
            give_back_freed()

    def see_hidden(self, layer: int, hidden: Tensor) -> None:
        """Store protocol."""
        self._hidden = hidden

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Store protocol: kept entries without a mask, the chunk causally, merged exactly."""
        if layer % _LAYERS_BETWEEN_GIVING_BACK == 0:
            self.give_back()
        cache, geometry = self.cache, self.cache.geometry
        kept = Stretches(cache, cache.layers[layer], self._places)
        positions = self._places.starts(kept.layer) + torch.arange(k.shape[1], device=k.device)
        q_rot = rotate_group(cache.rotary, q, positions)
        k_rot = cache.rotary.rotate(k, positions)
        if kernels.fuses(k.device):
            history = history_of(cache, kept.layer, self._places)
            out, each = kernels.attend_chunk(q_rot, k_rot, v, history, scale)
            lse = each.reshape(geometry.n_kv_heads, -1)
        else:
            out, lse = attend_within(q_rot, k_rot, v, scale, geometry.n_kv_heads)
            kept.join(pack(q_rot, geometry.n_kv_heads), out, lse, scale)
        mass: tuple[Tensor | None, list[Tensor]] = (None, [])
        if self.scorer.wants_mass:
            mass = _mass(kept, q_rot, k_rot, lse, scale)
        self._score(layer, q, k, v, scale, mass)
        out = out.reshape(q.shape)
        if self._refit:
            aside = set_aside(q_rot, k_rot, v, out, scale, geometry.n_kv_heads)
            self._references.append((aside, positions))
        return out

    def _score(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        mass: tuple[Tensor | None, list[Tensor]],
    ) -> None:
        cached = self.cache.layers[layer]
        step = LayerStep(
            layer, self.cache.geometry, q, k, v, self.positions, scale, self._hidden, *mass
        )
        n_heads = self.cache.geometry.n_kv_heads
        kept = [cached.scores[cached.rows(head)] for head in range(n_heads)]
        new = self.scorer.score(step).to(torch.float32)
        kept = self.scorer.rescore(step, kept)
        self._scores.append([torch.cat([kept[h], new[h]]) for h in range(n_heads)])
        for place, part in zip(self._new[layer], (k, v), strict=True):
            place.copy_(stored(part, place.dtype))

    def replace_scores(self, scores: Tensor) -> None:
        """Give the chunk's entries these scores [n] in every layer and head."""
        n_new = len(scores)
        for row in self._scores:
            for head, old in enumerate(row):
                row[head] = torch.cat([old[: len(old) - n_new], scores])

    def evict(self, config: EvictionConfig, *, last: bool, ceiling: int | None) -> None:
        """Append the chunk to the cache and drop what the budget does not hold."""
        new_positions = self.positions.to(torch.int32)
        entries = []
        for layer, scores in zip(self.cache.layers, self._scores, strict=True):
            places = [torch.cat([old, new_positions]) for old in layer.head_positions]
            entries.append([HeadEntries(s, p) for s, p in zip(scores, places, strict=True)])
        chosen = select(entries, config, self.cache.n_seen, last=last, ceiling=ceiling)
        quant, n_read = self.cache.quant, self.cache.n_seen
        positions = [
            [e.positions[index] for e, index in zip(heads, row, strict=True)]
            for heads, row in zip(entries, chosen, strict=True)
        ]
        # Before anything moves: the device is asked once for all layers.
        splits = list(splits_of(self.cache.layers, chosen))
        before = quant.settled_before(n_read, last=last)
        settled = list(settled_counts(positions, before)) if quant.on else []
        for number, row in enumerate(chosen):
            values = self._refitted(number, row) if self._references else None
            self._lay_frame(number)
            scores = [e.scores[i] for e, i in zip(entries[number], row, strict=True)]
            kept = self._gathered(number, row, splits[number], positions[number], scores)
            if values is not None:
                values = stored(values, kept.values.fine.dtype)
                kept.values = Rows.of_floats(values, kept.offsets)
            self.cache.layers[number] = kept.settled(settled[number], quant) if quant.on else kept
            if self._references:
                self._references[number] = (None, torch.empty(0))
        self._new = torch.empty(0)  # the cache has it

    def _refitted(self, number: int, chosen: list[Tensor]) -> Tensor | None:
        """The values of a layer's kept entries after the refit: [sum_len, head_dim] fp32."""
        references, positions = self._references[number]
        n_all = self.cache.layers[number].offsets[-1] + len(chosen) * len(self.positions)
        if references is None or sum(map(len, chosen)) == n_all:
            return None
        layer, (new_k, new_v) = self.cache.layers[number], self._new[number]
        entries = ReadLayer.of(self.cache, layer, self._places)
        turned = self.cache.rotary.rotate(new_k.to(self.cache.compute_dtype), positions)
        old = zip(entries.heads(), entries.value_heads(), strict=True)
        found = []
        for head, (index, (old_k, old_v)) in enumerate(zip(chosen, old, strict=True)):
            n_old = old_k.shape[1]
            keys = torch.cat([old_k[0], turned[head]])[index]
            values = torch.cat([old_v[0], new_v[head].to(old_v.dtype)])[index]
            if len(index) < n_old + len(self.positions):
                values = refitted(references, head, keys, values, index - n_old)
            found.append(values.float())
        return torch.cat(found)

    def _gathered(
        self,
        number: int,
        chosen: list[Tensor],
        splits: tuple[list[Split], list[Split]],
        positions: list[Tensor],
        scores: list[Tensor],
    ) -> LayerCache:
        layer, (new_k, new_v) = self.cache.layers[number], self._new[number]
        return LayerCache(
            layer.keys.taken(chosen, splits[0], new_k),
            layer.values.taken(chosen, splits[1], new_v),
            torch.cat(positions),
            torch.cat(scores),
        )

    def _lay_frame(self, number: int) -> None:
        """Fix the keys' frame, by the first chunk that holds more than the newest tokens."""
        layer, quant = self.cache.layers[number], self.cache.quant
        unsettled = self.cache.n_seen <= quant.recent_tokens
        if quant.k_bits == 16 or layer.keys.frame is not None or unsettled:
            return
        fine = layer.keys.fine.dtype
        old = [layer.keys.floats(head, fine) for head in range(len(layer.lengths))]
        rows = [torch.cat([o, new]) for o, new in zip(old, self._new[number][0], strict=True)]
        layer.keys = replace(layer.keys, frame=frame_of(rows))


def stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys or values in the storage dtype; refuses what fp16 cannot hold rather than clip it."""
    stored = x.to(dtype, copy=True)
    if dtype == torch.float16 and not bool(torch.isfinite(stored).all()):
        raise InvalidSetting(
            "This model's keys or values exceed the range of 16-bit floats.",
            "Store the cache in bf16 or fp32 (kv_dtype).",
        )
    return stored


def _mass(
    kept: Stretches, q: Tensor, k: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, list[Tensor]]:
    """Attention received by new entries [n_kv_heads, n] and by kept ones, mean over the group."""
    n_kv_heads = k.shape[0]
    group = q.shape[0] // n_kv_heads
    per_query = lse.reshape(q.shape[0], -1)
    repeated = k.repeat_interleave(group, dim=0)
    new = kernels.key_mass(q, repeated, per_query, scale, causal=True)
    received = kept.mass(pack(q, n_kv_heads), lse, scale)
    return group_mean(new, n_kv_heads), [mass / group for mass in received]
