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
        reason = (
            "aten's fused attention with log-sum-exp, query groups packed into rows; "
            "selection by thresholds"
        )
        if products_win():
            reason += "; long bf16 queries as matrix products (AVX512-BF16, no AMX)"
        return Backend("cpu", reason)
    if device_type != "cuda":
        return Backend("reference", f"plain torch attention: there is no kernel for {device_type}")
    if not torch.cuda.is_available():
        return Backend("reference", "plain torch attention: torch can use no CUDA card here")
    major, minor = torch.cuda.get_device_capability()
    old = major < LEAST_CAPABILITY
    return for_card(major, minor, None if old else triton_problem())


@cache
def products_win() -> bool:
    """Whether matrix products in bf16 outrun aten's kernel here: AVX512-BF16 without AMX.

    Decided by what the processor has and not by a stopwatch, so that a machine reads a document
    twice alike. With AMX aten's kernel uses it; `bench ingest` shows either beside the peak.
    """
    has, tiles = (
        getattr(torch.cpu, name, lambda: False)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return bool(has()) and not tiles()


def for_card(major: int, minor: int, problem: str | None) -> Backend:
    """The backend for a CUDA card of compute capability major.minor.

    problem  why Triton cannot be used here, if it cannot
    """
    card = f"compute capability {major}.{minor}"
    if major < LEAST_CAPABILITY:
        reason = f"plain torch attention: Triton does not compile for {card}"
        return Backend("reference", reason)
    if problem is not None:
        return Backend("reference", f"plain torch attention on {card}: {problem}")
    return Backend("triton", f"fused attention over codes and un-rotated keys, {card}")


def triton_problem() -> str | None:
    """Why Triton cannot launch kernels on a card here; None if it can.

    Its part in C is compiled at the first use, which takes a compiler, Python's headers and a
    folder to write to: being installed is not enough.
    """
    if find_spec("triton") is None:
        return "Triton is not installed"
    try:
        from triton.runtime import driver

        _ = driver.active.utils
    except Exception as error:  # noqa: BLE001 - whatever a compiler can come to; the reason is told
        said = str(error).strip().splitlines() or [type(error).__name__]
        return f"Triton does not start ({said[0]})"
    return None
