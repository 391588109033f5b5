"""The gate before every figure: fast ways against plain ones, on a few tokens.

Kernels against kernels.reference on random inputs of odd sizes; then the model itself, read in
chunks, and asked on a view, against one un-chunked, un-pruned reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

import kernels
from app.benchmarks.errors import ParityRed
from app.benchmarks.figures import figure
from kernels import reference

if TYPE_CHECKING:
    from engine.loader import LoadedModel
    from engine.prefill import PrefillConfig

N_TOKENS = 64
CHUNK_TOKENS = 24  # leaves a shorter last chunk
N_DOCUMENT = 40  # of which the rest is asked, all but one token at once
# Largest difference as a share of the plain result's range.
TOLERANCE_FP32 = 1e-3
TOLERANCE_16_BIT = 2e-2


def check(model: LoadedModel) -> dict[str, float | None]:
    """Largest differences found, each a share of the plain result's range, beside the tolerance.

    Raises ParityRed, naming the first comparison that fails.
    """
    tolerance = TOLERANCE_FP32 if model.weights == "fp32" else TOLERANCE_16_BIT
    found = {"kernels": _kernels(model), "chunked": _chunked(model), "view": _view(model)}
    for name, worst in found.items():
        if not worst <= tolerance:
            raise ParityRed(
                f"Parity is red: {name} differs from the plain computation by {worst:.2g} of its "
                f"range, {tolerance:.2g} is allowed.",
                "No figure is printed; run `python launch.py test` to find out more.",
            )
    return {**{name: figure(worst) for name, worst in found.items()}, "tolerance": tolerance}


def difference(found: Tensor, plain: Tensor) -> float:
    """Largest absolute difference as a share of the plain result's range; NaN if either has one."""
    span = float(plain.float().max() - plain.float().min())
    return float((found.float() - plain.float()).abs().max()) / max(span, 1e-9)


def _kernels(model: LoadedModel) -> float:
    generator = torch.Generator().manual_seed(0)

    def drawn(n: int) -> Tensor:
        x = torch.randn(3, n, model.geometry.head_dim, generator=generator)
        return x.to(model.device, model.compute_dtype)

    scale = model.geometry.head_dim**-0.5
    q, k, v = drawn(37), drawn(101), drawn(101)
    own_k, own_v = drawn(37), drawn(37)
    fast, plain = kernels.attend(q, k, v, scale), reference.attend(q, k, v, scale)
    fast_own = kernels.attend_causal(q, own_k, own_v, scale)
    plain_own = reference.attend_causal(q, own_k, own_v, scale)
    joined = kernels.merge(*fast, *fast_own)
    joined_plain = reference.merge(*plain, *plain_own)
    pairs = [(fast, plain), (fast_own, plain_own), (joined, joined_plain)]
    return _worst([difference(a, b) for f, p in pairs for a, b in zip(f, p, strict=True)])


def _worst(values: list[float]) -> float:
    """The largest; infinity if one is not a number."""
    return max(v if v == v else float("inf") for v in values)


def _config(chunk_tokens: int, model: LoadedModel) -> PrefillConfig:
    from engine.eviction import EvictionConfig
    from engine.prefill import PrefillConfig

    kv_dtype = "fp32" if model.compute_dtype == torch.float32 else "auto"
    whole = EvictionConfig(budget_tokens=None, positions="original")
    return PrefillConfig(chunk_tokens=chunk_tokens, eviction=whole, kv_dtype=kv_dtype)


def _ids(model: LoadedModel) -> list[int]:
    generator = torch.Generator().manual_seed(1)
    vocab = model.geometry.vocab_size or int(model.model.lm_head.out_features)
    ids: list[int] = torch.randint(vocab, (N_TOKENS,), generator=generator).tolist()
    return ids


def _whole(model: LoadedModel) -> Tensor:
    from engine.prefill import prefill
    from engine.scorers.recency import RecencyScorer

    cache = prefill(model, _ids(model), _config(N_TOKENS, model), RecencyScorer())
    assert cache.last_logits is not None
    return cache.last_logits


def _chunked(model: LoadedModel) -> float:
    from engine.prefill import prefill
    from engine.scorers.recency import RecencyScorer

    cache = prefill(model, _ids(model), _config(CHUNK_TOKENS, model), RecencyScorer())
    assert cache.last_logits is not None
    return difference(cache.last_logits, _whole(model))


def _view(model: LoadedModel) -> float:
    """A question of several tokens and one single step, on top of a frozen cache."""
    from engine.generate import forward
    from engine.prefill import prefill
    from engine.scorers.recency import RecencyScorer

    ids = _ids(model)
    document = prefill(model, ids[:N_DOCUMENT], _config(N_TOKENS, model), RecencyScorer())
    view = document.view()
    forward(model, view, ids[N_DOCUMENT:-1])
    return difference(forward(model, view, ids[-1:]), _whole(model))
