"""The one attention function of the engine, and how a stock model is made to call it.

The model's code stays as it is. Its attention layers call `attend_through_store`, which passes
un-rotated queries, keys and values of one forward to the `store` given as a keyword of the model.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from engine.rotary import Rotary, take_rotary

ATTENTION_NAME = "longread"


class Store(Protocol):
    """What the attention function needs of a cache during one forward pass."""

    wants_hidden: bool

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q [n_q_heads, n, head_dim], k and v [n_kv_heads, n, head_dim], all un-rotated.

        Returns the attention output [n_q_heads, n, head_dim].
        """
        ...

    def see_hidden(self, layer: int, hidden: Tensor) -> None:
        """hidden [n, hidden_size]: the input of the layer's attention, before projections."""
        ...


def attend_through_store(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    store: Store,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature; batch 1. The store does the masking by construction."""
    out = store.attend(module.layer_idx, query[0], key[0], value[0], scaling)
    return out.transpose(0, 1)[None], None


def decoder_of(model: Any) -> Any:
    """The stack of decoder layers inside a causal language model."""
    return model.model


def prepare(model: nn.Module) -> Rotary:
    """Make a loaded causal model read and write through a `store`; returns its rotary embedding.

    Changes the model in place: its rotary module becomes the identity, its attention
    implementation ours. Afterwards it runs only with the keyword `store=...`.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, attend_through_store)
    rotary = take_rotary(decoder_of(model))
    model.set_attn_implementation(ATTENTION_NAME)
    for layer, block in enumerate(decoder_of(model).layers):
        block.self_attn.register_forward_pre_hook(_hidden_hook(layer), with_kwargs=True)
    return rotary


def _hidden_hook(layer: int) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        store = kwargs["store"]
        if store.wants_hidden:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            store.see_hidden(layer, hidden[0])

    return hook
