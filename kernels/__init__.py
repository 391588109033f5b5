"""Pure functions on tensors, one facade. Knows no model, no cache class and no file.

The backend is chosen by the device of the queries: the fused CPU kernel where it applies, the
plain reference everywhere else. `describe` says which and why; `force` is for tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kernels import cpu, reference
from kernels.reference import key_mass, merge

__all__ = ["attend", "attend_causal", "backend_for", "describe", "force", "key_mass", "merge"]

_forced: str | None = None
_FUSED_DTYPES = (torch.float32, torch.bfloat16)


def backend_for(q: Tensor) -> str:
    """Name of the backend that serves these queries: "cpu" or "reference"."""
    if _forced is not None:
        return _forced
    fused = q.device.type == "cpu" and q.dtype in _FUSED_DTYPES
    return "cpu" if fused else "reference"


def describe(device: str = "cpu") -> str:
    """One line for `doctor`: the backend on this device and the reason."""
    if device == "cpu":
        return "cpu: aten's fused attention with log-sum-exp, query groups packed into rows"
    return f"reference: plain torch attention (no fused kernel of ours for {device} yet)"


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
    """Causal attention of n tokens over themselves; shapes as in `attend` with n_k = n_q."""
    module = cpu if backend_for(q) == "cpu" else reference
    return module.attend_causal(q, k, v, scale)
