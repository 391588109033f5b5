"""Packed copies of a model's weights: each format made once, whoever wants it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch import nn

from engine.lean import LeanDecoder, LeanFormat
from engine.memory import available_memory
from engine.weights import linear_parameters

if TYPE_CHECKING:
    from engine.geometry import ModelGeometry
    from engine.loader import LoadedModel

MEMORY_SHARE = 0.5  # of the free memory that copies nobody asked for may take
_WIDTH = {"same": 0, "int8": 1, "fp16": 2}  # bytes a weight

_made: WeakKeyDictionary[nn.Module, dict[LeanFormat, LeanDecoder]] = WeakKeyDictionary()
# Answers' weights are packed beside the reading, which may want the same ones.
_PACKING = threading.Lock()


def packed(model: LoadedModel, format: LeanFormat) -> LeanDecoder:
    """The lean decoder of a model in a format; seconds the first time, nothing afterwards.

    Raises NotLean if the model does anything that decoder does not know.
    """
    found = _made.get(model.model, {}).get(format)
    if found is not None:  # a chunk does not wait while other copies are made
        return found
    with _PACKING:
        made = _made.setdefault(model.model, {})
        if format not in made:
            made[format] = LeanDecoder(model, format)
        return made[format]


def packed_nbytes(geometry: ModelGeometry, format: str) -> int:
    """What the copies take, about."""
    return _WIDTH[format] * (
        linear_parameters(geometry) + geometry.vocab_size * geometry.hidden_size
    )


def has_room(geometry: ModelGeometry, format: str) -> bool:
    """Whether the copies would take no more than their share of the free memory."""
    return packed_nbytes(geometry, format) <= MEMORY_SHARE * available_memory("cpu")


def is_packed(model: LoadedModel, format: str) -> bool:
    """Whether the copies are there."""
    return format in _made.get(model.model, {})


def fits(model: LoadedModel, format: str) -> bool:
    """Whether the copies are there, or take no more than their share of the free memory."""
    return is_packed(model, format) or has_room(model.geometry, format)
