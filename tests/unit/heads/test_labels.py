"""Labels against full attention matrices: the stock model's own, and dense ones of plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.attention import decoder_of
from engine.cache import DocCache
from engine.eviction import EvictionConfig
from engine.prefill import PrefillConfig, prefill
from engine.rows import Rows
from engine.scorers.uniform_random import RandomScorer
from heads.labels import KINDS, Kind, Labels, Probe, measure, output_grams
from tests.fakes import TinyModel, ready, stock_model, tiny_config, tokens

FAMILIES = ("llama", "qwen2", "qwen3", "phi3")
TEXT, N = tokens(60), 60
PROBE = Probe(tokens(11, seed=3), answer_row=7)
FULL = EvictionConfig(None, positions="original")
RAGGED = EvictionConfig(
    40, "global", head_floor=0.0, sink_tokens=2, stabilizer_tokens=4, local_tokens=3,
    positions="original",
)  # fmt: skip


def stock(family: str = "llama", **changes: Any) -> Any:
    """A stock model whose biases, where its family has any, are not zero."""
    model = stock_model(tiny_config(family, **changes))
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    return model


def read(model: Any, rules: EvictionConfig = FULL) -> DocCache:
    return prefill(model, TEXT, PrefillConfig(16, rules, "fp32"), RandomScorer(1))


def found(
    model: Any,
    cache: DocCache,
    probes: Sequence[Probe],
    kinds: Sequence[Kind] = KINDS,
    first: int = 0,
    n: int = N,
    n_sinks: int = 0,
    **how: Any,
) -> dict[Kind, Tensor]:
    labels = Labels(kinds, 2, model.geometry.n_kv_heads, n)
    grams = output_grams(model)
    measure(model, cache, grams, probes, labels, first=first, n_sinks=n_sinks, **how)
    return labels.finished()


class Dense:
    """A `Store` that attends the slow way, and writes down what every label is made of."""

    wants_hidden = True

    def __init__(self, model: TinyModel, cache: DocCache) -> None:
        self.model, self.cache = model, cache
        self.norms: list[Tensor] = []
        # Per layer and KV head: entries' positions, their values, logits [group, n_probe, kept],
        # logits of the probe itself with -inf above the diagonal.
        self.heads: list[list[tuple[Tensor, Tensor, Tensor, Tensor]]] = []

    def see_hidden(self, layer: int, hidden: Tensor) -> None:
        self.norms.append(torch.linalg.vector_norm(hidden, dim=-1))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        turn, entries = self.model.rotary.rotate, self.cache.layers[layer]
        places = self.cache.n_seen + torch.arange(k.shape[1])
        q, k = turn(q, places), turn(k, places)
        future = torch.ones(k.shape[1], k.shape[1], dtype=torch.bool).triu(1)
        rows, out = [], []
        for head, (own_q, own_k, own_v) in enumerate(
            zip(q.split(self.model.geometry.group_size), k, v, strict=True)
        ):
            at = entries.positions[entries.rows(head)]
            keys = turn(entries.keys.fine[entries.rows(head)], at)
            values = entries.values.fine[entries.rows(head)]
            far = own_q @ keys.T * scale
            near = (own_q @ own_k.T * scale).masked_fill(future, -torch.inf)
            attention = torch.cat([far, near], -1).softmax(-1)
            out.append(attention @ torch.cat([values, own_v]))
            rows.append((at, values, far, near))
        self.heads.append(rows)
        return torch.cat(out)


def dense_labels(
    model: Any, cache: DocCache, probes: Sequence[Probe], first: int, n: int, sinks: int
) -> dict[Kind, Tensor]:
    """Every kind as [n_layers, n_kv_heads, n], -inf where a head has no entry."""
    group, dim = model.geometry.group_size, model.geometry.head_dim
    shape = (len(probes), 2, model.geometry.n_kv_heads, n)
    parts = {kind: torch.full(shape, -torch.inf) for kind in KINDS}
    for number, probe in enumerate(probes):
        store = Dense(model, cache)
        with torch.inference_mode():
            decoder_of(model.model)(
                input_ids=torch.tensor([probe.token_ids]), use_cache=False, store=store
            )
        for layer, heads in enumerate(store.heads):
            w = decoder_of(model.model).layers[layer].self_attn.o_proj.weight
            for head, (at, values, far, near) in enumerate(heads):
                inside = (at >= first) & (at < first + n)
                seen = inside | (at < min(sinks, first))
                for g in range(group):
                    logits = far[g]
                    weights = torch.cat([logits[:, seen], near[g]], -1).softmax(-1)
                    a = torch.zeros_like(logits)
                    a[:, seen] = weights[:, : int(seen.sum())]
                    place = slice((head * group + g) * dim, (head * group + g + 1) * dim)
                    size = torch.linalg.vector_norm(values @ w[:, place].T, dim=-1)
                    moved = a * size / store.norms[layer][:, None]
                    values_of: dict[Kind, Tensor] = {
                        "cis": logits[probe.answer_row :].amax(0),
                        "kvzip": a.log().amax(0),
                        "kvzip_plus": moved.log().amax(0),
                        "expected": moved.sum(0).log(),
                    }
                    where = at[inside].long() - first
                    for kind, value in values_of.items():
                        row = parts[kind][number, layer, head]
                        row[where] = torch.maximum(row[where], value[inside])
    n_rows = sum(len(p.token_ids) for p in probes)
    joined = {kind: part.amax(0) for kind, part in parts.items()}
    return {**joined, "expected": (parts["expected"].exp().sum(0) / n_rows).log()}


@pytest.mark.parametrize("family", FAMILIES)
def test_kvzip_is_the_largest_attention_of_the_stock_model(family: str) -> None:
    theirs = stock(family)
    with torch.inference_mode():
        maps = theirs(torch.tensor([[*TEXT, *PROBE.token_ids]]), output_attentions=True).attentions
    received = torch.stack([m[0, :, N:, :N].amax(1).reshape(2, 2, N).amax(1) for m in maps])
    ours: Any = ready(theirs)
    labels = found(ours, read(ours), [PROBE], ["kvzip"])
    torch.testing.assert_close(labels["kvzip"], received.log(), atol=2e-4, rtol=1e-4)


CASES: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"num_key_value_heads": 1, "head_dim": 16}),
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"attention_bias": True}),
]
MIDDLE = (17, 26, 5)
STRETCHES = [(0, N, 0), (0, 20, 5), MIDDLE, (40, 20, 3), (10, 8, 25)]


@pytest.mark.parametrize("rules", [FULL, RAGGED], ids=["whole", "ragged"])
@pytest.mark.parametrize(
    ("family", "changes", "first", "n", "sinks"),
    [*(("llama", {}, *s) for s in STRETCHES), *((*case, *MIDDLE) for case in CASES[1:])],
)
def test_every_kind_equals_its_dense_formula(
    family: str, changes: dict[str, Any], first: int, n: int, sinks: int, rules: EvictionConfig
) -> None:
    model: Any = ready(stock(family, **changes))
    cache = read(model, rules)
    probes = [PROBE, Probe(tokens(5, seed=4)), Probe(tokens(8, seed=6), answer_row=2)]
    labels = found(model, cache, probes, first=first, n=n, n_sinks=sinks)
    assert set(labels) == set(KINDS)
    expected = dense_labels(model, cache, probes, first, n, sinks)
    torch.testing.assert_close(labels, expected, atol=3e-4, rtol=1e-4)


def test_entries_a_head_has_lost_stay_without_a_label() -> None:
    model: Any = ready(stock())
    cache = read(model, RAGGED)
    lengths = [n for layer in cache.layers for n in layer.lengths]
    assert len(set(lengths)) > 1, "the heads are to differ in length"
    for label in found(model, cache, [PROBE]).values():
        assert label.isfinite().sum(-1).flatten().tolist() == lengths
        assert bool((label[~label.isfinite()] == -torch.inf).all())


def test_a_stretch_that_the_first_head_has_lost_is_counted_all_the_same() -> None:
    """The mean's denominator is the probe's tokens, whoever still holds an entry."""
    model: Any = ready(stock())
    cache = read(model)
    entries = cache.layers[0]
    gone = torch.ones(len(entries.positions), dtype=torch.bool)
    gone[20:30] = False
    offsets = (0, N - 10, 2 * N - 10)
    entries.keys, entries.values = (
        Rows.of_floats(side.fine[gone], offsets) for side in (entries.keys, entries.values)
    )
    entries.positions, entries.scores = entries.positions[gone], entries.scores[gone]
    labels = found(model, cache, [PROBE, PROBE], first=20, n=10, n_sinks=4)
    assert bool((labels["expected"][0, 0] == -torch.inf).all())
    expected = dense_labels(model, cache, [PROBE, PROBE], 20, 10, 4)
    torch.testing.assert_close(labels, expected, atol=3e-4, rtol=1e-4)


def test_cis_counts_the_answer_alone() -> None:
    model: Any = ready(stock())
    cache = read(model)
    parts = {
        row: found(model, cache, [Probe(PROBE.token_ids, row)], ["cis", "kvzip"]) for row in (0, 7)
    }
    assert bool((parts[7]["cis"] <= parts[0]["cis"]).all())
    assert not torch.equal(parts[7]["cis"], parts[0]["cis"])
    assert torch.equal(parts[7]["kvzip"], parts[0]["kvzip"])


@pytest.mark.parametrize("rules", [FULL, RAGGED], ids=["whole", "ragged"])
def test_probes_side_by_side_are_probes_one_by_one(rules: EvictionConfig) -> None:
    model: Any = ready(stock("qwen2"))
    cache = read(model, rules)
    probes = [Probe(tokens(n, seed=n), answer_row=n // 2) for n in (5, 9, 3, 12, 7)]
    together = found(model, cache, probes, n_sinks=3, first=3, n=40)
    alone = found(model, cache, probes, n_sinks=3, first=3, n=40, max_batch_tokens=1)
    some = found(model, cache, probes, n_sinks=3, first=3, n=40, max_batch_tokens=15)
    for kind in KINDS:
        torch.testing.assert_close(together[kind], alone[kind], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(some[kind], alone[kind], atol=1e-5, rtol=1e-5)


def test_a_cache_is_measured_without_being_changed() -> None:
    model: Any = ready(stock())
    cache = read(model)
    before = [(layer.keys.fine.clone(), layer.scores.clone()) for layer in cache.layers]
    found(model, cache, [PROBE, PROBE])
    for layer, (keys, scores) in zip(cache.layers, before, strict=True):
        assert torch.equal(layer.keys.fine, keys) and torch.equal(layer.scores, scores)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_logits_are_held_a_few_rows_at_a_time(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = ready(stock())
    cache = read(model)
    whole = found(model, cache, [PROBE])
    largest = []
    product = torch.addmm

    def watched(*parts: Tensor, **how: Any) -> Tensor:
        out = product(*parts, **how)
        largest.append(len(out))
        return out

    monkeypatch.setattr("heads.labels._ROWS", rows)
    monkeypatch.setattr("heads.labels.torch.addmm", watched)
    labels = found(model, cache, [PROBE])
    assert max(largest) == rows
    for kind in KINDS:
        torch.testing.assert_close(labels[kind], whole[kind], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_output_grams_give_the_length_of_a_projected_value(
    family: str, changes: dict[str, Any]
) -> None:
    model: Any = ready(stock(family, **changes))
    geometry = model.geometry
    v = torch.randn(7, geometry.head_dim)
    for block, grams in zip(decoder_of(model.model).layers, output_grams(model), strict=True):
        weight = block.self_attn.o_proj.weight
        assert (block.self_attn.o_proj.bias is not None) == bool(changes.get("attention_bias"))
        for head in range(geometry.n_q_heads):
            alone = torch.zeros(7, geometry.n_q_heads, geometry.head_dim)
            alone[:, head] = v
            expected = torch.linalg.vector_norm(alone.flatten(1) @ weight.T, dim=-1)
            length = ((v @ grams[head]) * v).sum(-1).sqrt()
            torch.testing.assert_close(length, expected, atol=1e-3, rtol=1e-3)
