"""Which kernels a device gets, and that the reason is told."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

import kernels
from kernels import choice
from kernels.choice import backend_of, for_card


@pytest.mark.parametrize(
    ("capability", "problem", "name", "said"),
    [
        ((8, 6), None, "triton", "8.6"),
        ((12, 0), None, "triton", "12.0"),
        ((7, 5), None, "reference", "does not compile for compute capability 7.5"),
        ((8, 9), "Triton is not installed", "reference", "8.9: Triton is not installed"),
    ],
)
def test_cards(capability: tuple[int, int], problem: str | None, name: str, said: str) -> None:
    backend = for_card(*capability, problem)
    assert backend.name == name and said in backend.reason


def test_triton_is_tried_before_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a C compiler it is installed and launches nothing."""

    class Broken:
        @property
        def utils(self) -> None:
            raise RuntimeError("Failed to find C compiler.\nPlease install one.")

    runtime = SimpleNamespace(driver=SimpleNamespace(active=Broken()))
    monkeypatch.setattr(choice, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "triton.runtime", runtime)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    backend = backend_of.__wrapped__("cuda")
    assert backend.name == "reference"
    assert backend.reason.endswith("Triton does not start (Failed to find C compiler.)")
    monkeypatch.setattr(Broken, "utils", object())
    assert backend_of.__wrapped__("cuda").name == "triton"
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    assert "not installed" in backend_of.__wrapped__("cuda").reason


def test_other_devices() -> None:
    assert backend_of("mps").name == "reference" and "mps" in backend_of("mps").reason
    assert kernels.describe("cpu").startswith("cpu: ")
    assert kernels.backend_for(torch.zeros(1)) == "cpu"
    assert kernels.backend_for(torch.zeros(1, dtype=torch.float16)) == "reference"
    with kernels.force("triton"):
        assert kernels.fuses(torch.device("cpu"))
    assert not kernels.fuses(torch.device("cpu"))
