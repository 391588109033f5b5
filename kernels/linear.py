"""Linear layers whose weights are packed: fewer bytes to read for every token.

One row through a linear layer reads each weight once and does next to nothing with it, so its time
is that of the bytes. Formats, all of one matrix [out, in]:

plain  the weight as it is, through torch's own matmul
fp16   every weight rounded to fp16; activations and sums stay fp32 (fbgemm, x86 only)
int8   weight = scale[row] * code, codes -127 to 127
int4   weight = zero[row, group] + scale[row, group] * (code - 8), codes 0 to 15
nf4    bitsandbytes' 4-bit codes at the quantiles of a normal variable (QLoRA, 2305.14314), in
       blocks of 64; the only packed one that a card takes, where its kernel reads the codes

int8 multiplies in whole numbers where the processor can (kernels.integer). The other operator of
int8, and int4's, are vectorised for bf16 activations only, so activations are rounded to bf16 on
the way in and results on the way out. Scales and zeros are bf16 from the start, and codes are
chosen for the rounded ones. `rounded` is the meaning of a format in plain torch.

Reading past a row's end is not something int8's other operator guards against; `pack` does. A
format that cannot take a matrix gives way to a wider one, and the packed object says so.
"""

from __future__ import annotations

import importlib.util
import math
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from kernels import integer

Format = Literal["plain", "fp16", "int8", "int4", "nf4"]

GROUPS = (32, 64, 128, 256)  # weights along `in` that the int4 operator lets share a scale
NF4_BLOCK = 64  # weights that share a scale
_FP16_LARGEST = 65504.0
# One vector load of the widest kernel: shorter or unaligned rows are read beyond their end.
_INT8_IN_MULTIPLE = 16
_INT4_OUT_MULTIPLE = 16
_BANDS = 64  # of a matrix, at most
_HAS_MKL = torch.backends.mkl.is_available()
_ROWS_AT_ONCE = 8192  # of the weight, while codes are made: bounds the memory that takes


@dataclass(frozen=True)
class PackedLinear:
    """A linear layer ready to multiply.

    format  the one taken; not the one asked for where `reason` is not empty
    reason  why the matrix could not be packed as asked, one sentence
    weight  [out, in] floats or int8 codes, or what the operators made of them
    scales  int8: [out], inside the weight where products are in whole numbers; int4:
            [in / group, out, 2], scale and zero; bf16; nf4: the library's state
    bias    [out], or None; fp16 holds it inside the weight
    nbytes  of weight, scales and bias
    """

    format: Format
    reason: str
    out_features: int
    in_features: int
    weight: Any
    scales: Any
    bias: Tensor | None
    group: int
    nbytes: int

    @property
    def in_fp32(self) -> bool:
        """Whether products take activations in fp32 and return it, whatever the weight was in."""
        return self.format == "fp16" or (
            self.format == "int8" and not isinstance(self.weight, Tensor)
        )


def pack(
    weight: Tensor, wanted: Format, *, bias: Tensor | None = None, group: int = 32
) -> PackedLinear:
    """weight [out, in] and bias [out] -> a packed layer in the wanted format.

    What int4 cannot take becomes int8, what the others cannot take stays plain: `format` and
    `reason` tell. All but plain and nf4 are of the CPU. plain holds the given tensors
    themselves, everything else is a copy.
    """
    chosen, reason = wanted, ""
    while problem := _problem(weight, chosen, group):
        reason = f"{reason} {problem}".strip()
        chosen = "int8" if chosen == "int4" else "plain"
    packed: Any = weight
    scales: Any = None
    if chosen == "fp16":
        packed = torch.ops.quantized.linear_prepack_fp16(
            weight.float().contiguous(), None if bias is None else bias.float()
        )
    elif chosen == "int8":
        packed, scales = int8_codes(weight)
        if integer.served():
            packed, scales = integer.pack_codes(packed, scales), None
            bias = None if bias is None else bias.float()
    elif chosen == "int4":
        codes, scales = int4_codes(weight, group)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    elif chosen == "nf4":
        packed, scales = nf4_codes(weight)
    n_out, n_in = weight.shape
    held = scales.absmax if chosen == "nf4" else scales
    if isinstance(packed, Tensor):
        nbytes = packed.nbytes
    else:
        nbytes = 2 * n_out * n_in if chosen == "fp16" else integer.nbytes(n_out, n_in)
    nbytes += sum(t.nbytes for t in (held, bias) if t is not None)
    return PackedLinear(chosen, reason, n_out, n_in, packed, scales, bias, group, nbytes)


def linear(x: Tensor, packed: PackedLinear, onto: Tensor | None = None) -> Tensor:
    """x [n, in], fp32 or bf16 -> [n, out] in x's dtype, bias added.

    onto  [n, out] in x's dtype, changed: the result is added to it, and it is returned
    """
    if packed.format == "int8" and not isinstance(packed.weight, Tensor):
        if x.dtype == torch.float32:
            return integer.product(x, packed.weight, bias=packed.bias, onto=onto)
        y = integer.product(x.float(), packed.weight, bias=packed.bias).to(x.dtype)
    else:
        y = _linear(x, packed)
    return y if onto is None else onto.add_(y)


def _linear(x: Tensor, packed: PackedLinear) -> Tensor:
    if packed.format == "plain":
        if x.dtype != packed.weight.dtype:
            return _linear(x.to(packed.weight.dtype), packed).to(x.dtype)
        if len(x) == 1 and x.dtype == torch.float32 and x.device.type == "cpu":
            return _one_row(x, packed)
        return functional.linear(x, packed.weight, packed.bias)
    if packed.format == "fp16":
        if x.dtype != torch.float32:
            return _linear(x.float(), packed).to(x.dtype)
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, packed.weight)
        return y
    if packed.format == "nf4":
        import bitsandbytes

        found: Tensor = bitsandbytes.matmul_4bit(
            x, packed.weight.t(), quant_state=packed.scales, bias=packed.bias
        )
        return found
    narrow = x.to(torch.bfloat16).contiguous()
    if packed.format == "int8":
        y = torch.ops.aten._weight_int8pack_mm(narrow, packed.weight, packed.scales)
    else:
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(
            narrow, packed.weight, packed.group, packed.scales
        )
    if packed.bias is not None:
        y = y + packed.bias
    return y.to(x.dtype)


def _one_row(x: Tensor, packed: PackedLinear) -> Tensor:
    """A row of fp32 by a plain matrix, in bands that threads share: as one, MKL gives it to a
    single thread on processors that are not Intel's.
    """
    n_bands = math.gcd(packed.out_features, _BANDS)
    n_threads = torch.get_num_threads()
    if not 1 < n_threads <= n_bands or not packed.weight.is_contiguous() or not _HAS_MKL:
        return functional.linear(x, packed.weight, packed.bias)
    bands = packed.weight.view(n_bands, -1, packed.in_features)
    y = torch.bmm(bands, x.T.expand(n_bands, -1, -1)).view(1, -1)
    return y if packed.bias is None else y.add_(packed.bias)


def rounded(weight: Tensor, chosen: Format, group: int = 32) -> Tensor:
    """The reference: weight [out, in] as a format holds it, [out, in] fp32."""
    if chosen == "plain":
        return weight.float()
    if chosen == "fp16":
        return weight.half().float()
    if chosen == "int8":
        codes, scales = int8_codes(weight)
        return codes.float() * scales.float()[:, None]
    if chosen == "nf4":
        from bitsandbytes import functional as library

        whole: Tensor = library.dequantize_4bit(*nf4_codes(weight))
        return whole.float()
    codes, scales = int4_codes(weight, group)
    scale, zero = (part.T[..., None] for part in scales.float().unbind(-1))
    grouped = codes.reshape(len(weight), -1, group).float()
    return ((grouped - 8) * scale + zero).reshape(weight.shape)


def int8_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [out, in] -> codes [out, in] int8 and scales [out] bf16, symmetric in each row."""
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(len(weight), dtype=torch.bfloat16)
    for first in range(0, len(weight), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        part = weight[rows].float()
        largest = part.abs().amax(1)
        scales[rows] = (largest / 127).clamp(min=torch.finfo(torch.bfloat16).tiny)
        steps = part / scales[rows].float()[:, None]
        codes[rows] = steps.round_().clamp_(-127, 127).to(torch.int8)
    return codes, scales


def int4_codes(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """weight [out, in] -> codes [out, in] uint8 and scales [in / group, out, 2] bf16.

    A group's smallest weight has code 0, its largest 15.
    """
    n_out, n_in = weight.shape
    codes = torch.empty(weight.shape, dtype=torch.uint8)
    scales = torch.empty(n_in // group, n_out, 2, dtype=torch.bfloat16)
    for first in range(0, n_out, _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        part = weight[rows].float().reshape(-1, n_in // group, group)
        low, high = part.aminmax(dim=-1)
        scale = ((high - low) / 15).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
        zero = (low + 8 * scale.float()).bfloat16()
        steps = (part - zero.float()[..., None]) / scale.float()[..., None]
        codes[rows] = steps.add_(8).round_().clamp_(0, 15).to(torch.uint8).reshape(-1, n_in)
        scales[:, rows] = torch.stack([scale, zero], dim=-1).transpose(0, 1)
    return codes, scales


def nf4_codes(weight: Tensor) -> tuple[Tensor, Any]:
    """weight [out, in] -> two codes a byte [out * in / 2, 1], and the library's state of them."""
    from bitsandbytes import functional as library

    codes, state = library.quantize_4bit(weight.contiguous(), quant_type="nf4", blocksize=NF4_BLOCK)
    return codes, state


def seconds_per_call(
    wanted: Format,
    *,
    n_out: int = 4096,
    n_in: int = 1024,
    rows: int = 1,
    copies: int = 8,
    seconds: float = 0.25,
) -> float:
    """What one call takes on this machine: the fastest within `seconds`, weights taken in turn.

    For choosing a format: where torch has no vectorised kernel (int8 and int4 on Windows), or the
    machine has more bandwidth than arithmetic, the narrower format is not the faster one.
    """
    packs = [pack(torch.randn(n_out, n_in), wanted) for _ in range(copies)]
    x = torch.randn(rows, n_in)
    linear(x, packs[0])
    best = float("inf")
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or best == float("inf"):
        for packed in packs:
            started = time.perf_counter()
            linear(x, packed)
            best = min(best, time.perf_counter() - started)
    return best


def _problem(weight: Tensor, chosen: Format, group: int) -> str:
    """Why a format cannot take a matrix; empty if it can."""
    n_out, n_in = weight.shape
    if chosen == "plain":
        return ""
    if chosen == "nf4":
        if importlib.util.find_spec("bitsandbytes") is None:
            return "nf4 needs the package bitsandbytes, which is not installed."
        if n_in % NF4_BLOCK or not weight.is_floating_point():
            return f"nf4 needs floating-point weights, inputs in multiples of {NF4_BLOCK}."
        return ""
    if weight.device.type != "cpu" or not weight.is_floating_point():
        return f"{chosen} packs floating-point weights on the CPU."
    if chosen == "fp16":
        if "fbgemm" not in torch.backends.quantized.supported_engines:
            return "fp16 needs fbgemm, which this processor or torch build lacks."
        low, high = weight.aminmax()
        if not (float(low) >= -_FP16_LARGEST and float(high) <= _FP16_LARGEST):
            return "fp16 cannot hold the largest weight."
    if chosen == "int8" and not integer.served() and n_in % _INT8_IN_MULTIPLE:
        return f"int8 needs inputs in multiples of {_INT8_IN_MULTIPLE}, not {n_in}."
    if chosen == "int4":
        if group not in GROUPS or n_in % group:
            return f"int4 needs inputs in whole groups of {GROUPS}, not {n_in} in {group}s."
        if n_out % _INT4_OUT_MULTIPLE:
            return f"int4 needs outputs in multiples of {_INT4_OUT_MULTIPLE}, not {n_out}."
    return ""
