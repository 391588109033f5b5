"""What a stock decoder computes, read off its modules: the weights, and that nothing else is done.

A decoder can be run without its modules only if every one of them is known exactly. So classes are
compared by name, subclasses do not pass, and hooks other than the engine's own are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.attention import decoder_of
from engine.errors import NotLean

if TYPE_CHECKING:
    from engine.loader import LoadedModel

Activation = Callable[[Tensor], Tensor]

_CLASS_PREFIX = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "phi3": "Phi3",
}


@dataclass(frozen=True)
class Norm:
    """RMSNorm (arXiv 1910.07467): weight [d], and what is added to the mean square."""

    weight: Tensor
    eps: float

    def to(self, dtype: torch.dtype) -> Norm:
        """The same in another number format."""
        return Norm(self.weight.to(dtype), self.eps)


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer: x + o(attention(qkv(norm(x)))), then x + down(act(gate) * up) of norm(x).

    qkv      query, key and value projections, or the one that holds all three
    gate_up  gate and up projections, or the one that holds both
    q_norm   over each head of the queries, k_norm of the keys; None where there are none
    scale    multiplies q.k
    """

    qkv: tuple[nn.Linear, ...]
    out: nn.Linear
    gate_up: tuple[nn.Linear, ...]
    down: nn.Linear
    attention_norm: Norm
    mlp_norm: Norm
    q_norm: Norm | None
    k_norm: Norm | None
    activation: Activation
    scale: float


@dataclass(frozen=True)
class DecoderWeights:
    """A whole causal model: embedding [vocab, hidden_size], layers, last norm, output head."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Norm
    head: nn.Linear


def read_decoder(model: LoadedModel) -> DecoderWeights:
    """The weights of a model; raises NotLean where its modules do more than we know.

    The tensors are the model's own, not copies.
    """
    stock: Any = model.model
    if stock.training:
        raise NotLean("The model is in training mode.")
    family = str(stock.config.model_type)
    if family not in _CLASS_PREFIX:
        raise NotLean(f"Models of type '{family}' are not known.")
    _refuse_hooks(stock)
    decoder = decoder_of(stock)
    _expect(stock, family, "ForCausalLM")
    _expect(decoder, family, "Model")
    if type(decoder.embed_tokens) is not nn.Embedding or decoder.embed_tokens.max_norm is not None:
        raise NotLean("The embedding is not a plain table.")
    return DecoderWeights(
        decoder.embed_tokens.weight,
        tuple(_read_layer(block, family, model) for block in decoder.layers),
        _norm(decoder.norm, family),
        _plain(stock.lm_head),
    )


def _read_layer(block: Any, family: str, model: LoadedModel) -> LayerWeights:
    attention, mlp = block.self_attn, block.mlp
    _expect(block, family, "DecoderLayer")
    _expect(attention, family, "Attention")
    _expect(mlp, family, "MLP")
    if attention.head_dim != model.geometry.head_dim:
        raise NotLean(f"A layer's heads have {attention.head_dim} values.")
    if getattr(attention, "sliding_window", None) is not None:
        raise NotLean("A layer attends to a sliding window.")
    if family == "phi3":
        qkv, gate_up = [attention.qkv_proj], [mlp.gate_up_proj]
    else:
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        gate_up = [mlp.gate_proj, mlp.up_proj]
    has_head_norms = family == "qwen3"
    return LayerWeights(
        qkv=tuple(_plain(linear) for linear in qkv),
        out=_plain(attention.o_proj),
        gate_up=tuple(_plain(linear) for linear in gate_up),
        down=_plain(mlp.down_proj),
        attention_norm=_norm(block.input_layernorm, family),
        mlp_norm=_norm(block.post_attention_layernorm, family),
        q_norm=_norm(attention.q_norm, family) if has_head_norms else None,
        k_norm=_norm(attention.k_norm, family) if has_head_norms else None,
        activation=_activation(mlp, family),
        scale=float(attention.scaling),
    )


def _expect(module: Any, family: str, kind: str) -> None:
    wanted = f"transformers.models.{family}.modeling_{family}.{_CLASS_PREFIX[family]}{kind}"
    found = f"{type(module).__module__}.{type(module).__qualname__}"
    if found != wanted:
        raise NotLean(f"{found} stands where {wanted} was expected.")


def _plain(linear: nn.Module) -> nn.Linear:
    if type(linear) is not nn.Linear:
        raise NotLean(
            f"{type(linear).__qualname__} stands where a plain linear layer was expected."
        )
    return linear


def _norm(module: Any, family: str) -> Norm:
    _expect(module, family, "RMSNorm")
    return Norm(module.weight, float(module.variance_epsilon))


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


_ACTIVATIONS: dict[str, Activation] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "gelu": functional.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": functional.relu,
}


@torch.inference_mode()
def _activation(mlp: Any, family: str) -> Activation:
    """The function the configuration names, if the module there really is that function."""
    name = str(mlp.config.hidden_act)
    module = mlp.activation_fn if family == "phi3" else mlp.act_fn
    probe = torch.linspace(-6, 6, 49)
    if name not in _ACTIVATIONS or not torch.allclose(
        module(probe), _ACTIVATIONS[name](probe), atol=1e-5
    ):
        raise NotLean(f"The activation '{name}' is not known.")
    return _ACTIVATIONS[name]


def _refuse_hooks(stock: nn.Module) -> None:
    for name, module in stock.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if "forward" in vars(module) or any(h.__module__ != "engine.attention" for h in hooks):
            raise NotLean(f"The module '{name}' has a hook on its forward pass.")
