"""Attention of short queries over ragged heads, in Triton. See kernels.ragged for the contract.

One program takes all rows of a query group over one stretch of one head's entries, reads keys and
values once, turns codes into numbers and keys to their positions in registers, and keeps a running
softmax in base 2 (FlashAttention, 2205.14135). A head is cut into as many stretches as keep the
card busy (flash-decoding); a second kernel joins them by their log-sum-exps.

Everything is held in halves of the head dimension, the two that rotary embedding turns against
each other; a half is padded to a power of two. Needs Triton: importing this module without it is
an ImportError.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.quantise import Codes, group_size
from kernels.ragged import RaggedEntries

LOG2_E = 1.4426950408889634
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
# 2 pi in three parts; the first two are short, so that their products with turns are exact.
TURN_HIGH: tl.constexpr = tl.constexpr(6.28125)
TURN_MIDDLE: tl.constexpr = tl.constexpr(0.0019340515136718750)
TURN_LOW: tl.constexpr = tl.constexpr(1.2556659146704e-06)
PER_TURN: tl.constexpr = tl.constexpr(0.15915494309189535)

SPLIT_AT_LEAST = 256
SPLITS_AT_MOST = 64
ROWS_AT_MOST = 32


@dataclass(frozen=True)
class Tiling:
    """How much one program holds at once: query rows, entries, warps, stages of loads in flight."""

    rows: int
    entries: int
    num_warps: int
    num_stages: int


def attend_ragged(
    q: Tensor,
    entries: RaggedEntries,
    scale: float,
    *,
    longest: int | None = None,
    n_splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """q [n_heads, rows, head_dim], rotated -> output like q, log-sum-exp [n_heads, rows] fp32.

    As kernels.ragged.attend_ragged, but keys and probabilities are rounded to q's type before they
    are multiplied; sums are fp32. `longest` is the length of the longest head; only the number of
    splits hangs on it, and without it the mean length is taken, so that nothing waits for the
    device. `n_splits` overrides the choice. ValueError for tensors whose layout cannot be served.
    """
    q = q.contiguous()
    n_heads, rows, head_dim = q.shape
    _check(q, entries)
    coded = any(isinstance(x, Codes) for x in (entries.keys, entries.values))
    tiling = tiling_for(rows, head_dim, q.dtype, coded=coded)
    row_blocks = triton.cdiv(rows, tiling.rows)
    if n_splits is None:
        if longest is None:
            longest = triton.cdiv(len(entries.keys), n_heads)
        n_splits = splits_for(longest, n_heads * row_blocks, q.device)
    out = torch.empty((n_heads, rows, head_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((n_heads, rows), dtype=torch.float32, device=q.device)
    part_out, part_lse = out, lse
    if n_splits > 1:
        shape = (n_splits, n_heads, rows)
        part_out = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
        part_lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    frame = entries.frame
    attend_stretch[(n_heads, n_splits, row_blocks)](
        q,
        *_parts(entries.keys),
        None if frame is None else frame.centre,
        None if frame is None else frame.spread,
        *_parts(entries.values),
        entries.offsets,
        entries.positions,
        entries.inv_freq,
        part_out,
        part_lse,
        scale * entries.rope_scaling * LOG2_E,
        rows,
        HEAD_DIM=head_dim,
        GROUP=group_size(head_dim),
        KEY_BITS=_bits(entries.keys),
        VALUE_BITS=_bits(entries.values),
        HALF=triton.next_power_of_2(head_dim // 2),
        BLOCK_ROWS=tiling.rows,
        BLOCK_ENTRIES=tiling.entries,
        COMPUTE=compute_type(q.dtype),
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    if n_splits > 1:
        merge_stretches[(n_heads * rows,)](
            part_out,
            part_lse,
            out,
            lse,
            n_splits,
            HEAD_DIM=head_dim,
            DIM=triton.next_power_of_2(head_dim),
            SPLITS=triton.next_power_of_2(n_splits),
            num_warps=2,
        )
    return out, lse


def tiling_for(rows: int, head_dim: int, dtype: torch.dtype, *, coded: bool) -> Tiling:
    """The tiling for a query group of so many rows over codes or floats.

    The larger the blocks the better, until a thread's registers spill: 16 rows are the least that
    fills a tensor core, and dequantisation takes registers. All fit in 99 KiB of shared memory.
    """
    block = min(max(16, triton.next_power_of_2(rows)), ROWS_AT_MOST)
    if dtype == torch.float32 or head_dim > 128:
        return Tiling(16, 32, 4, 1 if dtype == torch.float32 else 2)
    return Tiling(block, 32 if coded and block > 16 else 64, 4, 2)


def splits_for(longest: int, programs: int, device: torch.device) -> int:
    """Stretches per head: two programs for each multiprocessor, none shorter than is worth one."""
    wanted = triton.cdiv(2 * _n_multiprocessors(device), programs)
    return max(1, min(wanted, triton.cdiv(longest, SPLIT_AT_LEAST), SPLITS_AT_MOST))


def _n_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def compute_type(dtype: torch.dtype) -> tl.dtype:
    """What products are taken in. Triton's interpreter multiplies bf16 as if it were integers."""
    if dtype == torch.bfloat16:
        return tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16
    return {torch.float16: tl.float16, torch.float32: tl.float32}[dtype]


def _bits(rows: Tensor | Codes) -> int:
    """16 stands for floats of any width."""
    return rows.bits if isinstance(rows, Codes) else 16


def _parts(rows: Tensor | Codes) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if isinstance(rows, Codes):
        return rows.codes, rows.step, rows.zero
    return rows, None, None


def _check(q: Tensor, entries: RaggedEntries) -> None:
    n_heads, _, head_dim = q.shape
    if entries.n_heads != n_heads:
        raise ValueError(f"queries of {n_heads} heads over entries of {entries.n_heads}")
    if head_dim % 2 or 2 * len(entries.inv_freq) != head_dim:
        raise ValueError(f"{len(entries.inv_freq)} frequencies do not turn rows of {head_dim}")
    for name, rows in (("keys", entries.keys), ("values", entries.values)):
        held = rows.head_dim if isinstance(rows, Codes) else rows.shape[1]
        if held != head_dim:
            raise ValueError(f"{name} are rows of {held}, queries of {head_dim}")
        if not all(t is None or t.is_contiguous() for t in _parts(rows)):
            raise ValueError(f"{name} are not contiguous")
    if entries.positions is not None and not entries.positions.is_contiguous():
        raise ValueError("positions are not contiguous")


@triton.jit(do_not_specialize=["n_rows"])
def attend_stretch(
    q_ptr: tl.tensor,
    key_ptr: tl.tensor,
    key_step_ptr: tl.tensor,
    key_zero_ptr: tl.tensor,
    centre_ptr: tl.tensor,
    spread_ptr: tl.tensor,
    value_ptr: tl.tensor,
    value_step_ptr: tl.tensor,
    value_zero_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    positions_ptr: tl.tensor,
    inv_freq_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    scale_log2: tl.tensor,
    n_rows: tl.tensor,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr,
    COMPUTE: tl.constexpr,
) -> None:
    """One head, one stretch of its entries, one block of query rows.

    Writes out [n_splits, n_heads, n_rows, HEAD_DIM], divided by the stretch's own sum, and lse
    [n_splits, n_heads, n_rows]; 0 and minus infinity where the stretch holds nothing. Entries,
    then channels, are the first dimension of the two products: warps share that one out, so that
    each entry is turned and dequantised by a single warp, whatever the number of query rows.
    """
    head, split, n_splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    channel = tl.arange(0, HALF)
    inside = channel < HEAD_DIM // 2
    row = tl.program_id(2) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_inside = row < n_rows
    q_at = (head * n_rows + row)[None, :] * HEAD_DIM + channel[:, None]
    q_mask = row_inside[None, :] & inside[:, None]
    q_first = tl.load(q_ptr + q_at, mask=q_mask, other=0.0).to(COMPUTE)
    q_second = tl.load(q_ptr + q_at + HEAD_DIM // 2, mask=q_mask, other=0.0).to(COMPUTE)
    inv_freq = tl.load(inv_freq_ptr + channel, mask=inside, other=0.0)

    start = tl.load(offsets_ptr + head)
    length = tl.load(offsets_ptr + head + 1) - start
    blocks = (length + BLOCK_ENTRIES - 1) // BLOCK_ENTRIES
    stretch = (blocks + n_splits - 1) // n_splits * BLOCK_ENTRIES
    begin = split * stretch
    end = tl.minimum(begin + stretch, length)

    largest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.full([BLOCK_ROWS], 0.0, tl.float32)
    first = tl.full([HALF, BLOCK_ROWS], 0.0, tl.float32)
    second = tl.full([HALF, BLOCK_ROWS], 0.0, tl.float32)
    for block in range(begin, end, BLOCK_ENTRIES):
        slot = block + tl.arange(0, BLOCK_ENTRIES)
        live = slot < end
        entry = (start + slot).to(tl.int64)
        k_first, k_second = _halves(
            key_ptr, key_step_ptr, key_zero_ptr, entry, live, channel, KEY_BITS, HEAD_DIM, GROUP
        )
        if centre_ptr is not None:
            at = head * HEAD_DIM + channel
            k_first = _out_of_frame(k_first, centre_ptr + at, spread_ptr + at, inside)
            at += HEAD_DIM // 2
            k_second = _out_of_frame(k_second, centre_ptr + at, spread_ptr + at, inside)
        position = slot
        if positions_ptr is not None:
            position = tl.load(positions_ptr + entry, mask=live, other=0)
        cosine, sine = _cos_sin(position[None, :].to(tl.float32) * inv_freq[:, None])
        turned_first = (k_first * cosine - k_second * sine).to(COMPUTE)
        turned_second = (k_second * cosine + k_first * sine).to(COMPUTE)
        logits = tl.dot(tl.trans(turned_first), q_first, input_precision="ieee")
        logits = tl.dot(tl.trans(turned_second), q_second, logits, input_precision="ieee")
        logits = tl.where(live[:, None], logits * scale_log2, float("-inf"))

        now_largest = tl.maximum(largest, tl.max(logits, 0))
        shrink = tl.exp2(largest - now_largest)
        weights = tl.exp2(logits - now_largest[None, :])
        total = total * shrink + tl.sum(weights, 0)
        largest = now_largest
        v_first, v_second = _halves(
            value_ptr,
            value_step_ptr,
            value_zero_ptr,
            entry,
            live,
            channel,
            VALUE_BITS,
            HEAD_DIM,
            GROUP,
        )
        weights = weights.to(COMPUTE)
        v_first, v_second = v_first.to(COMPUTE), v_second.to(COMPUTE)
        first = tl.dot(v_first, weights, first * shrink[None, :], input_precision="ieee")
        second = tl.dot(v_second, weights, second * shrink[None, :], input_precision="ieee")

    seen = total > 0.0
    divisor = tl.where(seen, total, 1.0)
    lse = tl.where(seen, (largest + tl.log2(divisor)) * LN_2, float("-inf"))
    out_row = (split * tl.num_programs(0) + head).to(tl.int64) * n_rows + row
    out_at = out_row[None, :] * HEAD_DIM + channel[:, None]
    kind = out_ptr.dtype.element_ty
    tl.store(out_ptr + out_at, (first / divisor[None, :]).to(kind), mask=q_mask)
    tl.store(out_ptr + out_at + HEAD_DIM // 2, (second / divisor[None, :]).to(kind), mask=q_mask)
    tl.store(lse_ptr + out_row, lse, mask=row_inside)


@triton.jit(do_not_specialize=["n_splits"])
def merge_stretches(
    part_out_ptr: tl.tensor,
    part_lse_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    n_splits: tl.tensor,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
) -> None:
    """Join one row's stretches: their outputs weighted by exp(lse - lse of them all)."""
    row, n_rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    split = tl.arange(0, SPLITS)
    lse = tl.load(part_lse_ptr + split * n_rows + row, mask=split < n_splits, other=float("-inf"))
    largest = tl.max(lse, 0)
    # a row that no stretch saw anything for: every weight becomes 0
    base = tl.where(largest == float("-inf"), 0.0, largest)
    total = tl.sum(tl.exp(lse - base), 0)
    divisor = tl.where(total > 0.0, total, 1.0)
    tl.store(lse_ptr + row, tl.where(total > 0.0, base + tl.log(divisor), float("-inf")))
    channel = tl.arange(0, DIM)
    inside = channel < HEAD_DIM
    out = tl.full([DIM], 0.0, tl.float32)
    for number in range(0, n_splits):
        at = row + number * n_rows
        weight = tl.exp(tl.load(part_lse_ptr + at) - base) / divisor
        part = tl.load(part_out_ptr + at * HEAD_DIM + channel, mask=inside, other=0.0)
        out += part * weight
    tl.store(out_ptr + row * HEAD_DIM + channel, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _halves(
    rows_ptr: tl.tensor,
    step_ptr: tl.tensor,
    zero_ptr: tl.tensor,
    entry: tl.tensor,
    live: tl.tensor,
    channel: tl.tensor,
    BITS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Both halves of some rows, each [n, HALF] fp32; finite where nothing is live or inside."""
    mask = live[None, :] & (channel < HEAD_DIM // 2)[:, None]
    if BITS == 16:
        at = rows_ptr + entry[None, :] * HEAD_DIM + channel[:, None]
        first = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(at + HEAD_DIM // 2, mask=mask, other=0.0).to(tl.float32)
    else:
        if BITS == 8:
            at = rows_ptr + entry[None, :] * HEAD_DIM + channel[:, None]
            first = tl.load(at, mask=mask, other=0).to(tl.int32)
            second = tl.load(at + HEAD_DIM // 2, mask=mask, other=0).to(tl.int32)
        elif BITS == 4:
            at = rows_ptr + entry[None, :] * (HEAD_DIM // 2) + channel[:, None]
            packed = tl.load(at, mask=mask, other=0).to(tl.int32)
            first, second = packed & 15, packed >> 4
        else:
            quarter: tl.constexpr = HEAD_DIM // 4
            at = rows_ptr + entry[None, :] * quarter + (channel % quarter)[:, None]
            packed = tl.load(at, mask=mask, other=0).to(tl.int32)
            shift = (channel // quarter * 2)[:, None]
            first, second = (packed >> shift) & 3, (packed >> (shift + 4)) & 3
        first = _dequantised(first, step_ptr, zero_ptr, entry, live, channel, 0, HEAD_DIM, GROUP)
        second = _dequantised(
            second, step_ptr, zero_ptr, entry, live, channel, HEAD_DIM // 2, HEAD_DIM, GROUP
        )
    return first, second


@triton.jit
def _dequantised(
    codes: tl.tensor,
    step_ptr: tl.tensor,
    zero_ptr: tl.tensor,
    entry: tl.tensor,
    live: tl.tensor,
    channel: tl.tensor,
    FIRST: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    GROUP: tl.constexpr,
) -> tl.tensor:
    """codes [n, HALF] of the channels from FIRST on -> fp32, by the steps of their groups."""
    at = entry * (HEAD_DIM // GROUP)
    lowest: tl.constexpr = FIRST // GROUP
    highest: tl.constexpr = (FIRST + HEAD_DIM // 2 - 1) // GROUP
    step = tl.load(step_ptr + at + lowest, mask=live, other=0.0).to(tl.float32)[None, :]
    zero = tl.load(zero_ptr + at + lowest, mask=live, other=0.0).to(tl.float32)[None, :]
    for group in tl.static_range(lowest + 1, highest + 1):
        beyond = (FIRST + channel >= group * GROUP)[:, None]
        later = tl.load(step_ptr + at + group, mask=live, other=0.0).to(tl.float32)
        step = tl.where(beyond, later[None, :], step)
        later = tl.load(zero_ptr + at + group, mask=live, other=0.0).to(tl.float32)
        zero = tl.where(beyond, later[None, :], zero)
    return codes.to(tl.float32) * step + zero


@triton.jit
def _out_of_frame(
    x: tl.tensor, centre_ptr: tl.tensor, spread_ptr: tl.tensor, inside: tl.tensor
) -> tl.tensor:
    centre = tl.load(centre_ptr, mask=inside, other=0.0)
    spread = tl.load(spread_ptr, mask=inside, other=0.0)
    return x * spread[:, None] + centre[:, None]


@triton.jit
def _cos_sin(angle: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Cosine and sine of angles >= 0, each to within 1e-6 for angles up to 200,000.

    Brought to within half a turn, where nothing is lost (Cody and Waite's reduction), then
    minimax polynomials of degree 12 and 11, fitted there. The library's functions carry an exact
    path for every float, which costs registers and twice the code.
    """
    turns = tl.floor(angle * PER_TURN + 0.5)
    x = angle - turns * TURN_HIGH
    x = x - turns * TURN_MIDDLE
    x = x - turns * TURN_LOW
    u = x * x
    cosine = u * 1.7244287e-09 - 2.7078875e-07
    cosine = cosine * u + 2.4769875e-05
    cosine = cosine * u - 1.3887803e-03
    cosine = cosine * u + 4.1666490e-02
    cosine = cosine * u - 4.9999988e-01
    cosine = cosine * u + 1.0
    sine = u * -2.0361980e-08 + 2.6997180e-06
    sine = sine * u - 1.9808648e-04
    sine = sine * u + 8.3324040e-03
    sine = sine * u - 1.6666552e-01
    sine = sine * u + 0.9999996
    return cosine, sine * x
