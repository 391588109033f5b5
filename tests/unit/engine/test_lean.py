"""The lean decoder gives what the stock modules give, or says that it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine import layer_weights, lean
from engine.attention import prepare
from engine.errors import InvalidSetting, NotLean
from engine.generate import forward
from engine.geometry import SERVED_FAMILIES, geometry_of
from engine.lean import LeanDecoder
from engine.view import CacheView
from kernels.linear import pack, rounded
from tests.fakes import (
    TinyModel,
    cache_of,
    filled,
    in_bf16,
    stock_model,
    tiny_config,
    tiny_model,
    tokens,
)

# Widths that every format takes: 64 inputs are two groups of int4.
WIDE = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 112}
VARIANTS: list[tuple[str, dict[str, Any]]] = [(family, {}) for family in SERVED_FAMILIES] + [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"num_key_value_heads": 1, "head_dim": 24, "hidden_act": "gelu_pytorch_tanh"}),
    ("phi3", {"partial_rotary_factor": 0.5}),
]


def rounded_twin(model: TinyModel, layers: Any, head: Any) -> TinyModel:
    """The same model with its linear weights as formats hold them, run by the stock modules."""
    stock = stock_model(model.model.config)
    with torch.no_grad():
        for name, module in model.model.named_modules():
            if isinstance(module, nn.Linear):
                twin = stock.get_submodule(name)
                chosen = head if name == "lm_head" else layers
                twin.weight = nn.Parameter(rounded(module.weight, chosen), requires_grad=False)
        mine = dict(model.model.named_parameters())
        for name, parameter in stock.named_parameters():
            if parameter.dim() == 1 or "embed" in name:
                parameter.copy_(mine[name])
    return TinyModel(stock, geometry_of(stock.config), prepare(stock))


def steps(run: Any, view: CacheView) -> list[torch.Tensor]:
    return [run(view, tokens(9, seed=1)), *(run(view, [t]) for t in tokens(4, seed=2))]


def same_tails(mine: CacheView, stock: CacheView, atol: float) -> None:
    assert mine.n_tail == stock.n_tail == 13
    for ours, theirs in ((mine._tail_k, stock._tail_k), (mine._tail_v, stock._tail_v)):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=atol, rtol=atol)


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
@pytest.mark.parametrize("format", ["same", "fp16"])
def test_it_gives_the_stock_logits(family: str, changes: dict[str, Any], format: Any) -> None:
    model = filled(family, **changes)
    decoder = LeanDecoder(model, format)
    cache = cache_of(model)
    stock, mine = cache.view(), cache.view()
    atol = 1e-5 if format == "same" else 2e-3
    expected = steps(lambda view, ids: forward(model, view, ids), stock)
    for a, b in zip(steps(decoder.forward, mine), expected, strict=True):
        assert a.dtype == torch.float32 and a.shape == b.shape
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)
    same_tails(mine, stock, atol)


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_long_chunk_is_wide_for_a_few_rows_at_a_time(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The insides of the feed-forward are the widest tensors of a reading."""
    model = filled(family)
    ids = torch.tensor(tokens(700, seed=1))
    rows: list[int] = []
    activation = torch.nn.functional.silu

    def counted(x: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return activation(x)

    monkeypatch.setitem(layer_weights._ACTIVATIONS, "silu", counted)
    decoder = LeanDecoder(model, "same")
    view = cache_of(model).view()
    rows.clear()
    found = decoder.one_pass(view, ids)
    assert max(rows) <= 256 and sum(rows) == 700 * model.geometry.n_layers
    monkeypatch.setattr(lean, "_MLP_ROWS", 1000)
    torch.testing.assert_close(found, decoder.one_pass(cache_of(model).view(), ids))


@pytest.mark.parametrize("family", SERVED_FAMILIES)
@pytest.mark.parametrize(("format", "head"), [("int8", "int8"), ("int4", "int8")])
def test_packed_weights_differ_by_their_rounding_only(family: str, format: Any, head: Any) -> None:
    model = filled(family, **WIDE)
    decoder = LeanDecoder(model, format)
    assert decoder.head_format == head and decoder.notes == []
    twin = rounded_twin(model, format, head)
    cache = cache_of(model)
    mine, stock = cache.view(), cache.view()
    expected = steps(lambda view, ids: forward(twin, view, ids), stock)
    for a, b in zip(steps(decoder.forward, mine), expected, strict=True):
        # what is left is bf16 on the way in and out of each of a layer's four products
        assert float((a - b).norm() / b.norm()) < 0.015
    same_tails(mine, stock, 0.04)


def test_packed_as_fp16_is_nearer_than_int8_and_int8_than_int4() -> None:
    model = filled("llama", **WIDE)
    cache = cache_of(model)
    expected = forward(model, cache.view(), tokens(9, seed=1))
    errors = [
        float((LeanDecoder(model, f).forward(cache.view(), tokens(9, seed=1)) - expected).norm())
        for f in ("same", "fp16", "int8", "int4")
    ]
    assert errors == sorted(errors) and errors[3] > 3 * errors[2] > 9 * errors[1]


class Casts(TorchDispatchMode):
    """Counts the operations of a pass that change numbers to another format."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.to.dtype:  # as inference mode shows it
            self.n += found.dtype != args[0].dtype
        return found


@pytest.mark.parametrize("family", SERVED_FAMILIES)
@pytest.mark.parametrize("format", ["fp16", "int8"])
def test_a_model_in_bf16_computes_in_fp32_between_packed_products(family: str, format: Any) -> None:
    """What a token takes beside its weights is small operations, and casts were a third of them."""
    model = in_bf16(filled(family, **WIDE))
    cache = cache_of(model)
    assert cache.compute_dtype == torch.bfloat16
    exact = filled(family, **WIDE)
    with torch.no_grad():
        for mine, theirs in zip(exact.model.parameters(), model.model.parameters(), strict=True):
            mine.copy_(theirs)
    decoder = LeanDecoder(model, format)
    expected = steps(LeanDecoder(exact, format).forward, cache.view())
    view = cache.view()
    found = steps(decoder.forward, view)
    assert view._tail_k[0] is not None and view._tail_k[0].dtype == torch.bfloat16
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    with Casts() as seen:
        decoder.forward(view, [3])
    # The embedding's row; queries with keys, and values, on their way to the cache, and what comes
    # back where it is not in fp32 yet.
    assert 0 < seen.n <= 1 + 4 * model.geometry.n_layers


@pytest.mark.parametrize("format", ["fp16", "int8"])
def test_where_nothing_could_be_packed_the_model_keeps_its_number_format(
    format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernels.linear._problem", lambda w, chosen, g: "no" * (chosen != "plain"))
    model = in_bf16(filled("llama"))
    hidden = LeanDecoder(model, format).hidden(cache_of(model).view(), [3, 4])
    assert hidden.dtype == torch.bfloat16


@pytest.mark.parametrize("family", SERVED_FAMILIES)
def test_all_logits_are_those_of_one_token_at_a_time(family: str) -> None:
    model = filled(family)
    decoder = LeanDecoder(model, "same")
    cache = cache_of(model)
    ids = tokens(16, seed=3)
    view = cache.view()
    singly = torch.stack([decoder.forward(view, [t]) for t in ids])
    together = decoder.forward_all(cache.view(), ids)
    assert together.shape == (16, model.geometry.vocab_size)
    torch.testing.assert_close(together, singly, atol=1e-4, rtol=1e-4)


def test_a_prompt_beyond_one_chunk_goes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.lean._CHUNK_TOKENS", 4)
    model = filled("qwen2")
    cache = cache_of(model)
    ids = tokens(11, seed=3)
    found = LeanDecoder(model, "same").forward_all(cache.view(), ids)
    torch.testing.assert_close(found[-1], forward(model, cache.view(), ids), atol=1e-4, rtol=1e-4)
    assert found.shape[0] == 11


def test_a_store_that_wants_the_hidden_states_gets_them() -> None:
    class Watching:
        wants_hidden = True

        def __init__(self, view: CacheView) -> None:
            self.view = view
            self.seen: list[torch.Tensor] = []

        def see_hidden(self, layer: int, hidden: torch.Tensor) -> None:
            assert layer == len(self.seen)
            self.seen.append(hidden.clone())

        def attend(self, *args: Any) -> torch.Tensor:
            return self.view.attend(*args)

    model = filled("qwen3")
    cache = cache_of(model)
    mine, stock = Watching(cache.view()), Watching(cache.view())
    LeanDecoder(model, "same").forward(mine, [5, 6])
    forward(model, stock, [5, 6])  # type: ignore[arg-type]
    assert len(mine.seen) == model.geometry.n_layers
    for a, b in zip(mine.seen, stock.seen, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_bf16_models_stay_within_bf16() -> None:
    model = filled("qwen3")
    model.model.to(torch.bfloat16)
    model.compute_dtype = torch.bfloat16
    cache = cache_of(model)
    expected = forward(model, cache.view(), tokens(9, seed=1))
    found = LeanDecoder(model, "same").forward(cache.view(), tokens(9, seed=1))
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_bytes_and_notes() -> None:
    model = filled("llama")  # 48 inputs, which int4 cannot group
    assert LeanDecoder(model, "same").nbytes == 0
    packed = LeanDecoder(model, "int8")
    layers = [m.weight for m in model.model.modules() if isinstance(m, nn.Linear)]
    assert sum(w.numel() for w in layers) < packed.nbytes and packed.notes == []
    alone = sum(pack(w, "int8").nbytes for w in layers)
    assert packed.nbytes == alone
    only_head = LeanDecoder(model, "same", head_format="int8")
    assert 97 * 48 < only_head.nbytes < packed.nbytes
    assert any("whole groups" in note for note in LeanDecoder(model, "int4").notes)


def test_an_empty_prompt_and_unknown_formats_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(InvalidSetting, match="at least one token"):
        LeanDecoder(model, "same").forward(cache_of(model).view(), [])
    with pytest.raises(InvalidSetting, match="int3"):
        LeanDecoder(model, "int3")  # type: ignore[arg-type]


def _hooked(model: TinyModel) -> None:
    model.model.model.layers[1].mlp.register_forward_hook(lambda *_: None)


def _wrapped(model: TinyModel) -> None:
    model.model.model.norm.forward = model.model.model.norm.forward


def _subclassed(model: TinyModel) -> None:
    class Linear8bitLt(nn.Linear):
        pass

    model.model.model.layers[0].mlp.down_proj = Linear8bitLt(64, 48, bias=False)


def _other_activation(model: TinyModel) -> None:
    model.model.model.layers[0].mlp.act_fn = nn.ReLU()


def _unknown_activation(model: TinyModel) -> None:
    model.model.config.hidden_act = "quick_gelu"


def _other_block(model: TinyModel) -> None:
    class Scaled(type(model.model.model.layers[0])):  # type: ignore[misc]
        pass

    model.model.model.layers[0].__class__ = Scaled


def _sliding(model: TinyModel) -> None:
    model.model.model.layers[1].self_attn.sliding_window = 8


def _training(model: TinyModel) -> None:
    model.model.train()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_hooked, "'model.layers.1.mlp' has a hook"),
        (_wrapped, "'model.norm' has a hook"),
        (_subclassed, "Linear8bitLt"),
        (_other_activation, "'silu'"),
        (_unknown_activation, "'quick_gelu'"),
        (_other_block, "Scaled"),
        (_sliding, "sliding window"),
        (_training, "training mode"),
    ],
)
def test_what_it_does_not_know_it_refuses(change: Any, words: str) -> None:
    model = tiny_model()
    LeanDecoder(model, "same")
    change(model)
    with pytest.raises(NotLean, match=words):
        LeanDecoder(model, "same")


def test_families_with_multipliers_are_refused() -> None:
    stock = stock_model(tiny_config("granite", residual_multiplier=0.5, logits_scaling=3.0))
    model = TinyModel(stock, tiny_model().geometry, tiny_model().rotary)
    with pytest.raises(NotLean, match="granite"):
        LeanDecoder(model, "same")
    stock.config.model_type = "llama"  # as a careless configuration may call itself
    with pytest.raises(NotLean, match="Granite"):
        LeanDecoder(model, "same")
