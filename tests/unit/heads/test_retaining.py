"""Heads: their formulas in plain loops, their files, and what is refused as one."""

from __future__ import annotations

import math
import os
import pickle
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import InvalidSetting, PrefillStopped, ScorerUnavailable
from engine.eviction import EvictionConfig, Profile
from engine.prefill import PrefillConfig, prefill
from engine.registry import find
from engine.scoring import LayerStep
from engine.snapshot import load_snapshot, save_snapshot
from heads.retaining import (
    HeadCard,
    HeadScorer,
    LocretHead,
    RetainingHead,
    head_digest,
    load_heads,
    loaded_nbytes,
    save_heads,
    with_neighbours,
)
from heads.train import FitSettings
from tests.fakes import TinyModel, tiny_model, tokens

CARD = HeadCard(
    "tiny", "blend", "two books", "3 minutes", "abc", "CC0", {"fitting": asdict(FitSettings())}
)
CONFIG = PrefillConfig(
    32,
    EvictionConfig(30, "global", head_floor=0.0, stabilizer_tokens=8, local_tokens=4),
    "fp32",
)


def made(kind: str, model: Any, width: int = 8, seed: int = 0) -> Any:
    """A head with random weights that fp16 holds exactly, biases too."""
    torch.manual_seed(seed)
    head = (RetainingHead if kind == "retaining" else LocretHead)(model.geometry, width)
    for parameter in head.parameters():
        parameter.data = torch.randn_like(parameter).half().float()
    return head.requires_grad_(False)


def scorer_of(head: Any) -> HeadScorer:
    return HeadScorer(head, CARD, head_digest(head))


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


class Watching(HeadScorer):
    """Keeps the steps it has scored."""

    def __init__(self, head: Any) -> None:
        super().__init__(head, CARD, "")
        self.steps: list[LayerStep] = []
        self.wants_hidden = True

    def score(self, step: LayerStep) -> Tensor:
        self.steps.append(step)
        return torch.zeros(step.k.shape[:2])


def steps_of(model: Any) -> list[LayerStep]:
    watching = Watching(made("retaining", model))
    prefill(model, tokens(6), PrefillConfig(6, EvictionConfig(None), "fp32"), watching)
    return watching.steps


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_locret_head_is_two_matrices_on_unrotated_projections(family: str) -> None:
    model: Any = tiny_model(family)
    head = made("locret", model, width=5)
    step = steps_of(model)[1]
    found = scorer_of(head).score(step)
    for token in range(6):
        x = [
            value
            for part in (step.q, step.k, step.v)
            for vector in part[:, token].tolist()
            for value in vector
        ]
        w1 = head.fc1[1].tolist()
        inner = [silu(sum(a * b for a, b in zip(row, x, strict=True))) for row in w1]
        for kv_head, row in enumerate(head.fc2[1].tolist()):
            expected = sum(a * b for a, b in zip(row, inner, strict=True))
            assert float(found[kv_head, token]) == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert found.shape == (2, 6) and found.dtype == torch.float32


def test_our_head_is_two_layers_on_the_attentions_input() -> None:
    model: Any = tiny_model("qwen3")
    head = made("retaining", model, width=5)
    step = steps_of(model)[1]
    assert step.hidden is not None
    found = scorer_of(head).score(step)
    alone = torch.empty(2, 6)
    for token, x in enumerate(step.hidden.tolist()):
        layers = zip(head.w1[1].tolist(), head.b1[1].tolist(), strict=True)
        inner = [gelu(sum(a * b for a, b in zip(w, x, strict=True)) + bias) for w, bias in layers]
        for kv_head, row in enumerate(head.w2[1].tolist()):
            expected = sum(a * b for a, b in zip(row, inner, strict=True))
            alone[kv_head, token] = expected + float(head.b2[1, kv_head])
    torch.testing.assert_close(found, neighbours_in_loops(alone), rtol=1e-4, atol=1e-3)


def neighbours_in_loops(scores: Tensor) -> Tensor:
    """Half an entry's own score, half the mean of the up to 33 around it."""
    found = torch.empty_like(scores)
    n = scores.shape[1]
    for row, out in zip(scores.tolist(), found, strict=True):
        for i in range(n):
            around = row[max(i - 16, 0) : i + 17]
            out[i] = row[i] / 2 + sum(around) / len(around) / 2
    return found


@pytest.mark.parametrize("n", [1, 2, 16, 33, 100])
def test_an_entrys_neighbours_have_half_the_say(n: int) -> None:
    scores = torch.randn(2, n, generator=torch.Generator().manual_seed(n))
    torch.testing.assert_close(with_neighbours(scores), neighbours_in_loops(scores))


def test_a_passage_beats_a_word_that_stands_alone() -> None:
    scores = torch.zeros(1, 200)
    scores[0, 20] = 1.0
    scores[0, 120:140] = 0.9
    best = with_neighbours(scores)[0].topk(20).indices
    assert sorted(best.tolist()) == list(range(120, 140))


def test_locrets_own_head_rates_entry_by_entry() -> None:
    model: Any = tiny_model()
    whole, piece = steps_of(model)[0], steps_of(model)[0]
    cut = replace(piece, q=piece.q[:, 3:], k=piece.k[:, 3:], v=piece.v[:, 3:])
    scorer = scorer_of(made("locret", model))
    torch.testing.assert_close(scorer.score(whole)[:, 3:], scorer.score(cut))
    assert "33" not in scorer.digest()
    assert "33" in scorer_of(made("retaining", model)).digest()


@pytest.mark.parametrize("kind", ["retaining", "locret"])
def test_heads_rate_in_a_reading_and_say_what_they_see(kind: str) -> None:
    model: Any = tiny_model()
    head = made(kind, model)
    scorer = scorer_of(head)
    assert scorer.name == kind and scorer.wants_hidden == (kind == "retaining")
    cache = prefill(model, tokens(100), CONFIG, scorer)
    assert cache.kept_tokens == 30
    whole = prefill(model, tokens(100), PrefillConfig(100, EvictionConfig(None), "fp32"), scorer)
    first = [layer.scores.reshape(2, -1)[:, :32] for layer in whole.layers]
    for layer, scores in zip(cache.layers, first, strict=True):
        for kv_head in range(2):
            rows = layer.rows(kv_head)
            places = layer.positions[rows]
            # A neighbourhood ends where a chunk does.
            early = places < (16 if kind == "retaining" else 32)
            assert bool(early.any())
            torch.testing.assert_close(
                layer.scores[rows][early], scores[kv_head, places[early].long()],
                atol=1e-4, rtol=1e-4,
            )  # fmt: skip


@pytest.mark.parametrize("kind", ["retaining", "locret"])
def test_a_reading_with_heads_goes_on_from_a_snapshot(kind: str, tmp_path: Path) -> None:
    model: Any = tiny_model()
    head = made(kind, model)
    calls = iter(range(9))
    with pytest.raises(PrefillStopped) as stopped:
        prefill(model, tokens(100), CONFIG, scorer_of(head), stop=lambda: next(calls) == 2)
    half = stopped.value.cache
    assert half.scorer_state == {}
    scorer = scorer_of(head)
    save_snapshot(
        tmp_path / "s", half, model=model, scorer=scorer.digest(), config=CONFIG, extra={}
    )
    loaded, _ = load_snapshot(tmp_path / "s", model=model)
    resumed = prefill(model, tokens(100), CONFIG, scorer_of(head), resume=loaded)
    once = prefill(model, tokens(100), CONFIG, scorer)
    for a, b in zip(resumed.layers, once.layers, strict=True):
        assert torch.equal(a.positions, b.positions) and a.offsets == b.offsets
        torch.testing.assert_close(a.scores, b.scores)


# Files.


@pytest.mark.parametrize("kind", ["retaining", "locret"])
def test_saved_heads_come_back_with_card_profile_and_scores(kind: str, tmp_path: Path) -> None:
    model: Any = tiny_model()
    head, path = made(kind, model), tmp_path / "deep" / "h.safetensors"
    profile = Profile((0.25, 0.5), (((0.125, 0.25), (0.375, 0.25)), ((1.0, 2.0), (3.0, 4.0))))
    save_heads(path, head, CARD, profile)
    loaded = load_heads(path, model)
    assert loaded.card == CARD and loaded.name == kind
    assert loaded.profile == profile
    assert loaded.digest() == HeadScorer(head, CARD, head_digest(head), profile).digest()
    assert loaded.digest() != scorer_of(head).digest(), "another profile keeps other entries"
    for step in steps_of(model):
        assert torch.equal(loaded.score(step), scorer_of(head).score(step))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    save_heads(path, head, CARD)
    assert load_heads(path, model).profile is None


def test_heads_with_a_profile_may_prefer_one_threshold(tmp_path: Path) -> None:
    model: Any = tiny_model()
    profile = Profile((0.25,), (((0.125, 0.25), (0.375, 0.25)),))
    path = tmp_path / "h.safetensors"
    head = made("retaining", model)
    for allocation, expected in ((None, "profile"), ("global", "global"), ("profile", "profile")):
        save_heads(path, head, CARD, profile, allocation)
        found = load_heads(path, model)
        assert (found.allocation, found.profile) == (expected, profile)
    save_heads(path, made("locret", model), CARD)
    assert load_heads(path, model).allocation == "uniform"


@pytest.mark.parametrize("allocation", ["profile", "fair"])
def test_an_allocation_that_cannot_be_had_is_refused(allocation: Any, tmp_path: Path) -> None:
    model: Any = tiny_model()
    path = tmp_path / "h.safetensors"
    save_heads(path, made("retaining", model), CARD, None, allocation)
    with pytest.raises(ScorerUnavailable, match=f"'{allocation}', which it cannot have"):
        load_heads(path, model)


def test_the_activation_of_a_locret_head_is_in_its_file(tmp_path: Path) -> None:
    model: Any = tiny_model()
    head = LocretHead(model.geometry, 4, "gelu")
    save_heads(tmp_path / "h.safetensors", head, CARD)
    loaded = load_heads(tmp_path / "h.safetensors", model).head
    assert loaded.activation == "gelu"
    with pytest.raises(ScorerUnavailable, match="no activation 'mish'"):
        LocretHead(model.geometry, 4, "mish")


def test_other_weights_are_another_scorer() -> None:
    model: Any = tiny_model()
    head = made("retaining", model)
    before = scorer_of(head).digest()
    assert before.startswith("retaining:") and before == scorer_of(head).digest()
    head.b2.data[1, 0] += 0.5
    assert scorer_of(head).digest() != before


def published(model: Any, width: int = 1024, seed: int = 0) -> OrderedDict[str, Tensor]:
    """The table of a published file: every layer's fc1 and fc2 in bf16."""
    g = model.geometry
    torch.manual_seed(seed)
    n_in = (g.n_q_heads + 2 * g.n_kv_heads) * g.head_dim
    table: OrderedDict[str, Tensor] = OrderedDict()
    for layer in range(g.n_layers):
        name = f"model.layers.{layer}.self_attn"
        table[f"{name}.fc1.weight"] = torch.randn(width, n_in).bfloat16()
        table[f"{name}.fc2.weight"] = torch.randn(g.n_kv_heads, width).bfloat16()
    return table


def written(table: Any, path: Path) -> Path:
    from safetensors.torch import save_file

    if path.suffix == ".bin":
        torch.save(table, path)
    else:
        save_file(dict(table), path)
    return path


def test_a_published_file_of_its_true_size_is_read(tmp_path: Path) -> None:
    """Llama-3.1-8B's: 32 layers of [1024, 6144] and [8, 1024], 400 MB in bf16."""
    spec = find("llama-3.1-8b")
    assert spec is not None
    config = SimpleNamespace(hidden_act="silu")
    model: Any = SimpleNamespace(
        name=spec.name, geometry=spec.geometry, model=SimpleNamespace(config=config), device="cpu"
    )
    row = torch.randn(1, 6144).bfloat16()
    table = {
        f"model.layers.{layer}.self_attn.{name}.weight": (row[:, : shape[1]] * layer).repeat(
            shape[0], 1
        )
        for layer in range(32)
        for name, shape in (("fc1", (1024, 6144)), ("fc2", (8, 1024)))
    }
    file = written(table, tmp_path / "heads.bin")
    assert file.stat().st_size > 400_000_000
    head = load_heads(file, model).head
    assert isinstance(head, LocretHead)
    assert head.fc1.shape == (32, 1024, 6144) and head.fc2.shape == (32, 8, 1024)
    for layer in (0, 17, 31):
        assert torch.equal(head.fc1[layer, 500], (row[0] * layer).float())
        assert torch.equal(head.fc2[layer, 7], (row[0, :1024] * layer).float())


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2"])
def test_a_published_file_is_read_as_it_is(family: str, suffix: str, tmp_path: Path) -> None:
    model: Any = tiny_model(family)
    table = published(model)
    scorer = load_heads(written(table, tmp_path / f"h{suffix}"), model)
    head = scorer.head
    assert isinstance(head, LocretHead) and scorer.name == "locret"
    assert head.fc1.shape == (2, 1024, 8 * 12) and head.fc2.shape == (2, 2, 1024)
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn"
        assert torch.equal(head.fc1[layer], table[f"{name}.fc1.weight"].float())
        assert torch.equal(head.fc2[layer], table[f"{name}.fc2.weight"].float())
    assert head.activation == model.model.config.hidden_act and not head.fc1.requires_grad
    assert scorer.card.base_model == "tiny" and scorer.card.label == "cis"


FIRST, LAST = "model.layers.0.self_attn.fc1.weight", "model.layers.1.self_attn.fc2.weight"


def without(table: dict[str, Tensor]) -> None:
    del table[LAST]


def with_more(table: dict[str, Tensor]) -> None:
    table["model.layers.2.self_attn.fc1.weight"] = table[FIRST].clone()


def with_bias(table: dict[str, Tensor]) -> None:
    table["model.layers.0.self_attn.fc1.bias"] = torch.zeros(1024)


def narrower(table: dict[str, Tensor]) -> None:
    for name in [n for n in table if "fc1" in n]:
        table[name] = table[name][:, :-12].contiguous()


def uneven(table: dict[str, Tensor]) -> None:
    table[FIRST] = table[FIRST][:512].contiguous()


def more_heads(table: dict[str, Tensor]) -> None:
    for name in [n for n in table if "fc2" in n]:
        table[name] = torch.cat([table[name]] * 2)


def flat(table: dict[str, Tensor]) -> None:
    for name in [n for n in table if "fc2" in n]:
        table[name] = table[name].flatten()


def scalars(table: dict[str, Tensor]) -> None:
    for name in table:
        table[name] = torch.tensor(1.0)


def not_finite(table: dict[str, Tensor]) -> None:
    table[LAST][0, 5] = torch.nan


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without, f"1 names differ, the first is '{LAST}'"),
        (with_more, "does not hold heads for 2 layers"),
        (with_bias, "fc1.bias"),
        (narrower, r"made for another model: fc1 is \[2, 1024, 84\], not \[2, 1024, 96\]"),
        (uneven, "differ in size"),
        (more_heads, r"made for another model: fc2 is \[2, 4, 1024\], not \[2, 2, 1024\]"),
        (flat, "made for another model: fc2"),
        (scalars, "h.* was made for another model"),
        (not_finite, "is damaged: fc2 is not finite"),
    ],
)
def test_a_published_file_that_does_not_fit_is_refused(
    damage: Any, said: str, suffix: str, tmp_path: Path
) -> None:
    model: Any = tiny_model()
    table = published(model)
    damage(table)
    with pytest.raises(ScorerUnavailable, match=said):
        load_heads(written(table, tmp_path / f"h{suffix}"), model)


class Evil:
    """Unpickled without care, it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.trace,)


def test_a_pickle_that_acts_is_refused_and_does_nothing(tmp_path: Path) -> None:
    trace, model = tmp_path / "trace", tiny_model()
    any_model: Any = model
    table: dict[str, Any] = dict(published(model))
    table[FIRST] = Evil(trace)
    torch.save(table, tmp_path / "zip.bin")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Evil(trace), protocol=2))
    for name in ("zip.bin", "plain.bin"):
        with pytest.raises(ScorerUnavailable, match=f"{name} cannot be read"):
            load_heads(tmp_path / name, any_model)
        assert not trace.exists()
    with (tmp_path / "plain.bin").open("rb") as file:
        pickle.load(file)
    assert trace.exists(), "the pickle is to be able to act"


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("left", [0, 7, 300, -100])
def test_a_file_that_was_cut_off_is_refused(suffix: str, left: int, tmp_path: Path) -> None:
    model: Any = tiny_model()
    path = written(published(model, width=64), tmp_path / f"h{suffix}")
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ScorerUnavailable, match=f"heads in h{suffix} cannot be read"):
        load_heads(path, model)


@pytest.mark.parametrize("content", [[1, 2], {"fc1": "text"}, torch.zeros(3)])
def test_a_pickle_of_something_else_is_refused(content: Any, tmp_path: Path) -> None:
    model: Any = tiny_model()
    torch.save(content, tmp_path / "h.bin")
    with pytest.raises(ScorerUnavailable, match="holds no table of tensors"):
        load_heads(tmp_path / "h.bin", model)


def test_a_file_that_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    model: Any = tiny_model()
    with pytest.raises(ScorerUnavailable, match="no retaining heads at") as refused:
        load_heads(tmp_path / "none.safetensors", model)
    assert "train-heads" in str(refused.value.next_step)


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 3}, r"\[2, .*\], not \[3, "),
    ({"hidden_size": 96, "head_dim": 12}, "48"),
    ({"num_key_value_heads": 4}, r"\[2, 2.*\], not \[2, 4"),
]


@pytest.mark.parametrize(("changes", "said"), OTHERS)
def test_our_heads_of_another_model_are_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model, other = tiny_model(), tiny_model(**changes)
    any_other: Any = other
    path = tmp_path / "h.safetensors"
    save_heads(path, made("retaining", model), CARD)
    with pytest.raises(
        ScorerUnavailable, match=f"h.safetensors was made for another model.*{said}"
    ):
        load_heads(path, any_other)


def profiled(tensors: dict[str, Tensor], shares: Tensor, *kept: float) -> None:
    tensors.update(profile=shares, profile_kept=torch.tensor(kept))


def resaved(path: Path, model: TinyModel, change: Any) -> None:
    """Our file again after `change(tensors, metadata)`."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    save_heads(path, made("retaining", model), CARD)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, m: t.pop("b2"), "b2 is None"),
        (lambda t, m: t.update(extra=torch.zeros(1)), "extra is"),
        (lambda t, m: t["w2"].fill_(torch.inf), "w2 is not finite"),
        (lambda t, m: t.pop("w1"), "known kind"),
        (lambda t, m: m.update(kind="unheard"), "known kind"),
        (lambda t, m: m.pop("kind"), "known kind"),
        (lambda t, m: m.update(card="{"), "card"),
        (lambda t, m: m.update(card='{"colour": "red"}'), "card"),
        (lambda t, m: m.update(card="[1]"), "card"),
        (lambda t, m: profiled(t, torch.ones(1, 3, 2), 0.5), "profile of another model"),
        (lambda t, m: profiled(t, torch.ones(2, 2), 0.5), "profile of another model"),
        (lambda t, m: profiled(t, torch.full((1, 2, 2), torch.nan), 0.5), "not positive"),
        (lambda t, m: profiled(t, torch.zeros(1, 2, 2), 0.5), "not positive"),
        (lambda t, m: profiled(t, torch.ones(1, 2, 2), 2.0), "is damaged.*between 0 and 1"),
        (lambda t, m: profiled(t, torch.ones(2, 2, 2), 0.5, 0.25), "is damaged.*ascend"),
    ],
)
def test_our_file_with_a_fault_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    model: Any = tiny_model()
    resaved(tmp_path / "h.safetensors", model, change)
    with pytest.raises(ScorerUnavailable, match=said):
        load_heads(tmp_path / "h.safetensors", model)


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    model: Any = tiny_model()
    save_heads(tmp_path / "h.safetensors", made("locret", model), CARD)
    path = written(published(model, 16), tmp_path / "p.bin")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_heads(tmp_path / "h.safetensors", model)
    load_heads(path, model)
    assert torch.equal(torch.rand(4), expected)


def test_each_kind_says_how_a_budget_suits_it() -> None:
    model: Any = tiny_model()
    profile = Profile((0.5,), (((1.0, 1.0), (1.0, 1.0)),))
    locret, ours = LocretHead(model.geometry, 4), RetainingHead(model.geometry, 4)
    assert HeadScorer(locret, HeadCard(), "x").allocation == "uniform"
    assert HeadScorer(ours, HeadCard(), "x").allocation == "global"
    assert HeadScorer(ours, HeadCard(), "x", profile).allocation == "profile"


def test_heads_beyond_sixteen_bits_are_not_written(tmp_path: Path) -> None:
    model: Any = tiny_model()
    head = RetainingHead(model.geometry, 4)
    head.w1.data[0, 0, 0] = 1e6
    with pytest.raises(InvalidSetting, match="w1 is beyond 16 bits"):
        save_heads(tmp_path / "h.safetensors", head, HeadCard())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [LocretHead, RetainingHead])
def test_the_bytes_of_loaded_heads_are_known_without_them(kind: Any) -> None:
    geometry = tiny_model().geometry
    held = sum(p.nbytes for p in kind(geometry).float().parameters())
    assert loaded_nbytes(kind.kind, geometry) == held
    assert loaded_nbytes("keydiff", geometry) == 0
