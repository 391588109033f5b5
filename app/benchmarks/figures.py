"""Figures of a report: medians, rounding, and time taken off a clock that waits for the GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median as _median
from typing import TypeVar

SIGNIFICANT_DIGITS = 5

T = TypeVar("T")


def figure(value: float | None) -> float | None:
    """A measured value to five significant digits: more would be noise. None stays None."""
    return None if value is None else float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def median(values: Sequence[float]) -> float:
    """The middle of the runs; the mean of the two middle ones if their number is even."""
    return float(_median(values))


def ratio(above: float | None, below: float | None) -> float | None:
    """above / below, or None if either was not measured."""
    return figure(above / below) if above is not None and below else None


def clock(device: str) -> float:
    """Seconds on a monotonic clock, once all work given to the device is done."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def timed(work: Callable[[], T], device: str = "cpu") -> tuple[float, T]:
    """Seconds a call takes, and what it returns."""
    started = clock(device)
    result = work()
    return clock(device) - started, result
