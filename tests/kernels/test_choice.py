"""Which kernels a device gets, and that the reason is told."""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels.choice import backend_of, for_card


@pytest.mark.parametrize(
    ("capability", "triton", "name", "said"),
    [
        ((8, 6), True, "triton", "8.6"),
        ((12, 0), True, "triton", "12.0"),
        ((7, 5), True, "reference", "does not compile for compute capability 7.5"),
        ((8, 9), False, "reference", "not installed"),
    ],
)
def test_cards(capability: tuple[int, int], triton: bool, name: str, said: str) -> None:
    backend = for_card(*capability, triton)
    assert backend.name == name and said in backend.reason


def test_other_devices() -> None:
    assert backend_of("mps").name == "reference" and "mps" in backend_of("mps").reason
    assert kernels.describe("cpu").startswith("cpu: ")
    assert kernels.backend_for(torch.zeros(1)) == "cpu"
    assert kernels.backend_for(torch.zeros(1, dtype=torch.float16)) == "reference"
    with kernels.force("triton"):
        assert kernels.fuses(torch.device("cpu"))
    assert not kernels.fuses(torch.device("cpu"))
