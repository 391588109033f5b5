"""The decoder stack without its output head, by the shortest way there is.

A model of a known family on the CPU runs from its own weights (engine.lean, format "same"): the
stock modules rotate by an angle of zero and normalise in five passes. Where products with weights
packed in fp16 were measured to be faster (engine.numeric), chunks of a long text run from these,
sums in fp32 as before. Everything else runs through the stock modules. A model is looked at once,
before its first pass: what is hung on its modules later, such as a hook, is not seen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from engine.attention import Store, decoder_of
from engine.errors import NotLean
from engine.lean import LeanDecoder
from engine.packing import fits, is_packed, packed

if TYPE_CHECKING:
    from engine.loader import LoadedModel

MANY_TOKENS = 256  # of one pass; fewer run from the model's own weights
# Of a text: what packing takes, seven seconds of a model of half a billion parameters, is won back
# by reading so many a quarter faster (heads/LOG.md).
LONG_TEXT_TOKENS = 4096

_known: WeakKeyDictionary[nn.Module, LeanDecoder | None] = WeakKeyDictionary()


@torch.inference_mode()
def hidden_after(model: LoadedModel, ids: Tensor, store: Store) -> Tensor:
    """One forward pass of ids [n] on a store: [n, hidden_size], normalised for the output head."""
    lean = _for_many_tokens(model) if len(ids) >= MANY_TOKENS else _lean_of(model)
    if lean is not None:
        return lean.normalised(lean.one_pass(store, ids))
    return through_modules(model, ids, store)


@torch.inference_mode()
def through_modules(model: LoadedModel, ids: Tensor, store: Store) -> Tensor:
    """As `hidden_after`, by the stock modules whatever the model."""
    row = ids.to(model.device)[None]
    hidden: Tensor = decoder_of(model.model)(
        input_ids=row, use_cache=False, store=store
    ).last_hidden_state[0]
    return hidden


def for_a_text(model: LoadedModel, n_tokens: int) -> LoadedModel:
    """The model as it reads a text of so many tokens; copies that this is worth are packed now.

    A short text is read from copies where they are there already.
    """
    if not model.reads_packed or is_packed(model, "fp16"):
        return model
    if n_tokens < LONG_TEXT_TOKENS or _lean_of(model) is None or not fits(model, "fp16"):
        return replace(model, reads_packed=False)
    packed(model, "fp16")
    return model


def _lean_of(model: LoadedModel) -> LeanDecoder | None:
    """The lean layers over a model's own tensors on the CPU; None if it is more than those."""
    if model.device != "cpu":
        return None
    if model.model not in _known:
        try:
            _known[model.model] = LeanDecoder(model, "same")
        except NotLean:
            _known[model.model] = None
    return _known[model.model]


def _for_many_tokens(model: LoadedModel) -> LeanDecoder | None:
    """As `_lean_of`, from packed copies where the model reads from such and they are there."""
    if model.reads_packed and is_packed(model, "fp16"):
        return packed(model, "fp16")
    return _lean_of(model)
