"""Every backend against the plain reference, at awkward sizes, in every served number format."""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels import reference

SIZES = [(1, 1), (1, 257), (7, 63), (63, 257), (257, 1)]


def inputs(n_q: int, n_k: int, dim: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(n_q * 1000 + n_k)
    shapes = ((2, n_q, dim), (2, n_k, dim), (2, n_k, dim))
    return [torch.randn(s, generator=generator).to(dtype) for s in shapes]


@pytest.mark.parametrize(("n_q", "n_k"), SIZES)
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_attend(n_q: int, n_k: int, dim: int, dtype: torch.dtype, tolerance: float) -> None:
    q, k, v = inputs(n_q, n_k, dim, dtype)
    out, lse = kernels.attend(q, k, v, 0.1)
    expected, expected_lse = reference.attend(q, k, v, 0.1)
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse, expected_lse, atol=tolerance, rtol=tolerance)
    assert out.dtype == dtype and lse.dtype == torch.float32


@pytest.mark.parametrize("n", [1, 2, 63, 257])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_attend_causal(n: int, dtype: torch.dtype, tolerance: float) -> None:
    q, k, v = inputs(n, n, 64, dtype)
    out, lse = kernels.attend_causal(q, k, v, 0.1)
    expected, expected_lse = reference.attend_causal(q, k, v, 0.1)
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse, expected_lse, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("n", [1, 63, 257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_up_to_a_place_is_the_attention_over_the_keys_before_it(n: int, dtype: torch.dtype) -> None:
    q, k, v = inputs(7, 257, 64, dtype)
    found = kernels.attend_up_to(q, k, v, torch.tensor([n - 1]), 0.1)
    expected = reference.attend(q, k[:, :n], v[:, :n], 0.1)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_two_attentions_over_nothing_are_one() -> None:
    out, nothing = torch.zeros(2, 3, 8), torch.full((2, 3), -torch.inf)
    merged, lse = kernels.merge(out, nothing, out, nothing)
    assert torch.equal(merged, out) and torch.equal(lse, nothing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_weighs_by_the_sums_however_far_apart_they_are(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 6, 8, generator=generator).to(dtype) for _ in range(2))
    lse_a = torch.tensor([0.0, 3.0, -80.0, 300.0, 0.0, -float("inf")]).expand(2, 6)
    lse_b = torch.tensor([0.0, 1.0, 90.0, -20.0, -float("inf"), 2.0]).expand(2, 6)
    out, lse = kernels.merge(a, lse_a, b, lse_b)
    exact = torch.logaddexp(lse_a.double(), lse_b.double())
    parts = [
        (x.double(), (y.double() - exact).exp()[..., None]) for x, y in ((a, lse_a), (b, lse_b))
    ]
    expected = parts[0][0] * parts[0][1] + parts[1][0] * parts[1][1]
    assert out.dtype == dtype
    close = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), expected, atol=close, rtol=close)
    torch.testing.assert_close(lse.double(), exact, atol=1e-5, rtol=1e-6)
    assert torch.equal(out[:, 4], a[:, 4]) and torch.equal(out[:, 5], b[:, 5])


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("group", [1, 3, 7, 8])
def test_a_group_of_queries_shares_its_keys(group: int, head_dim: int) -> None:
    q, k, v = inputs(63, 63, head_dim, torch.float32)
    many = torch.cat([q * (1 + n) for n in range(group)]).unflatten(0, (group, -1))
    many = many.transpose(0, 1).flatten(0, 1)  # the group's queries side by side
    out, lse = kernels.attend_causal(many, k, v, 0.1)
    for head in range(len(many)):
        own = slice(head // group, head // group + 1)
        plain, sums = reference.attend_causal(many[head : head + 1], k[own], v[own], 0.1)
        torch.testing.assert_close(out[head], plain[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(lse[head], sums[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("split", [1, 100, 256])
def test_merged_halves_equal_the_whole(split: int) -> None:
    q, k, v = inputs(63, 257, 64, torch.float32)
    whole, lse = reference.attend(q, k, v, 0.1)
    left = kernels.attend(q, k[:, :split], v[:, :split], 0.1)
    right = kernels.attend(q, k[:, split:], v[:, split:], 0.1)
    out, merged_lse = kernels.merge(*left, *right)
    torch.testing.assert_close(out, whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(merged_lse, lse, atol=1e-5, rtol=1e-4)


def test_mass_adds_up_to_the_number_of_queries() -> None:
    q, k, v = inputs(63, 63, 64, torch.float32)
    _, lse = reference.attend_causal(q, k, v, 0.1)
    mass = kernels.key_mass(q, k, lse, 0.1, causal=True)
    torch.testing.assert_close(mass.sum(-1), torch.full((2,), 63.0), atol=1e-3, rtol=1e-4)


def test_the_backend_can_be_forced_and_is_named() -> None:
    q = torch.zeros(1, 1, 8)
    assert kernels.backend_for(q) == "cpu"
    assert kernels.backend_for(q.half()) == "reference", "never fp16 on a CPU"
    with kernels.force("reference"):
        assert kernels.backend_for(q) == "reference"
    assert kernels.backend_for(q) == "cpu"
    assert "log-sum-exp" in kernels.describe("cpu")
    if not torch.cuda.is_available():
        assert "reference" in kernels.describe("cuda")
