"""Pure functions on tensors, one facade. Knows no model, no cache class and no file.

The backend is chosen once for a kind of device (kernels.choice): the fused CPU kernels, Triton, or
the plain reference. `describe` says which and why; `force` is for tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kernels import chunk, cpu, cpu_selection, ragged, reference, retaining, selection, turned
from kernels import quantise as codes_of_rows
from kernels.choice import backend_of
from kernels.chunk import History
from kernels.quantise import Codes
from kernels.ragged import RaggedEntries
from kernels.reference import attend_up_to, key_mass, merge
from kernels.selection import LayerRows
from kernels.turned import Tail, TurnedEntries

__all__ = [
    "History",
    "RaggedEntries",
    "Tail",
    "TurnedEntries",
    "attend",
    "attend_causal",
    "attend_chunk",
    "attend_ragged",
    "attend_turned",
    "attend_up_to",
    "backend_for",
    "compact",
    "describe",
    "force",
    "from_codes",
    "fuses",
    "keep_mask",
    "key_mass",
    "locret_scores",
    "merge",
    "mix_turned",
    "retaining_scores",
    "to_codes",
]

_forced: str | None = None
_FUSED_DTYPES = (torch.float32, torch.bfloat16)  # of aten's CPU kernel


def backend_for(q: Tensor) -> str:
    """Name of the backend that serves these queries: "cpu", "triton" or "reference"."""
    if _forced is not None:
        return _forced
    if q.device.type == "cpu" and q.dtype not in _FUSED_DTYPES:
        return "reference"
    return backend_of(q.device.type).name


def fuses(device: torch.device) -> bool:
    """Whether entries are read as they are stored: decoded and turned inside the kernel."""
    return _backend_on(device) == "triton"


def _backend_on(device: torch.device) -> str:
    """The backend of what does not hang on a dtype."""
    return _forced or backend_of(device.type).name


def describe(device: str = "cpu") -> str:
    """One line for `doctor`: the backend on this device and the reason."""
    backend = backend_of(device)
    return f"{backend.name}: {backend.reason}"


@contextmanager
def force(backend: str) -> Iterator[None]:
    """Use one backend for everything inside the block."""
    global _forced
    previous, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = previous


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Unmasked attention; q [n_heads, n_q, head_dim], k and v [n_heads, n_k, head_dim].

    Returns the output like q and the log-sum-exp [n_heads, n_q] fp32.
    """
    module = cpu if backend_for(q) == "cpu" else reference
    return module.attend(q, k, v, scale)


def attend_causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention of n tokens over themselves: q [n_q_heads, n, head_dim], k and v of as many
    heads or of fewer, each of which serves a group of neighbouring query heads.
    """
    module = cpu if backend_for(q) == "cpu" else reference
    return module.attend_causal(q, k, v, scale)


def attend_turned(
    q: Tensor, entries: TurnedEntries, scale: float, tail: Tail | None = None
) -> tuple[Tensor, Tensor]:
    """Queries over the entries of ragged heads whose keys are turned already, and over what follows
    them in all heads alike (kernels.turned).
    """
    module = cpu if backend_for(q) == "cpu" else turned
    return module.attend_turned(q, entries, scale, tail)


def mix_turned(q: Tensor, entries: TurnedEntries, scale: float, tail: Tail | None = None) -> Tensor:
    """As `attend_turned`, where nothing is joined to it: the output alone, in fp32."""
    module = cpu if backend_for(q) == "cpu" else turned
    return module.mix_turned(q, entries, scale, tail)


def attend_ragged(
    q: Tensor, entries: RaggedEntries, scale: float, *, longest: int | None = None
) -> tuple[Tensor, Tensor]:
    """Short queries over stored entries of ragged heads (kernels.ragged).

    longest  length of the longest head, where the caller knows it
    """
    if backend_for(q) == "triton":
        from kernels import triton_ragged

        return triton_ragged.attend_ragged(q, entries, scale, longest=longest)
    return ragged.attend_ragged(q, entries, scale)


def attend_chunk(
    q: Tensor, k: Tensor, v: Tensor, history: History | None, scale: float
) -> tuple[Tensor, Tensor]:
    """A chunk over its history and causally over itself, without repeated keys (kernels.chunk)."""
    if backend_for(q) == "triton":
        from kernels import triton_chunk

        return triton_chunk.attend_chunk(q, k, v, history, scale)
    return chunk.attend_chunk(q, k, v, history, scale)


def to_codes(x: Tensor, bits: int) -> Codes:
    """Rows [n, head_dim] in 8, 4 or 2 bits (kernels.quantise)."""
    if fuses(x.device):
        from kernels import triton_quantise

        return triton_quantise.quantise(x, bits)
    return codes_of_rows.quantise(x, bits)


def from_codes(codes: Codes, dtype: torch.dtype) -> Tensor:
    """The rows again: [n, head_dim]."""
    if fuses(codes.codes.device):
        from kernels import triton_quantise

        return triton_quantise.dequantise(codes, dtype)
    return codes_of_rows.dequantise(codes, dtype)


def keep_mask(
    scores: Tensor,
    positions: Tensor,
    offsets: Tensor,
    protected: Tensor,
    floors: Tensor,
    budget: int,
    ceiling: int | None = None,
) -> Tensor:
    """Which entries of all rows stay: [total] bool (kernels.selection)."""
    given = (scores, positions, offsets, protected, floors, budget, ceiling)
    if fuses(scores.device):
        from kernels import triton_selection

        return triton_selection.keep_mask(*given)
    module = cpu_selection if _backend_on(scores.device) == "cpu" else selection
    return module.keep_mask(*given)


def compact(rows: LayerRows, keep: Tensor, n_kept: int) -> LayerRows:
    """The kept rows of a layer, close together and in their order (kernels.selection)."""
    if fuses(keep.device):
        from kernels import triton_selection

        return triton_selection.compact(rows, keep, n_kept)
    return selection.compact(rows, keep, n_kept)


def retaining_scores(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Our head on the attention's input: [n_kv_heads, n] fp32 (kernels.retaining)."""
    if fuses(x.device):
        from kernels import triton_retaining

        return triton_retaining.retaining_scores(x, w1, b1, w2, b2)
    return retaining.retaining_scores(x, w1, b1, w2, b2)


def locret_scores(
    q: Tensor, k: Tensor, v: Tensor, fc1: Tensor, fc2: Tensor, activation: str
) -> Tensor:
    """Locret's head on un-rotated projections: [n_kv_heads, n] fp32 (kernels.retaining)."""
    if fuses(q.device):
        from kernels import triton_retaining

        return triton_retaining.locret_scores(q, k, v, fc1, fc2, activation)
    return retaining.locret_scores(q, k, v, fc1, fc2, activation)
