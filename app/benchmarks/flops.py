"""Arithmetic work of reading, counted from the geometry."""

from __future__ import annotations

from engine.geometry import ModelGeometry
from engine.weights import linear_parameters


def reading_flops(
    geometry: ModelGeometry, n_tokens: int, chunk_tokens: int, budget_tokens: int
) -> int:
    """Floating-point operations of reading the first n_tokens of a document.

    Linear layers: 2 x parameters a token. Attention: 4 x head_dim x query heads x visible entries,
    per layer and token (2 for q.k, 2 for the weighted values). Visible: the entries kept of what
    came before the chunk, and causally the chunk. The output matrix is used for one row a chunk
    and is left out, as are norms, rotation and scoring.
    """
    visible = 0
    for start in range(0, n_tokens, chunk_tokens):
        n = min(chunk_tokens, n_tokens - start)
        visible += n * min(start, budget_tokens) + n * (n + 1) // 2
    per_entry = 4 * geometry.head_dim * geometry.n_q_heads * geometry.n_layers
    return 2 * linear_parameters(geometry) * n_tokens + per_entry * visible
