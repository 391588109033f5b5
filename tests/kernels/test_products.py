"""Attention as matrix products: as aten's kernel where logits are tame, in fp32 where not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import cpu, products, reference

BF16 = torch.bfloat16


def given(n_q: int, n_k: int, head_dim: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Two heads; keys with a bias, as models have: all logits of a query are large together."""
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(2, n_q, head_dim, generator=draw) * 2
    k = torch.randn(2, n_k, head_dim, generator=draw) + 3
    v = torch.randn(2, n_k, head_dim, generator=draw)
    return q.to(BF16), k.to(BF16), v.to(BF16)


def given_group(
    n: int, head_dim: int = 64, n_kv_heads: int = 2, group: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of `group` heads for each head of keys and values."""
    q, k, v = given(n * group, n, head_dim)
    q, k, v = (x[:n_kv_heads] for x in (q, k, v))
    return q.reshape(n_kv_heads * group, n, head_dim), k, v


def assert_close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Within what bf16 logits near the top leave; outputs are means of values of about one."""
    out, lse = found
    gap = (out.float() - expected[0].float()).pow(2).mean().sqrt()
    assert gap < 4e-3 and out.dtype == BF16
    torch.testing.assert_close(out.float(), expected[0].float(), atol=0.06, rtol=0.02)
    torch.testing.assert_close(lse, expected[1], atol=0.05, rtol=1e-3)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize(("n_q", "n_k"), [(512, 512), (513, 1001), (2100, 5000), (600, 3)])
def test_as_in_plain_torch(n_q: int, n_k: int, head_dim: int) -> None:
    q, k, v = given(n_q, n_k, head_dim)
    found = products.attend(q, k, v, head_dim**-0.5)
    assert_close(found, reference.attend(q, k, v, head_dim**-0.5))


def test_logits_in_the_hundreds_keep_their_digits() -> None:
    """Rounded to bf16 as they are they would be off by one half, and the weights by a third."""
    q, k, v = given(512, 700, 64)
    k = k * 8  # a bias of 24 in each of 64 dimensions
    logits = q.float() @ k.float().transpose(1, 2) / 8
    assert logits.abs().max() > 200
    found = products.attend(q, k, v, 0.125)
    out, expected = found[0].float(), reference.attend(q, k, v, 0.125)[0].float()
    plain = torch.softmax(logits.to(BF16).float(), -1) @ v.float()
    wrong, error = ((x - expected).pow(2).mean().sqrt() for x in (plain, out))
    assert error < wrong / 3, (error, wrong)


def test_logits_far_below_zero_are_not_lost_beside_the_padding() -> None:
    q, k, v = given(512, 300, 64)
    q, k = q.abs(), k * 0.5 - 12
    found = products.attend(q, k, v, 0.125)
    expected = reference.attend(q, k, v, 0.125)
    assert expected[1].max() < -80
    assert_close(found, expected)


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("n", [1, 255, 512, 513, 1024, 2500])
@pytest.mark.parametrize(("n_kv_heads", "group"), [(1, 1), (2, 3)])
def test_causal_as_in_plain_torch(n: int, head_dim: int, n_kv_heads: int, group: int) -> None:
    q, k, v = given_group(n, head_dim, n_kv_heads, group)
    found = products.attend_causal(q, k, v, head_dim**-0.5)
    assert found[0].shape == q.shape and found[1].shape == q.shape[:2]
    assert_close(found, reference.attend_causal(q, k, v, head_dim**-0.5))


def test_what_comes_later_changes_no_bit_of_what_came_before() -> None:
    """Not even keys whose weights would be infinite; the queries there see them as any others."""
    q, k, v = given_group(1024)
    q[:, 700:] = 0
    before = products.attend_causal(q, k, v, 0.125)
    k[:, 700:], v[:, 700:] = q[::3, 699:700] * 1e4, 1e4
    after = products.attend_causal(q, k, v, 0.125)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:, :700], new[:, :700])


class Products(TorchDispatchMode):
    """Notes the shapes of all matrix products in bf16: of fp32's nothing is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            a, b = args[-2:]
            if a.dtype == BF16:
                self.shapes.add((*a.shape, *b.shape))
        return func(*args, **(kwargs or {}))


def test_heads_of_many_lengths_are_products_of_few_shapes() -> None:
    """A megabyte is kept for each shape that was seen, and heads differ with every chunk."""
    with Products() as seen:
        for n_k in (*range(300, 1000, 37), *range(2000, 9000, 311)):
            products.attend(*given(1024, n_k, 64), 0.125)
    assert 8 <= len(seen.shapes) <= 9, sorted(seen.shapes)


def test_chunks_of_many_lengths_see_few_more() -> None:
    with Products() as seen:
        for n in range(1024, 5000, 256):
            products.attend_causal(*given_group(n), 0.125)
    assert len(seen.shapes) <= 36, sorted(seen.shapes)


def test_what_no_sample_shows_is_still_weighed() -> None:
    q, k, v = given(512, 640, 64)
    k[:, 13] = 9.0  # no multiple of the sampling step
    found = products.attend(q, k, v, 0.125)
    assert_close(found, reference.attend(q, k, v, 0.125))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("twos", [3, 12, 31, 62, 100, 125])
def test_what_stands_far_above_the_sample_keeps_its_digits(twos: int, causal: bool) -> None:
    """Two keys outside the sample against each other, with opposite values: half a two apart."""
    q, k, v = torch.zeros(1, 600, 64), torch.zeros(1, 600, 64), torch.zeros(1, 600, 64)
    q[..., 0] = torch.linspace(0.9, 1, 600)
    k[0, 13, 0], k[0, 27, 0] = ((twos - x) * 8 * math.log(2) for x in (0.0, 0.5))
    v[0, 13], v[0, 27] = 1.0, -1.0
    given = [x.to(BF16) for x in (q, k, v)]
    name = "attend_causal" if causal else "attend"
    found = getattr(products, name)(*given, 0.125)
    out, lse = getattr(reference, name)(*(x.float() for x in given), 0.125)
    assert (found[0].float() - out).abs().max() < 0.02
    assert (found[1] - lse).abs().max() < 0.02


@pytest.mark.parametrize("causal", [False, True])
def test_a_weight_that_cannot_be_held_is_computed_once_more(causal: bool) -> None:
    q, k, v = given_group(600)
    k[:, 13] = q[::3, 550] * 40  # far above everything sampled
    if causal:
        found, expected = (
            products.attend_causal(q, k, v, 0.125),
            reference.attend_causal(q, k, v, 0.125),
        )
    else:
        q = q[::3]
        found, expected = products.attend(q, k, v, 0.125), reference.attend(q, k, v, 0.125)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.float(), theirs.float(), atol=0.03, rtol=0.02)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_so_large_that_the_sampled_largest_is_rounded_far_off(
    sign: int, causal: bool
) -> None:
    """In bf16 it is above all logits by hundreds, so that no weight is left."""
    q, k, v = torch.zeros(1, 512, 64), torch.zeros(1, 512, 64), torch.randn(1, 512, 64)
    q[..., 0], k[..., 0] = torch.linspace(0.5, 1, 512), sign * 3.2e5
    q[..., 2], k[..., 2] = 1, torch.linspace(-8, 8, 512)
    given = [x.to(BF16) for x in (q, k, v)]
    name = "attend_causal" if causal else "attend"
    found = getattr(products, name)(*given, 0.125)
    expected = getattr(reference, name)(*given, 0.125)
    assert (found[0].float() - expected[0].float()).abs().max() < 0.03
    assert (found[1] - expected[1]).abs().max() < 0.5  # of tens of thousands


@pytest.mark.parametrize("causal", [False, True])
def test_lost_queries_are_read_right_however_keys_lie_in_memory(causal: bool) -> None:
    q, k, v = given_group(600, group=1)
    k[:, 13] = q[:, 550] * 40
    apart = [x.repeat_interleave(2, -1)[..., ::2] for x in (q, k, v)]
    attend = products.attend_causal if causal else products.attend
    for mine, theirs in zip(attend(*apart, 0.125), attend(q, k, v, 0.125), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("later", [math.nan, 3e38])
def test_a_later_key_of_any_kind_leaves_lost_queries_before_it_alone(later: float) -> None:
    q, k, v = given_group(600, group=1)
    k[:, 258] *= 200  # outside the sample
    before = products.attend_causal(q, k, v, 0.125)
    k[:, 400] = later
    after = products.attend_causal(q, k, v, 0.125)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:, :400], new[:, :400])


def test_values_near_the_end_of_the_range_stay_finite() -> None:
    q, k, v = given(512, 640, 64)
    k[:, 13], v = q[:, 5] / 4, torch.full_like(v, 1e36)
    assert products.attend(q, k, v, 0.125)[0].isfinite().all()


@pytest.mark.parametrize("causal", [False, True])
def test_what_is_no_number_stays_none_and_touches_nothing_before_it(causal: bool) -> None:
    q, k, v = given_group(600)
    q[0, 3] = math.nan
    found = (
        products.attend_causal(q, k, v, 0.125) if causal else products.attend(q[::3], k, v, 0.125)
    )
    assert found[0][0, 3].isnan().all() and found[1][0, 3].isnan()
    assert found[0].isnan().sum() == 64 and found[1].isnan().sum() == 1


def test_a_sum_that_is_held_beside_values_that_are_not_is_computed_once_more() -> None:
    """A weight of 2 ** 126 is a number, and ten times it, in bf16, is not."""
    q, k, v = torch.zeros(1, 512, 64), torch.zeros(1, 512, 64), torch.full((1, 512, 64), 10.0)
    q[:, :, 0], k[:, 13, 0] = 1.0, 126 * 8 * math.log(2)
    given = [x.to(BF16) for x in (q, k, v)]
    found = products.attend(*given, 0.125)
    assert_close(found, reference.attend(*given, 0.125))


@pytest.mark.parametrize(
    ("dtype", "n_q", "n_k", "asked"),
    [
        (BF16, 512, 512, True),
        (BF16, 511, 4096, False),
        (BF16, 512, 3, True),
        (torch.float32, 512, 512, False),
    ],
)
@pytest.mark.parametrize("name", ["attend", "attend_causal"])
def test_only_long_queries_in_bf16_take_this_way(
    name: str, dtype: torch.dtype, n_q: int, n_k: int, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(*given: object) -> None:
        calls.append(given)

    monkeypatch.setattr(cpu, "products_win", lambda: True)
    monkeypatch.setattr(products, name, counted)
    parts = given(n_q, n_k if name == "attend" else n_q, 64)
    getattr(cpu, name)(*(x.to(dtype) for x in parts), 0.125)
    assert bool(calls) is asked
