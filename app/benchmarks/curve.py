"""A reading time beyond what was measured, from the reader's own curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """seconds(n) = linear x n + quadratic x n^2: work alike for each token, and its attention."""

    linear: float
    quadratic: float

    def seconds(self, n_tokens: int) -> float:
        """Seconds to read n_tokens."""
        return self.linear * n_tokens + self.quadratic * n_tokens**2


def fitted(points: Sequence[tuple[int, float]]) -> Curve | None:
    """Least squares through (tokens, seconds); None if fewer than two lengths were measured.

    Neither coefficient goes below 0: on short readings noise would bend the curve downwards.
    """
    if len({n for n, _ in points}) < 2:
        return None
    n2 = sum(n**2 for n, _ in points)
    n3 = sum(n**3 for n, _ in points)
    n4 = sum(n**4 for n, _ in points)
    nt = sum(n * t for n, t in points)
    n2t = sum(n**2 * t for n, t in points)
    determinant = n2 * n4 - n3 * n3
    linear = (nt * n4 - n2t * n3) / determinant
    quadratic = (n2 * n2t - n3 * nt) / determinant
    if quadratic < 0:
        return Curve(nt / n2, 0.0)
    if linear < 0:
        return Curve(0.0, n2t / n4)
    return Curve(linear, quadratic)
