"""Stand-ins that answer in milliseconds: tiny seeded models of every served family."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from engine.attention import prepare
from engine.cache import DocCache
from engine.eviction import EvictionConfig
from engine.geometry import ModelGeometry, geometry_of
from engine.prefill import PrefillConfig, prefill
from engine.rotary import Rotary
from engine.scorers.recency import RecencyScorer

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass
class TinyModel:
    """What the engine needs of a loaded model, around a tiny one."""

    model: Any
    geometry: ModelGeometry
    rotary: Rotary
    compute_dtype: torch.dtype = torch.float32
    device: str = "cpu"
    name: str = "tiny"
    weights: str = "fp32"
    stop_token_ids: frozenset[int] = frozenset({2})
    fingerprint: dict[str, str] = field(default_factory=lambda: {"weights": "tiny"})
    reads_packed: bool = False


def tiny_config(family: str = "llama", **changes: Any) -> Any:
    """A tiny configuration of a family; `changes` override the shared shape."""
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **{**SHAPE, **changes})


def stock_model(config: Any, seed: int = 0) -> Any:
    """The library's own model with random weights, eager attention, fp32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    # Initial weights are tiny; larger ones make attention matter and errors visible.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
    return model.float().eval().requires_grad_(False)


def tiny_model(
    family: str = "llama", seed: int = 0, device: str = "cpu", **changes: Any
) -> TinyModel:
    """A tiny model ready for the engine; the same weights on every device."""
    return ready(stock_model(tiny_config(family, **changes), seed), device)


def ready(stock: Any, device: str = "cpu") -> TinyModel:
    """A copy of a stock model, prepared for the engine; the original is left as it is."""
    model = copy.deepcopy(stock).to(device)
    rotary = prepare(model)
    return TinyModel(model, geometry_of(model.config), rotary, device=device)


def tokens(n: int, seed: int = 0, vocab: int = 97) -> list[int]:
    """n seeded token ids, special ones left out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab, (n,), generator=generator).tolist()


def filled(family: str, **changes: Any) -> TinyModel:
    """A tiny model whose norms and biases are not the ones and zeros they start as."""
    stock = stock_model(tiny_config(family, **changes))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in stock.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return ready(stock)


def in_bf16(model: TinyModel) -> TinyModel:
    """The same model, which is changed, loaded and computing in bf16."""
    model.model.bfloat16()
    return replace(model, compute_dtype=torch.bfloat16)


def cache_of(model: TinyModel, n: int = 40) -> DocCache:
    """A frozen cache of n tokens with nothing evicted, stored as it was computed."""
    config = PrefillConfig(16, EvictionConfig(budget_tokens=None), kv_dtype="fp32")
    return prefill(model, tokens(n), config, RecencyScorer()).freeze()
