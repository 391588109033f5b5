"""Oracles: scores that need the whole cache, and may see the questions; bounds, not scorers.

An oracle cannot read a document in chunks of bounded memory, but it says how good a choice of
entries could have been. Evaluation accepts its name wherever it accepts a scorer's, and always
prunes the full cache with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from engine.cache import DocCache
    from engine.loader import LoadedModel


class Prefix(Protocol):
    """A document laid out for the model: what is read once, before any question."""

    @property
    def token_ids(self) -> list[int]:
        """Header, document and closing."""
        ...

    @property
    def n_header(self) -> int:
        """Tokens before the document."""
        ...


# A question's tokens after the prefix, and those of its first true answer.
Asked = tuple[list[int], list[int]]
# (model, full frozen cache, prefix, questions) -> per layer [n_kv_heads, n] fp32, higher = keep.
Oracle = Callable[["LoadedModel", "DocCache", Prefix, Sequence[Asked]], dict[int, Tensor]]

ORACLES: dict[str, Oracle] = {}
