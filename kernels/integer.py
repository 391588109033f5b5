"""Products of floats with int8 weights in whole numbers: activations go in two parts.

A processor without 8-bit dot products turns int8 weights into floats one by one, which takes longer
than reading them. Multiplying whole numbers keeps up with the memory, but for activations of eight
bits only, and on AVX2, which adds two products in 16 bits, of seven: a row's largest activation is
often many times the others, so that these would lose theirs. So a row goes in twice: rounded to
steps of a 63rd of its largest, and what the rounding left, in steps 126 times finer. One pass over
the weights serves both, and a result is as good as with activations of fourteen bits.

fbgemm's operator is meant for activations quantised once; it rounds to the nearest whole number
and takes parts as they are at a scale of one. Sums are whole numbers, exact in 32 bits.
"""

from __future__ import annotations

import math
import threading
import warnings
from typing import Any

import torch
from torch import Tensor

COARSE_STEPS = 63  # of a row's largest activation, either side of zero
FINE_STEPS = 126  # of a coarse step, so that a rest of half a step has at most 63, too
_COARSE = 1 / COARSE_STEPS
_FINE_STEPS = torch.tensor(FINE_STEPS, dtype=torch.float32)
_JOINING = torch.tensor([[1.0, 1 / FINE_STEPS]])  # a coarse result and its fine one
_NOTHING = torch.zeros(1)
# A row of zeros has no largest.
_SMALLEST = torch.tensor(torch.finfo(torch.float32).tiny, dtype=torch.float32)
_LEAST_OF_ONE = 1e-30  # far from where a step would be rounded to nothing
# The operator's codes run from 0; up to 127, two products with a weight's code stay within 16 bits.
_ZERO_POINT = 64
_BLOCK = 512  # inputs are filled up to it; with AVX-512 alone to half of it
_CREATING = threading.Lock()  # layers are packed side by side, and filters are the process's
_CREATION_WARNS = "torch.quantize_per_tensor, torch.quantize_per_channel and other"


def served() -> bool:
    """Whether this torch build and processor have the operator."""
    return torch.backends.quantized.engine in ("x86", "fbgemm") and hasattr(
        torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32"
    )


def pack_codes(codes: Tensor, scales: Tensor) -> Any:
    """codes [out, in] int8, none of them -128, scales [out] -> weights for `product`."""
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    with _CREATING:
        # torch will have no tensors that know their scale one day; the operator takes nothing else.
        warnings.filterwarnings("ignore", _CREATION_WARNS, UserWarning)
        held = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
    return torch.ops.quantized.linear_prepack(held, None)


def nbytes(n_out: int, n_in: int) -> int:
    """Of packed weights at most: a code each, inputs in blocks, and a row's scale, zero and sum."""
    return n_out * (-(-n_in // _BLOCK) * _BLOCK + 12)


def product(
    x: Tensor, packed: Any, *, bias: Tensor | None = None, onto: Tensor | None = None
) -> Tensor:
    """x [n, in] fp32, packed weights [out, in] -> [n, out] fp32.

    bias  [out] fp32, added to every row
    onto  [n, out] fp32, changed: the product is added to it, and it is returned
    An activation is off by at most 1 / 15,876 of its row's largest, rows of next to nothing (below
    1e-36) by more. A row with an infinity or NaN gives NaN or infinities.
    """
    if len(x) == 1 and x.numel():
        low, high = torch.aminmax(x)
        largest = max(-float(low), float(high))
        if _LEAST_OF_ONE < largest < math.inf:
            return _of_one(x, largest / COARSE_STEPS, packed, bias, onto)
    found = _of_rows(x, packed)
    if bias is not None:
        found += bias
    return found if onto is None else onto.add_(found)


def _of_one(
    x: Tensor, step: float, packed: Any, bias: Tensor | None, onto: Tensor | None
) -> Tensor:
    """One row, in few operations: its parts are joined, and added, by one small product."""
    in_steps = x * (1 / step)
    coarse = in_steps.round()
    fine = in_steps.sub_(coarse).mul_(_FINE_STEPS)
    parts = _multiplied(torch.cat([coarse, fine]), packed)
    if onto is not None:
        onto.addmm_(_JOINING, parts, alpha=step)
        return onto if bias is None else onto.add_(bias)
    if bias is not None:
        return torch.addmm(bias, _JOINING, parts, alpha=step)
    return torch.addmm(_NOTHING, _JOINING, parts, beta=0, alpha=step)


def _of_rows(x: Tensor, packed: Any) -> Tensor:
    """Any number of rows, each with its own step."""
    # Small tensors in place of numbers: torch makes a tensor of a number at every call.
    steps = torch.add(_SMALLEST, x.abs().amax(1, keepdim=True), alpha=_COARSE)
    in_steps = x / steps
    coarse = in_steps.round()
    fine = in_steps.sub_(coarse).mul_(_FINE_STEPS)
    parts = _multiplied(torch.cat([coarse, fine]), packed)
    return torch.add(parts[: len(x)], parts[len(x) :], alpha=1 / FINE_STEPS).mul_(steps)


def _multiplied(parts: Tensor, packed: Any) -> Tensor:
    """Rows of whole numbers, or of what is rounded to them, by the weights."""
    found: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
        parts, 1.0, _ZERO_POINT, packed
    )
    return found
