"""Which kernels serve a device, decided once, and the reason in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch

LEAST_CAPABILITY = 8  # Triton no longer compiles for Turing, which lacks bf16 besides


@dataclass(frozen=True)
class Backend:
    """name: "cpu", "triton" or "reference"; reason: for `doctor`."""

    name: str
    reason: str


@cache
def backend_of(device_type: str) -> Backend:
    """The backend for tensors on a kind of device ("cpu", "cuda", ...)."""
    if device_type == "cpu":
        reason = "aten's fused attention with log-sum-exp, query groups packed into rows"
        return Backend("cpu", reason)
    if device_type != "cuda":
        return Backend("reference", f"plain torch attention: there is no kernel for {device_type}")
    if not torch.cuda.is_available():
        return Backend("reference", "plain torch attention: torch can use no CUDA card here")
    major, minor = torch.cuda.get_device_capability()
    return for_card(major, minor, find_spec("triton") is not None)


def for_card(major: int, minor: int, has_triton: bool) -> Backend:
    """The backend for a CUDA card of compute capability major.minor."""
    card = f"compute capability {major}.{minor}"
    if not has_triton:
        return Backend("reference", f"plain torch attention on {card}: Triton is not installed")
    if major < LEAST_CAPABILITY:
        reason = f"plain torch attention: Triton does not compile for {card}"
        return Backend("reference", reason)
    return Backend("triton", f"fused attention over codes and un-rotated keys, {card}")
