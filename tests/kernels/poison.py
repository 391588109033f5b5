"""Memory that shows what a kernel left unwritten, and what it wrote behind the end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

GUARD = 1024  # elements behind each tensor
_empty = torch.empty


@contextmanager
def poisoned_memory() -> Iterator[list[Tensor]]:
    """`torch.empty` gives NaN, or 255 in bytes and -1 in other whole numbers.

    The list is what it gave. At the end the elements behind each must be as they were.
    """
    given: list[Tensor] = []
    guards: list[Tensor] = []

    def empty(size: tuple[int, ...] | int, **options: Any) -> Tensor:
        shape = (size,) if isinstance(size, int) else tuple(size)
        n = math.prod(shape)
        memory = _empty(n + GUARD, **options)
        memory.fill_(poison(memory.dtype))
        given.append(memory[:n].view(shape))
        guards.append(memory[n:])
        return given[-1]

    with mock.patch.object(torch, "empty", empty):
        yield given
    for guard in guards:
        assert bool(is_poison(guard).all()), "a kernel wrote behind the end of its output"


def poison(dtype: torch.dtype) -> float | int:
    """NaN where there is one, else all bits set."""
    if dtype.is_floating_point:
        return math.nan
    return 255 if dtype == torch.uint8 else -1


def is_poison(tensor: Tensor) -> Tensor:
    """Which elements still hold poison."""
    if tensor.is_floating_point():
        return tensor.isnan()
    return tensor == poison(tensor.dtype)
