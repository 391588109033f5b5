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
    assert "reference" in kernels.describe("cuda")
