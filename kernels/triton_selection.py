"""`kernels.selection` on a card: radix selection in place of sorting, and rows moved in one pass.

An entry's key is its score, made a whole number in the same order, above its position: the larger
key stays, and inside a row no two are equal. A cut is found digit by digit from the top, 8 bits at
a time: count the digits, take the one where the wanted entry lies, go on with the entries that
share it. This reads 8 bytes of an entry eight times and keeps only counts; sorting would also hold
and move an index of 8 bytes for every entry, several times over. Nothing is asked back from the
device. Prefix sums of the mask are left to torch: they move less than one row in fifty would.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.quantise import Codes
from kernels.selection import LayerRows

DIGITS = 8
BLOCK = 1024
NUM_WARPS = 4
# Values of a tile of rows that one program moves.
TILE_VALUES = 4096

_LARGEST = tl.constexpr(2**63 - 1)
_OUT = tl.constexpr(0)
_STAYS = tl.constexpr(1)
_ASKED = tl.constexpr(2)


def keep_mask(
    scores: Tensor,
    positions: Tensor,
    offsets: Tensor,
    protected: Tensor,
    floors: Tensor,
    budget: int,
    ceiling: int | None = None,
) -> Tensor:
    """Which entries stay: [total] bool, equal to `kernels.selection.keep_mask` of the same."""
    total, device = len(scores), scores.device
    if not total:
        return torch.zeros(0, dtype=torch.bool, device=device)
    n_rows = len(offsets) - 1
    scores, positions = scores.contiguous(), positions.contiguous()
    marks = torch.empty(total, dtype=torch.uint8, device=device)
    sure = torch.empty(n_rows, dtype=torch.int32, device=device)
    mark_rows[(n_rows,)](
        scores,
        positions,
        protected.contiguous().view(torch.uint8),
        offsets.to(torch.int32).contiguous(),
        floors.to(torch.int32).contiguous(),
        total if ceiling is None else ceiling,
        marks,
        sure,
        BLOCK=BLOCK,
        num_warps=NUM_WARPS,
    )
    # Row i: what is known of the cut before digit i, and how many entries are still wanted.
    state = torch.zeros((DIGITS + 1, 2), dtype=torch.int64, device=device)
    state[0, 1] = (budget - sure.sum()).clamp(min=0)
    counts = torch.zeros((DIGITS, 256), dtype=torch.int32, device=device)
    grid = (triton.cdiv(total, BLOCK),)
    pool = (scores, positions, marks, state, counts, total)
    for digit in range(DIGITS):
        count_digits[grid](*pool, digit, BLOCK=BLOCK, num_warps=NUM_WARPS)
    mark_pool[grid](*pool, BLOCK=BLOCK, num_warps=NUM_WARPS)
    tied = marks == _ASKED.value
    return (marks == _STAYS.value) | (tied & (tied.cumsum(0) <= state[DIGITS, 1]))


def compact(rows: LayerRows, keep: Tensor, n_kept: int) -> LayerRows:
    """The kept rows, close together and in their order; n_kept is how many keep [n] bool sets.

    Kept rows behind n_kept are cut; with fewer, what follows them is left unwritten.
    """
    parts = [*_parts(rows.keys), *_parts(rows.values)]
    moved = [_like(part, n_kept) for part in parts]
    positions, scores = _like(rows.positions, n_kept), _like(rows.scores, n_kept)
    place = keep.cumsum(0, dtype=torch.int32)
    # Floats have one part and codes three, so that keys and values together have an even number.
    for i in range(0, len(parts), 2):
        _move(parts[i : i + 2], moved[i : i + 2], rows, positions, scores, keep, place, i == 0)
    n_key_parts = len(_parts(rows.keys))
    keys = _whole(rows.keys, moved[:n_key_parts])
    return LayerRows(keys, _whole(rows.values, moved[n_key_parts:]), positions, scores)


def _parts(rows: Tensor | Codes) -> tuple[Tensor, ...]:
    return (rows.codes, rows.step, rows.zero) if isinstance(rows, Codes) else (rows,)


def _whole(like: Tensor | Codes, parts: list[Tensor]) -> Tensor | Codes:
    if isinstance(like, Codes):
        return Codes(parts[0], parts[1], parts[2], like.bits)
    return parts[0]


def _like(rows: Tensor, n: int) -> Tensor:
    return torch.empty((n, *rows.shape[1:]), dtype=rows.dtype, device=rows.device)


def _move(
    pair: list[Tensor],
    out: list[Tensor],
    rows: LayerRows,
    positions: Tensor,
    scores: Tensor,
    keep: Tensor,
    place: Tensor,
    with_scores: bool,
) -> None:
    n, n_kept = len(keep), len(positions)
    if not n or not n_kept:
        return
    shape = move_shape(pair[0].shape[1], pair[1].shape[1])
    move_rows[(triton.cdiv(n, shape["BLOCK_N"]),)](
        *(part.contiguous() for part in pair),
        rows.positions.contiguous(),
        rows.scores.contiguous(),
        keep.contiguous().view(torch.uint8),
        place,
        *out,
        positions,
        scores,
        n,
        n_kept,
        **shape,
        WITH_SCORES=with_scores,
        num_warps=NUM_WARPS,
    )


def move_shape(width_a: int, width_b: int) -> dict[str, int]:
    """The compile-time constants of `move_rows` for two kinds of rows of these widths."""
    padded = triton.next_power_of_2(max(width_a, width_b))
    block = min(128, max(1, TILE_VALUES // padded))
    return {"WIDTH_A": width_a, "WIDTH_B": width_b, "PADDED": padded, "BLOCK_N": block}


@triton.jit
def ordered_keys(
    scores: tl.tensor, positions: tl.tensor, at: tl.tensor, mine: tl.tensor
) -> tl.tensor:
    """Keys of entries `at`, int64 in [0, 2^63): 32 bits of score above 31 bits of position."""
    score = tl.load(scores + at, mask=mine, other=0.0)
    position = tl.load(positions + at, mask=mine, other=0).to(tl.int64)
    # Two zeros are one score; a negative float's other bits run the wrong way.
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return ((bits.to(tl.int64) + 2147483648) << 31) | position


@triton.jit
def digits_of(key: tl.tensor, known: tl.tensor, shift: tl.tensor) -> tl.tensor:
    """The 8 bits of a key from bit `shift`, and whether the bits above them are `known`."""
    digit = ((key >> shift) & 255).to(tl.int32)
    return digit, ((key >> shift) >> 8) == known


@triton.jit
def next_digit(counts: tl.tensor, left: tl.tensor) -> tl.tensor:
    """Where the `left`-th largest lies: its digit, and how many are wanted of those that share it.

    counts [256] of each digit. If there are fewer than `left`, digit 0 and too many wanted.
    """
    bins = tl.arange(0, 256)
    at_least = tl.cumsum(counts, 0, reverse=True)
    digit = tl.max(tl.where(at_least >= left, bins, 0), axis=0)
    return digit, left - tl.sum(tl.where(bins > digit, counts, 0), axis=0)


@triton.jit
def cut_of_row(
    scores: tl.tensor,
    positions: tl.tensor,
    protected: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    n_free: tl.tensor,
    wanted: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The key at or above which `wanted` of a row's n_free unprotected entries lie."""
    known = tl.zeros((), tl.int64)
    left = wanted
    searched = (wanted > 0) & (wanted < n_free)
    for digit in range(tl.where(searched, 8, 0)):
        shift = 56 - 8 * digit
        counts = tl.zeros((256,), tl.int32)
        for block in range(start, end, BLOCK):
            at = block + tl.arange(0, BLOCK)
            free = (at < end) & (tl.load(protected + at, mask=at < end, other=1) == 0)
            key = ordered_keys(scores, positions, at, free)
            digits, shared = digits_of(key, known, shift)
            counts += tl.histogram(digits, 256, mask=free & shared)
        chosen, left = next_digit(counts, left)
        known = (known << 8) | chosen
    return tl.where(searched, known, tl.where(wanted > 0, tl.zeros_like(known), _LARGEST))


@triton.jit
def mark_rows(
    scores: tl.tensor,
    positions: tl.tensor,
    protected: tl.tensor,
    offsets: tl.tensor,
    floors: tl.tensor,
    ceiling: tl.tensor,
    marks: tl.tensor,
    sure: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One program a row: marks what stays by protection or floor, and what asks for the budget.

    marks [total] uint8: out, stays, or asks; sure [n_rows] int32: how many of a row stay so.
    """
    row = tl.program_id(0)
    start, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    n_protected = tl.zeros((), tl.int32)
    for block in range(start, end, BLOCK):
        at = block + tl.arange(0, BLOCK)
        n_protected += tl.sum(tl.load(protected + at, mask=at < end, other=0).to(tl.int32), axis=0)
    capped = tl.minimum(end - start, ceiling)
    stays = tl.maximum(n_protected, tl.minimum(tl.load(floors + row), capped))
    most = tl.maximum(stays, capped)
    tl.store(sure + row, stays)
    row_of = (scores, positions, protected, start, end, end - start - n_protected)
    cut_sure = cut_of_row(*row_of, stays - n_protected, BLOCK)
    cut_most = cut_of_row(*row_of, most - n_protected, BLOCK)
    for block in range(start, end, BLOCK):
        at = block + tl.arange(0, BLOCK)
        ruled = tl.load(protected + at, mask=at < end, other=0) != 0
        key = ordered_keys(scores, positions, at, at < end)
        mark = tl.where(key >= cut_most, _ASKED, _OUT)
        mark = tl.where(ruled | (key >= cut_sure), _STAYS, mark)
        tl.store(marks + at, mark.to(tl.uint8), mask=at < end)


@triton.jit
def cut_before(state: tl.tensor, counts: tl.tensor, digit: tl.tensor) -> tl.tensor:
    """What digits above number `digit` are, and how many entries are wanted of those that share
    them; counts [8, 256] of the digit before must be complete.
    """
    known, left = tl.load(state), tl.load(state + 1)
    if digit > 0:
        bins = tl.arange(0, 256)
        before = tl.load(counts + (digit - 1) * 256 + bins)
        known, left = tl.load(state + digit * 2 - 2), tl.load(state + digit * 2 - 1)
        chosen, left = next_digit(before.to(tl.int64), left)
        known = (known << 8) | chosen
    # Every program comes to the same; nobody reads this before the next launch.
    if tl.program_id(0) == 0:
        tl.store(state + digit * 2, known)
        tl.store(state + digit * 2 + 1, left)
    return known, left


@triton.jit(do_not_specialize=["digit"])
def count_digits(
    scores: tl.tensor,
    positions: tl.tensor,
    marks: tl.tensor,
    state: tl.tensor,
    counts: tl.tensor,
    total: tl.tensor,
    digit: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Adds up digit number `digit` of the keys that ask and share the digits above it.

    state [9, 2] int64, counts [8, 256] int32, zero before the first digit.
    """
    known, _left = cut_before(state, counts, digit)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    asks = tl.load(marks + at, mask=at < total, other=0) == _ASKED
    key = ordered_keys(scores, positions, at, asks)
    digits, shared = digits_of(key, known, 56 - 8 * digit)
    found = tl.histogram(digits, 256, mask=asks & shared)
    tl.atomic_add(counts + digit * 256 + tl.arange(0, 256), found, mask=found > 0)


@triton.jit
def mark_pool(
    scores: tl.tensor,
    positions: tl.tensor,
    marks: tl.tensor,
    state: tl.tensor,
    counts: tl.tensor,
    total: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Settles who asked: above the cut it stays, below it goes, at the cut it goes on asking.

    Afterwards state[8, 1] says how many of those at the cut stay.
    """
    known, _left = cut_before(state, counts, 8)
    cut = tl.where(tl.load(state + 1) > 0, known, _LARGEST)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mark = tl.load(marks + at, mask=at < total, other=0)
    asks = mark == _ASKED
    key = ordered_keys(scores, positions, at, asks)
    settled = tl.where(key > cut, _STAYS, tl.where(key == cut, _ASKED, _OUT))
    tl.store(marks + at, tl.where(asks, settled, mark).to(tl.uint8), mask=at < total)


@triton.jit
def move_rows(
    a: tl.tensor,
    b: tl.tensor,
    positions: tl.tensor,
    scores: tl.tensor,
    keep: tl.tensor,
    place: tl.tensor,
    a_out: tl.tensor,
    b_out: tl.tensor,
    positions_out: tl.tensor,
    scores_out: tl.tensor,
    n: tl.tensor,
    n_kept: tl.tensor,
    WIDTH_A: tl.constexpr,
    WIDTH_B: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WITH_SCORES: tl.constexpr,
) -> None:
    """Kept rows of a [n, WIDTH_A] and b [n, WIDTH_B] to their places, with position and score.

    keep [n] uint8; place [n] int32, its running sum. Rows that go are not read.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    kept = tl.load(keep + rows, mask=rows < n, other=0) != 0
    to = tl.load(place + rows, mask=kept, other=0) - 1
    kept = kept & (to < n_kept)
    if WITH_SCORES:
        tl.store(positions_out + to, tl.load(positions + rows, mask=kept), mask=kept)
        tl.store(scores_out + to, tl.load(scores + rows, mask=kept), mask=kept)
    column = tl.arange(0, PADDED)[None, :]
    source, target = rows[:, None].to(tl.int64), to[:, None].to(tl.int64)
    mine = kept[:, None] & (column < WIDTH_A)
    tl.store(
        a_out + target * WIDTH_A + column,
        tl.load(a + source * WIDTH_A + column, mask=mine),
        mask=mine,
    )
    mine = kept[:, None] & (column < WIDTH_B)
    tl.store(
        b_out + target * WIDTH_B + column,
        tl.load(b + source * WIDTH_B + column, mask=mine),
        mask=mine,
    )
