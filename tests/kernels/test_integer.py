"""Products in whole numbers: as exact as fourteen bits of activations, and never out of range."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import integer
from kernels.linear import int8_codes, linear, pack

pytestmark = pytest.mark.skipif(
    not integer.served(), reason="this processor or torch build has no product of whole numbers"
)
STEP = 1 / (2 * integer.COARSE_STEPS * integer.FINE_STEPS)  # half a fine step, of a row's largest


def codes_and_scales(n_out: int, n_in: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-127, 128, (n_out, n_in), generator=generator, dtype=torch.int8)
    return codes, torch.rand(n_out, generator=generator).bfloat16() + 0.01


def exact(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return x.double() @ codes.double().T * scales.double()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 9), st.integers(1, 300), st.integers(1, 70), st.integers(0, 9), st.floats(-6, 6)
)
def test_an_activation_is_off_by_half_a_fine_step(
    rows: int, n_in: int, n_out: int, seed: int, exponent: float
) -> None:
    codes, scales = codes_and_scales(n_out, n_in, seed)
    x = torch.randn(rows, n_in, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    found = integer.product(x, integer.pack_codes(codes, scales))
    worst = STEP * x.abs().amax(1, keepdim=True) * codes.float().abs().sum(1) * scales.float()
    expected = exact(x, codes, scales)
    rounding = 1e-5 * x.abs().double() @ codes.double().abs().T * scales.double()  # of fp32 results
    assert bool(((found - expected).abs() <= worst + rounding).all())


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extreme_codes_do_not_overflow(sign: float) -> None:
    """The largest products, neighbours of one sign: AVX2 adds two of them in 16 bits."""
    codes = torch.full((48, 512), 127, dtype=torch.int8)
    codes[24:] = -127
    scales = torch.ones(48).bfloat16()
    # Nearly half a step beside the largest: both parts are at their ends.
    x = torch.full((3, 512), sign * 62.4999)
    x[:, 0] = 63.0
    found = integer.product(x, integer.pack_codes(codes, scales))
    torch.testing.assert_close(found.double(), exact(x, codes, scales), rtol=1e-4, atol=1.0)


def test_one_activation_a_thousand_times_the_others() -> None:
    """Rounded once, to seven bits, the others would be nothing."""
    codes, scales = codes_and_scales(64, 256)
    x = torch.randn(1, 256, generator=torch.Generator().manual_seed(1))
    x[0, 17] = 1000.0
    rest = x.clone()
    rest[0, 17] = 0.0
    packed = integer.pack_codes(codes, scales)
    of_rest = integer.product(x, packed) - 1000.0 * codes[:, 17].float() * scales.float()
    error = (of_rest - exact(rest, codes, scales)).norm() / exact(rest, codes, scales).norm()
    assert float(error) < 0.05


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("x", [torch.linspace(-3, 2, 64)[None], torch.zeros(1, 64)])
def test_a_bias_and_what_is_there_come_on_top(x: torch.Tensor, biased: bool, added: bool) -> None:
    """For a row, and for one of zeros, which has no step of its own."""
    codes, scales = codes_and_scales(32, 64)
    packed = integer.pack_codes(codes, scales)
    bias = torch.randn(32, generator=torch.Generator().manual_seed(3)) if biased else None
    before = torch.randn(1, 32, generator=torch.Generator().manual_seed(4))
    place = before.clone() if added else None
    found = integer.product(x, packed, bias=bias, onto=place)
    assert place is None or found is place
    expected = exact(x, codes, scales) + (0 if bias is None else bias)
    expected += before if added else 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0.5)


def test_rows_do_not_share_a_scale() -> None:
    codes, scales = codes_and_scales(32, 64)
    packed = integer.pack_codes(codes, scales)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    x[1] *= 1e6
    together = integer.product(x, packed)
    for row, found in zip(x, together, strict=True):
        torch.testing.assert_close(integer.product(row[None], packed)[0], found)


def test_zeros_stay_zeros_and_what_is_no_number_shows() -> None:
    codes, scales = codes_and_scales(32, 64)
    packed = integer.pack_codes(codes, scales)
    x = torch.zeros(3, 64)
    x[1, 3], x[2, 3] = float("nan"), float("inf")
    found = integer.product(x, packed)
    assert bool((found[0] == 0).all())
    assert not bool(torch.isfinite(found[1:]).any())


def test_no_rows_give_none() -> None:
    codes, scales = codes_and_scales(32, 64)
    assert integer.product(torch.empty(0, 64), integer.pack_codes(codes, scales)).shape == (0, 32)


def test_an_int8_layer_multiplies_so_and_takes_any_width() -> None:
    weight = torch.randn(17, 31, generator=torch.Generator().manual_seed(3))
    packed = pack(weight, "int8")
    assert packed.format == "int8" and packed.nbytes == integer.nbytes(17, 31)
    x = torch.randn(2, 31, generator=torch.Generator().manual_seed(4))
    codes, scales = int8_codes(weight)
    torch.testing.assert_close(
        linear(x, packed).double(), exact(x, codes, scales), rtol=1e-3, atol=1e-3
    )


def test_without_the_operator_the_other_one_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(5))
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(6))
    whole = linear(x, pack(weight, "int8"))
    monkeypatch.setattr(integer, "served", lambda: False)
    packed = pack(weight, "int8")
    assert isinstance(packed.weight, torch.Tensor) and packed.scales is not None
    torch.testing.assert_close(linear(x, packed), whole, rtol=2e-2, atol=5e-2)
    assert pack(torch.randn(17, 24), "int8").format == "plain"
