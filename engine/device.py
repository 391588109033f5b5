"""Which device computes: a card that torch can truly use, else the CPU; and what is said of it."""

from __future__ import annotations

from functools import cache

import torch

import kernels
from engine.errors import InvalidSetting

DEVICES = ("auto", "cpu", "cuda")


def pick_device(device: str) -> str:
    """ "cpu" or "cuda"; raises InvalidSetting for anything else and for a GPU torch cannot use."""
    if device not in DEVICES:
        raise InvalidSetting(
            f"device '{device}' is not known.", f"Choose one of {', '.join(DEVICES)}."
        )
    if device == "cpu":
        return device
    problem = card_problem()
    if device == "cuda" and problem is not None:
        raise InvalidSetting(
            f"torch cannot use a GPU here: {problem}.", "Run `python launch.py doctor`."
        )
    return "cuda" if problem is None else "cpu"


@cache
def card_problem() -> str | None:
    """Why torch cannot compute on a card here; None if it can. Tried once, with a small product.

    A build of torch may see a card that it has no code for; only a computation tells.
    """
    if not torch.cuda.is_available():
        return "it sees no usable card"
    try:
        ones = torch.ones(64, 64, device="cuda")
        works = float((ones @ ones).sum()) == 64.0**3
    except torch.OutOfMemoryError:
        return None  # it computes, and is full: whoever loads a model says so
    except RuntimeError as error:
        return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return None if works else "a product on the card came out wrong"


def fallbacks(asked: str, device: str) -> list[str]:
    """What runs slower than this machine's hardware promises, one sentence each; often none."""
    if device == "cuda":
        backend = kernels.describe(device)
        return [f"Kernels: {backend}."] if backend.startswith("reference") else []
    if asked == "auto" and torch.cuda.is_available():
        return [f"Computing on the CPU, for torch cannot use the card: {card_problem()}."]
    return []
