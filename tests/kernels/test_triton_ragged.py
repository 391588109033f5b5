"""The ragged attention kernel against plain torch, and compiled for every card it is meant for.

Without a card the kernels are interpreted (see tests/kernels/aot.py), where bf16 is multiplied in
fp32; on a card the same tests run on it.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor

from kernels.quantise import Codes, Frame, quantise
from kernels.ragged import RaggedEntries
from kernels.ragged import attend_ragged as plain
from tests.kernels.aot import SHARED_LIMIT, compile_all, interpret_without_gpu, recorded
from tests.kernels.poison import poisoned_memory

DEVICE = interpret_without_gpu()

from kernels import triton_ragged as fused  # noqa: E402 - after it is known what Triton does

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
# Keys and weights are rounded to the queries' type before they are multiplied, the output after.
CLOSE = {F32: 2e-5, F16: 4e-3, BF16: 3e-2}
LENGTHS = (0, 1, 63, 257)
# Bytes a thread stores and loads. Floats of up to 128 channels spill nothing.
SPILLS_AT_MOST = 224


class Case(NamedTuple):
    """One launch; keys and values in so many bits, 16 standing for floats of the type."""

    head_dim: int
    rows: int
    key_bits: int
    value_bits: int
    dtype: torch.dtype
    n_splits: int
    compact: bool = False
    lengths: tuple[int, ...] = LENGTHS


def rows_of(x: Tensor, bits: int, dtype: torch.dtype) -> Tensor | Codes:
    return x.to(dtype) if bits == 16 else quantise(x, bits)


def inputs(case: Case, seed: int = 0, device: str = DEVICE) -> tuple[Tensor, RaggedEntries]:
    """Queries and entries, drawn on the CPU; positions ascend in a head and reach 131,071."""
    generator = torch.Generator().manual_seed(seed)
    n_heads, total = len(case.lengths), sum(case.lengths)
    keys, values = torch.randn(2, total, case.head_dim, generator=generator)
    frame = Frame(
        torch.randn(n_heads, case.head_dim, generator=generator),
        torch.rand(n_heads, case.head_dim, generator=generator) + 0.5,
    )
    offsets = torch.tensor((0, *case.lengths)).cumsum(0).to(torch.int32)
    positions = torch.cat(
        [(131071 - torch.randperm(4096, generator=generator)[:n]).msort() for n in case.lengths]
    )
    entries = RaggedEntries(
        rows_of(keys, case.key_bits, case.dtype),
        rows_of(values, case.value_bits, case.dtype),
        offsets,
        None if case.compact else positions.to(torch.int32),
        1e4 ** (-torch.arange(0, case.head_dim, 2) / case.head_dim),
        1.25,
        None if case.key_bits == 16 else frame,
    )
    q = torch.randn(n_heads, case.rows, case.head_dim, generator=generator).to(case.dtype)
    return q.to(device), moved(entries, device)


def moved(entries: RaggedEntries, device: str) -> RaggedEntries:
    """The same entries, all tensors on the device."""

    def move(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.to(device)
        if isinstance(x, (Codes, Frame)):
            return replace(x, **{name: move(part) for name, part in vars(x).items()})
        return x

    return replace(entries, **{name: move(part) for name, part in vars(entries).items()})


def assert_same(case: Case, q: Tensor, entries: RaggedEntries) -> None:
    scale = case.head_dim**-0.5
    with poisoned_memory() as given:
        out, lse = fused.attend_ragged(q, entries, scale, n_splits=case.n_splits)
    assert not any(bool(tensor.isnan().any()) for tensor in given), "left unwritten"
    expected, expected_lse = plain(q, entries, scale)
    close = CLOSE[case.dtype]
    torch.testing.assert_close(out, expected, atol=close, rtol=close)
    torch.testing.assert_close(lse, expected_lse, atol=close, rtol=close)
    empty = [head for head, length in enumerate(case.lengths) if length == 0]
    assert not bool(out[empty].any()) and bool((lse[empty] == -torch.inf).all())


@pytest.mark.parametrize(
    "case",
    [
        Case(64, 1, 16, 16, F32, 1),
        Case(64, 8, 4, 4, F32, 2, compact=True),
        Case(128, 2, 16, 16, BF16, 7),
        Case(128, 5, 8, 8, F16, 1),
        Case(128, 3, 8, 4, F32, 7),
        Case(96, 7, 2, 2, F32, 2),
        Case(96, 4, 16, 16, F16, 2, compact=True),
        Case(256, 6, 4, 4, F32, 2),
        Case(80, 3, 8, 2, F32, 1, compact=True),
        Case(192, 1, 4, 8, F32, 2),
        Case(64, 41, 8, 4, BF16, 2),
        Case(128, 40, 4, 4, F16, 1, lengths=(70, 0)),
        Case(64, 2, 8, 8, F32, 2, lengths=(0, 0)),
        Case(96, 6, 8, 4, BF16, 2),
        Case(256, 7, 8, 8, F16, 2),
    ],
    ids=str,
)
def test_as_in_plain_torch(case: Case) -> None:
    assert_same(case, *inputs(case))


def test_keys_are_turned_exactly_at_the_end_of_a_long_document() -> None:
    """One entry's logit is all there is to see; positions of seven digits would be off by 1e-2."""
    case = Case(64, 1, 16, 16, F32, 1, lengths=(1,) * 6)
    q, entries = inputs(case)
    positions = torch.tensor([0, 3, 4, 77777, 131070, 131071], device=DEVICE)
    entries = replace(entries, positions=positions.to(torch.int32))
    _, lse = fused.attend_ragged(q, entries, 1.0, n_splits=1)
    torch.testing.assert_close(lse, plain(q, entries, 1.0)[1], atol=1e-4, rtol=0)


def test_an_extreme_logit_takes_all_the_weight() -> None:
    case = Case(64, 2, 16, 16, F32, 2, compact=True, lengths=(130,))
    q, entries = inputs(case)
    for sign in (1.0, -1.0):
        assert_same(case, q * 200.0 * sign, entries)


def test_the_longest_head_decides_the_splits_and_nothing_else() -> None:
    q, entries = inputs(Case(64, 1, 16, 16, F32, 1))
    with mock.patch.object(fused, "_n_multiprocessors", return_value=6):
        results = [fused.attend_ragged(q, entries, 0.1, longest=n) for n in (1, 257, 10**6)]
        assert [fused.splits_for(n, 4, q.device) for n in (0, 1, 257, 10**6)] == [1, 1, 2, 3]
    with mock.patch.object(fused, "_n_multiprocessors", return_value=132):
        assert fused.splits_for(10**6, 1, q.device) == fused.SPLITS_AT_MOST
    for out, lse in results[1:]:
        torch.testing.assert_close(out, results[0][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lse, results[0][1], atol=1e-5, rtol=1e-5)


def test_a_launch_asks_nothing_of_the_device() -> None:
    """Whoever reads a tensor from Python waits for the card."""
    q, entries = inputs(Case(128, 1, 4, 4, BF16, 1))
    readers = ("item", "tolist", "cpu", "numpy", "__int__", "__bool__", "__float__", "__index__")

    def launch() -> None:
        for name in readers:
            asked = AssertionError(f"{name} of a tensor")
            undo.enter_context(mock.patch.object(Tensor, name, side_effect=asked, create=True))
        fused.attend_ragged(q, entries, 0.1)
        fused.attend_ragged(q, entries, 0.1, longest=10**5)

    with contextlib.ExitStack() as undo:
        assert len(recorded([fused.attend_stretch], launch)) == 2


def test_layouts_that_cannot_be_served_are_refused() -> None:
    q, entries = inputs(Case(64, 1, 16, 16, F32, 1))
    assert isinstance(entries.keys, Tensor) and entries.positions is not None
    for wrong, word in (
        (replace(entries, keys=entries.keys.T.contiguous().T), "keys are not contiguous"),
        (replace(entries, values=entries.values[:, :32]), "values are rows of 32"),
        (replace(entries, inv_freq=entries.inv_freq[:16]), "16 frequencies"),
        (replace(entries, offsets=entries.offsets[:-1]), "entries of 3"),
        (replace(entries, positions=entries.positions.repeat(2)[::2]), "positions are not"),
    ):
        with pytest.raises(ValueError, match=word):
            fused.attend_ragged(q, wrong, 0.1)


def test_it_compiles_for_every_card_within_its_means() -> None:
    cases = [
        Case(64, 7, 16, 16, F16, 4),
        Case(64, 7, 2, 2, BF16, 4, compact=True),
        Case(64, 7, 8, 4, BF16, 4),  # the default model, as documents are kept
        Case(96, 1, 8, 4, BF16, 4),
        Case(128, 64, 16, 16, BF16, 4),
        Case(128, 4, 8, 4, BF16, 4),
        Case(256, 8, 16, 16, BF16, 4),
        Case(256, 8, 4, 4, BF16, 4),
    ]
    launches = []
    for case in cases:
        q, entries = inputs(case)
        attend, merge = recorded(
            [fused.attend_stretch, fused.merge_stretches],
            lambda: fused.attend_ragged(q, entries, 0.1, n_splits=case.n_splits),
        )
        launches.append(attend)
    launches.append(merge)
    compiled = compile_all(launches)
    assert len(compiled) == 5 * (len(cases) + 1)
    for launch, capability, made in compiled:
        assert made.cubin_bytes > 0 and made.registers > 0
        assert made.shared_bytes <= SHARED_LIMIT[capability], (launch, capability, made)
        wide = launch.constexprs["HEAD_DIM"] > 128 or launch.signature.get("key_ptr") == "*u8"
        assert made.spill_bytes <= wide * SPILLS_AT_MOST, (launch, capability, made)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("bits", [(16, 16), (8, 8), (8, 4), (4, 4), (2, 2)])
@pytest.mark.parametrize(("head_dim", "rows"), [(64, 7), (128, 4), (128, 64), (256, 8)])
def test_at_real_sizes(head_dim: int, rows: int, bits: tuple[int, int], dtype: torch.dtype) -> None:
    lengths = (4096, 1, 0, 2500, 4000, 3000, 63, 4095)
    case = Case(head_dim, rows, *bits, dtype, 8, lengths=lengths)
    assert_same(case, *inputs(case))


@pytest.mark.gpu
def test_rows_beyond_two_to_the_31_elements() -> None:
    """Needs 9 GiB: a head at the end of 16.8 million rows of 128."""
    if torch.cuda.mem_get_info()[0] < 9 * 2**30:
        pytest.skip("needs 9 GiB of free memory on the card")
    case = Case(128, 4, 16, 16, BF16, 2, lengths=(300,))
    q, entries = inputs(case)
    assert isinstance(entries.keys, Tensor) and isinstance(entries.values, Tensor)
    n = 2**24 + 300
    far = {name: torch.zeros((n, 128), dtype=BF16, device=DEVICE) for name in ("keys", "values")}
    far["keys"][-300:], far["values"][-300:] = entries.keys, entries.values
    compact = replace(entries, positions=None)
    behind = replace(compact, **far, offsets=entries.offsets + (n - 300))
    out, lse = fused.attend_ragged(q, behind, 0.1, n_splits=2)
    expected, expected_lse = plain(q, compact, 0.1)
    torch.testing.assert_close(out, expected, atol=CLOSE[BF16], rtol=CLOSE[BF16])
    torch.testing.assert_close(lse, expected_lse, atol=CLOSE[BF16], rtol=CLOSE[BF16])
