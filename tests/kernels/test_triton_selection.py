"""Radix selection and rows moved by Triton: the same entries and rows as the plain version."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from kernels import selection as plain
from kernels.quantise import Codes, quantise
from kernels.selection import LayerRows
from tests.kernels.aot import SHARED_LIMIT, compile_all, interpret_without_gpu, recorded
from tests.kernels.poison import is_poison, poisoned_memory

if find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)
DEVICE = interpret_without_gpu()

from kernels import triton_selection as fused  # noqa: E402

# Spilled bytes a thread, stores and loads together.
SPILLS = 32


def ragged(
    lengths: list[int], seed: int, kind: str, device: str = DEVICE
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scores, positions, offsets, protected and floors of rows of these lengths."""
    draw = torch.Generator().manual_seed(seed)
    total, furthest = sum(lengths), 2 * max(lengths, default=0) + 1
    positions = torch.cat(
        [torch.randperm(furthest, generator=draw)[:n].sort().values for n in lengths]
    )
    scores = torch.randn(total, generator=draw)
    if kind == "ties":
        scores = (scores * 2).round()
    elif kind == "one":
        scores = torch.zeros(total)
        scores[::2] = -0.0
    elif kind == "masked":
        scores[torch.rand(total, generator=draw) < 0.5] = -torch.inf
    elif kind == "wide":
        scores = scores * 10.0 ** torch.randint(-38, 38, (total,), generator=draw)
    ruled = torch.rand(total, generator=draw) < 0.1
    floors = torch.randint(0, 12, (len(lengths),), generator=draw)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    tensors = (scores, positions.int(), offsets.int(), ruled, floors.int())
    return tuple(t.to(device) for t in tensors)  # type: ignore[return-value]


CASES = [
    # lengths of the rows, kind of scores, budget, ceiling
    ([1], "plain", 1, None),
    ([63], "ties", 20, None),
    ([40, 0, 25, 1], "plain", 30, 12),
    ([0, 33, 0], "one", 10, None),
    ([50, 50, 50], "one", 70, None),
    ([30, 60], "masked", 60, None),
    ([30, 60], "wide", 45, 40),
    ([20, 31], "ties", 0, None),
    ([20, 31], "ties", 51, 10**6),
    ([20, 31], "plain", 1000, None),
    ([1300, 20], "ties", 700, None),
    ([257, 1, 63], "plain", 200, None),
    ([257, 63], "ties", 130, 90),
]


@pytest.mark.parametrize(("lengths", "kind", "budget", "ceiling"), CASES)
def test_the_same_entries_stay(
    lengths: list[int], kind: str, budget: int, ceiling: int | None
) -> None:
    for seed in range(2):
        given = ragged(lengths, seed, kind)
        with poisoned_memory() as memory:
            keep = fused.keep_mask(*given, budget, ceiling)
        assert len(memory) == 2
        assert keep.dtype == torch.bool
        assert torch.equal(keep, plain.keep_mask(*given, budget, ceiling))


def test_nothing_to_choose_from() -> None:
    scores, positions, offsets, ruled, floors = ragged([3, 4], 0, "plain")
    none = torch.zeros_like(offsets)
    assert len(fused.keep_mask(scores[:0], positions[:0], none, ruled[:0], floors, 3)) == 0


def layer(n: int, head_dim: int, k_bits: int, v_bits: int, dtype: torch.dtype) -> LayerRows:
    """Rows of 16 or 32 bits where bits is 16, codes elsewhere."""
    draw = torch.Generator().manual_seed(n)
    floats = torch.randn(2, n, head_dim, generator=draw).to(DEVICE)
    keys, values = (
        x.to(dtype) if bits == 16 else quantise(x, bits)
        for x, bits in zip(floats, (k_bits, v_bits), strict=True)
    )
    positions = torch.arange(n, dtype=torch.int32, device=DEVICE) * 3
    return LayerRows(keys, values, positions, torch.randn(n, generator=draw).to(DEVICE))


def parts(rows: LayerRows) -> list[Tensor]:
    found = [rows.positions, rows.scores]
    for tensor in (rows.keys, rows.values):
        coded = isinstance(tensor, Codes)
        found += [tensor.codes, tensor.step, tensor.zero] if coded else [tensor]  # type: ignore
    return found


@pytest.mark.parametrize(
    ("n", "head_dim", "k_bits", "v_bits", "dtype"),
    [
        (1, 64, 16, 16, torch.float32),
        (63, 96, 16, 16, torch.bfloat16),
        (257, 128, 16, 16, torch.float16),
        (257, 80, 8, 4, torch.float32),
        (63, 96, 2, 16, torch.bfloat16),
        (257, 256, 8, 4, torch.float16),
    ],
)
def test_the_same_rows_move(
    n: int, head_dim: int, k_bits: int, v_bits: int, dtype: torch.dtype
) -> None:
    rows = layer(n, head_dim, k_bits, v_bits, dtype)
    draw = torch.Generator().manual_seed(5)
    for least in (0.4, 0.0, 2.0):
        keep = (torch.rand(n, generator=draw) >= least).to(DEVICE)
        n_kept = int(keep.sum())
        with poisoned_memory() as memory:
            moved = fused.compact(rows, keep, n_kept)
        assert len(memory) == len(parts(rows))
        for ours, theirs in zip(
            parts(moved), parts(plain.compact(rows, keep, n_kept)), strict=True
        ):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_a_fixed_capacity_is_cut_and_otherwise_left_alone() -> None:
    rows = layer(63, 64, 16, 16, torch.float32)
    keep = torch.arange(63, device=DEVICE) % 3 == 0
    exact = plain.compact(rows, keep, 21)
    with poisoned_memory():
        tight = fused.compact(rows, keep, 5)
    for ours, theirs in zip(parts(tight), parts(exact), strict=True):
        assert torch.equal(ours, theirs[:5])
    with poisoned_memory():
        roomy = fused.compact(rows, keep, 30)
    for ours, theirs in zip(parts(roomy), parts(exact), strict=True):
        assert torch.equal(ours[:21], theirs)
        assert bool(is_poison(ours[21:]).all())


# Rows as a model's heads have them, floats and codes.
MOVES = [
    (128, 16, 16, torch.bfloat16),
    (64, 8, 4, torch.bfloat16),
    (256, 4, 4, torch.float16),
]


def test_it_compiles_for_every_card() -> None:
    given = ragged([63, 40], 0, "plain")
    selecting = [fused.mark_rows, fused.count_digits, fused.mark_pool]
    launches = recorded(selecting, lambda: fused.keep_mask(*given, 30, 20))
    keep = torch.ones(63, device=DEVICE).bool()
    launches = list({launch.kernel: launch for launch in launches}.values())
    moves = []
    for head_dim, k_bits, v_bits, dtype in MOVES:
        rows = layer(63, head_dim, k_bits, v_bits, dtype)
        moves += recorded([fused.move_rows], lambda rows=rows: fused.compact(rows, keep, 63))
    assert {move.constexprs["WITH_SCORES"] for move in moves} == {True, False}
    compiled = compile_all([*launches, *moves])
    assert len(compiled) == (3 + len(moves)) * 5
    for launch, capability, made in compiled:
        assert made.cubin_bytes > 0 and made.shared_bytes <= SHARED_LIMIT[capability], launch
        assert made.spill_bytes <= SPILLS, (launch, capability, made)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["plain", "ties", "one", "masked", "wide"])
def test_on_a_card(kind: str) -> None:
    given = ragged([9000, 0, 1, 4097, 12000], 1, kind, "cuda")
    torch.cuda.set_sync_debug_mode("error")  # nothing may be asked back from the card
    try:
        keep = fused.keep_mask(*given, 8000, 5000)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(keep, plain.keep_mask(*given, 8000, 5000))
    rows = LayerRows(*torch.randn(2, len(keep), 128, device="cuda").bfloat16(), given[1], given[0])
    n_kept = int(keep.sum())
    moved = fused.compact(rows, keep, n_kept)
    for ours, theirs in zip(parts(moved), parts(plain.compact(rows, keep, n_kept)), strict=True):
        assert torch.equal(ours, theirs)
