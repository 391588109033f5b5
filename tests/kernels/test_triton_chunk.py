"""Chunk attention: the plain version against one masked softmax, the kernel against the plain one.

Without a card the kernel is interpreted (see tests/kernels/aot.py), where bf16 is multiplied in
fp32; on a card the same tests run on it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kernels.chunk import History
from kernels.chunk import attend_chunk as plain
from tests.kernels.aot import SHARED_LIMIT, compile_all, interpret_without_gpu, recorded
from tests.kernels.poison import poisoned_memory

DEVICE = interpret_without_gpu()

from kernels import triton_chunk as fused  # noqa: E402 - after it is known what Triton does

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
CLOSE = {F32: 2e-5, F16: 4e-3, BF16: 3e-2}


class Case(NamedTuple):
    """One launch; `past` is the history's length per KV head, None for no history at all."""

    head_dim: int
    n: int
    group: int
    dtype: torch.dtype
    past: tuple[int, ...] | None


class Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    history: History | None


def inputs(case: Case, device: str = DEVICE) -> Inputs:
    generator = torch.Generator().manual_seed(case.n)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.dtype).to(device)

    n_kv_heads = 2 if case.past is None else len(case.past)
    q = draw(n_kv_heads * case.group, case.n, case.head_dim)
    k, v = draw(2, n_kv_heads, case.n, case.head_dim)
    if case.past is None:
        return Inputs(q, k, v, None)
    keys, values = draw(2, sum(case.past), case.head_dim)
    offsets = torch.tensor((0, *case.past)).cumsum(0).to(torch.int32).to(device)
    return Inputs(q, k, v, History(keys, values, offsets))


def assert_same(case: Case, given: Inputs, close: float | None = None) -> None:
    with poisoned_memory() as memory:
        out, lse = fused.attend_chunk(*given, case.head_dim**-0.5)
    assert len(memory) == 2 and not any(bool(x.isnan().any()) for x in memory), "left unwritten"
    expected, expected_lse = plain(*given, case.head_dim**-0.5)
    close = CLOSE[case.dtype] if close is None else close
    torch.testing.assert_close(out, expected, atol=close, rtol=close)
    torch.testing.assert_close(lse, expected_lse, atol=close, rtol=close)


def test_the_plain_version_is_one_softmax_under_a_mask() -> None:
    past = (5, 0, 9)
    q, k, v, history = inputs(Case(16, 7, 2, F32, past), "cpu")
    assert history is not None
    out, lse = plain(q, k, v, history, 0.3)
    assert out.shape == q.shape and lse.shape == (6, 7)
    for head in range(6):
        kv_head = head // 2
        rows = slice(int(history.offsets[kv_head]), int(history.offsets[kv_head + 1]))
        keys = torch.cat([history.keys[rows], k[kv_head]])
        values = torch.cat([history.values[rows], v[kv_head]])
        hidden = torch.ones(7, len(keys), dtype=torch.bool).triu(past[kv_head] + 1)
        logits = (q[head] @ keys.T * 0.3).masked_fill(hidden, -torch.inf)
        torch.testing.assert_close(out[head], logits.softmax(-1) @ values)
        torch.testing.assert_close(lse[head], logits.logsumexp(-1))


@pytest.mark.parametrize(
    "case",
    [
        Case(64, 1, 1, F32, None),
        Case(64, 257, 2, F16, (0, 1)),
        Case(128, 63, 8, BF16, (63,)),
        Case(128, 130, 3, F16, None),
        Case(96, 65, 1, F32, (257, 0, 64)),
        Case(96, 129, 1, BF16, (3,)),
        Case(256, 66, 4, F16, (63, 257)),
        Case(80, 33, 2, F32, (1, 2)),
        Case(64, 63, 7, BF16, (257, 1)),
        Case(128, 63, 6, F16, (63,)),
        Case(256, 63, 5, BF16, (1,)),
    ],
    ids=str,
)
def test_as_in_plain_torch(case: Case) -> None:
    assert_same(case, inputs(case))


def test_an_extreme_logit_takes_all_the_weight() -> None:
    case = Case(64, 70, 2, F32, (40,))
    q, k, v, history = inputs(case)
    for sign in (1.0, -1.0):
        # logits in the thousands: fp32 leaves them four digits behind the point
        assert_same(case, Inputs(q * 200.0 * sign, k, v, history), close=1e-3)


def test_queries_and_keys_as_a_model_hands_them_over() -> None:
    """[n, heads, head_dim] transposed: the strides are those of another layout."""
    case = Case(64, 33, 2, F32, (20, 30))
    q, k, v, history = inputs(case)
    q, k, v = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v))
    assert not q.is_contiguous()
    assert_same(case, Inputs(q, k, v, history))


def test_shapes_that_cannot_be_served_are_refused() -> None:
    q, k, v, history = inputs(Case(64, 5, 2, F32, (3, 4)))
    assert history is not None
    for wrong, word in (
        ((q[:3], k, v, history), "do not go with"),
        ((q, k[:, :4], v[:, :4], history), "do not go with"),
        ((q, k, v, replace(history, offsets=history.offsets[:2])), "history of 1 heads"),
        ((q, k, v, replace(history, keys=history.keys.T.contiguous().T)), "history's keys"),
        ((q, k, v, replace(history, values=history.values[:, :32])), "history's values"),
    ):
        with pytest.raises(ValueError, match=word):
            fused.attend_chunk(*wrong, 0.1)


def test_it_compiles_for_every_card_within_its_means() -> None:
    cases = [
        Case(64, 9, 4, F16, (5, 6)),
        Case(128, 9, 4, BF16, (5, 6)),
        Case(256, 9, 4, BF16, (5, 6)),
        Case(64, 9, 7, BF16, (5, 6)),  # the default model
        Case(64, 9, 7, BF16, None),
        Case(96, 9, 1, F16, (5, 6)),
        Case(128, 9, 4, F16, None),
    ]
    launches = [
        launch
        for case in cases
        for launch in recorded([fused.attend_block], lambda: fused.attend_chunk(*inputs(case), 0.1))
    ]
    compiled = compile_all(launches)
    assert len(compiled) == 5 * len(cases)
    for launch, capability, made in compiled:
        assert made.cubin_bytes > 0 and made.registers > 0
        assert made.shared_bytes <= SHARED_LIMIT[capability], (launch, capability, made)
        assert made.spill_bytes == 0, (launch, capability, made)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("past", [None, (6000, 4001, 0, 1)])
def test_at_real_sizes(past: tuple[int, ...] | None, head_dim: int, dtype: torch.dtype) -> None:
    case = Case(head_dim, 1023, 4, dtype, past)
    assert_same(case, inputs(case))
