"""Packed linear layers: the operators against plain torch, and what does not fit is said."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from kernels import integer
from kernels.linear import (
    Format,
    linear,
    pack,
    rounded,
    seconds_per_call,
)

FORMATS: tuple[Format, ...] = ("plain", "fp16", "int8", "int4", "nf4")
HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
HAS_FBGEMM = "fbgemm" in torch.backends.quantized.supported_engines
# Of the result: bf16 rounds inputs and outputs of int4's operator, and of int8's where products in
# whole numbers are not served, each by 2^-9.
INT8 = 5e-4 if integer.served() else 6e-3
TOLERANCE = {"plain": 1e-6, "fp16": 2e-6, "int8": INT8, "int4": 6e-3, "nf4": 2e-6}


# What becomes of 17 outputs of 31 or 24 inputs.
NARROW: tuple[Format, str] = (
    ("int8", "") if integer.served() else ("plain", "inputs in multiples of 16")
)


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def skip_without_operator(chosen: Format) -> None:
    if chosen == "fp16" and not HAS_FBGEMM:
        pytest.skip("this torch build has no fbgemm")
    if chosen == "nf4" and not HAS_BITSANDBYTES:
        pytest.skip("bitsandbytes is not installed")


@pytest.mark.parametrize("chosen", FORMATS)
@pytest.mark.parametrize(("n_out", "n_in"), [(16, 64), (48, 64), (112, 896), (80, 192)])
@pytest.mark.parametrize("n", [1, 2, 5, 33])
@pytest.mark.parametrize("biased", [False, True])
def test_a_packed_layer_is_its_reference(
    chosen: Format, n_out: int, n_in: int, n: int, biased: bool
) -> None:
    skip_without_operator(chosen)
    weight, x = some(n_out, n_in), some(n, n_in, seed=1)
    bias = some(n_out, seed=2) * 9 if biased else None
    packed = pack(weight, chosen, bias=bias)
    assert packed.format == chosen and packed.reason == ""
    expected = x @ rounded(weight, chosen).T + (0 if bias is None else bias)
    found = linear(x, packed)
    assert found.dtype == x.dtype and found.shape == (n, n_out)
    assert relative(found, expected) < TOLERANCE[chosen]


@pytest.mark.parametrize("chosen", FORMATS)
def test_bf16_activations_give_bf16_results(chosen: Format) -> None:
    skip_without_operator(chosen)
    weight, bias = some(48, 64).bfloat16(), some(48, seed=2).bfloat16()
    x = some(3, 64, seed=1).bfloat16()
    found = linear(x, pack(weight, chosen, bias=bias))
    assert found.dtype == torch.bfloat16
    expected = x.float() @ rounded(weight, chosen).T + bias.float()
    assert relative(found.float(), expected) < 1e-2


@pytest.mark.parametrize("chosen", FORMATS)
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_result_can_be_added_to_what_is_there(
    chosen: Format, n: int, biased: bool, dtype: torch.dtype
) -> None:
    skip_without_operator(chosen)
    weight, x = some(48, 64).to(dtype), some(n, 64, seed=1).to(dtype)
    packed = pack(weight, chosen, bias=some(48, seed=2).to(dtype) if biased else None)
    before = 5 * some(n, 48, seed=3).to(dtype)
    place = before.clone()
    assert linear(x, packed, onto=place) is place and place.dtype == dtype
    torch.testing.assert_close(place, before + linear(x, packed), atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("n", [1, 3])
def test_weights_in_bf16_take_activations_in_fp32(n: int) -> None:
    """A matrix that could not be packed stays as it is among others that compute in fp32."""
    weight, x = some(48, 64).bfloat16(), some(n, 64, seed=1)
    found = linear(x, pack(weight, "plain"))
    assert found.dtype == torch.float32
    assert relative(found, x @ weight.float().T) < 1e-2


def test_int8_errs_by_half_a_step_at_most() -> None:
    weight = some(70, 64) * torch.logspace(-4, 3, 70)[:, None]
    step = weight.abs().amax(1, keepdim=True) / 127
    # bf16 rounds the step, by at most 2^-9 of it
    assert bool(((rounded(weight, "int8") - weight).abs() <= 0.502 * step).all())


@pytest.mark.parametrize("group", [32, 64])
def test_int4_errs_by_about_half_a_step_at_most(group: int) -> None:
    weight = some(48, 128) + 0.5
    grouped = weight.reshape(48, -1, group)
    step = (grouped.amax(-1) - grouped.amin(-1)) / 15
    # bf16 rounds zero and step: 8 steps may shift by 8 / 2^9 of one, and zero by as much
    bound = 0.55 * step.repeat_interleave(group, dim=1)
    assert bool(((rounded(weight, "int4", group) - weight).abs() <= bound).all())
    x = some(2, 128, seed=1)
    found = linear(x, pack(weight, "int4", group=group))
    assert relative(found, x @ rounded(weight, "int4", group).T) < TOLERANCE["int4"]


@pytest.mark.parametrize("chosen", ["int8", "int4"])
def test_rows_of_zeros_stay_zeros(chosen: Format) -> None:
    weight = some(16, 32)
    weight[3] = 0.0
    assert bool((rounded(weight, chosen)[3] == 0).all())
    assert bool((linear(some(2, 32), pack(weight, chosen))[:, 3] == 0).all())


@pytest.mark.parametrize(
    ("n_out", "n_in", "wanted", "taken", "words"),
    [
        (97, 64, "int4", "int8", "outputs in multiples of 16"),
        (96, 48, "int4", "int8", "whole groups"),
        (17, 31, "int4", *NARROW),
        (17, 24, "int8", *NARROW),
        (96, 64, "int4", "int4", ""),
        (97, 48, "int8", "int8", ""),
        (16, 96, "nf4", "plain", "multiples of 64"),
    ],
)
def test_what_does_not_fit_is_packed_wider_and_says_so(
    n_out: int, n_in: int, wanted: Format, taken: Format, words: str
) -> None:
    weight, x = some(n_out, n_in), some(3, n_in, seed=1)
    packed = pack(weight, wanted)
    assert packed.format == taken and words in packed.reason
    assert bool(packed.reason) == (wanted != taken)
    assert relative(linear(x, packed), x @ rounded(weight, taken).T) < TOLERANCE[taken]


def test_a_weight_beyond_fp16_stays_plain() -> None:
    skip_without_operator("fp16")
    weight = some(16, 32)
    weight[0, 0] = -7e4
    packed = pack(weight, "fp16")
    assert packed.format == "plain" and "largest weight" in packed.reason


def test_plain_shares_and_the_others_are_smaller() -> None:
    weight = some(64, 256)
    assert pack(weight, "plain").weight is weight
    sizes = {chosen: pack(weight, chosen).nbytes for chosen in FORMATS if chosen != "nf4"}
    assert sizes["plain"] == 4 * 64 * 256
    assert sizes["int8"] == (integer.nbytes(64, 256) if integer.served() else 64 * 256 + 2 * 64)
    assert sizes["int4"] == 64 * 256 // 2 + 64 * (256 // 32) * 4
    if HAS_BITSANDBYTES:
        assert pack(weight, "nf4").nbytes == 64 * 256 // 2 + 64 * (256 // 64) * 4
    if HAS_FBGEMM:
        assert sizes["fp16"] == 2 * 64 * 256


def test_a_call_takes_time() -> None:
    assert 0 < seconds_per_call("int8", n_out=64, n_in=64, copies=2, seconds=0.001) < 1


def test_without_bitsandbytes_nf4_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    packed = pack(some(16, 64), "nf4")
    assert packed.format == "plain" and "not installed" in packed.reason


def test_nf4_is_closer_than_even_steps_would_be() -> None:
    if not HAS_BITSANDBYTES:
        pytest.skip("bitsandbytes is not installed")
    weight = some(64, 256)
    assert relative(rounded(weight, "nf4"), weight) < 0.1


@pytest.mark.parametrize(("n_out", "n_threads"), [(96, 2), (96, 24), (96, 1), (63, 2), (96, 40)])
@pytest.mark.parametrize("biased", [False, True])
def test_one_row_of_fp32_goes_in_bands_that_threads_share(
    n_out: int, n_threads: int, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MKL gives a matrix and one row to one thread; 63 rows make no bands, 96 make 32."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    monkeypatch.setattr("kernels.linear._HAS_MKL", True)
    bands: list[tuple[int, ...]] = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: bands.append(tuple(a.shape)) or bmm(a, b))
    weight, x = some(n_out, 64), some(1, 64, seed=1)
    bias = some(n_out, seed=2) if biased else None
    expected = x @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(linear(x, pack(weight, "plain", bias=bias)), expected)
    assert bands == ([(32, 3, 64)] if n_out == 96 and 1 < n_threads <= 32 else [])
