"""The gate before every figure: fast ways against plain ones, on a few tokens.

Kernels against kernels.reference on random inputs of odd sizes, and those that store, choose and
score against the plain ones; then the model itself, read in chunks, and asked on a view, against
one un-chunked, un-pruned reading; and asked on a cache of codes, against plain attention over
them. What answers (engine.decoding) is held against the model's own modules once it is chosen.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import kernels
from app.benchmarks.errors import ParityRed
from app.benchmarks.figures import figure
from kernels import quantise as codes_of_rows
from kernels import reference, retaining, selection, turned

if TYPE_CHECKING:
    from engine.decoding import DecoderChoice
    from engine.loader import LoadedModel
    from engine.prefill import PrefillConfig

N_TOKENS = 64
CHUNK_TOKENS = 24  # leaves a shorter last chunk
N_LONG = 523  # queries from which a CPU may take another way
N_DOCUMENT = 40  # of which the rest is asked, all but two tokens at once
# Largest difference as a share of the plain result's range.
TOLERANCE_FP32 = 1e-3
TOLERANCE_16_BIT = 2e-2
# Of answers on packed weights, which round: what a wrong scale or order of rows goes far beyond.
TOLERANCE_PACKED = {"fp16": 4e-2, "int8": 8e-2, "int4": 0.3, "nf4": 0.3}


def check(model: LoadedModel) -> dict[str, float | None]:
    """Largest differences found, each a share of the plain result's range, beside the tolerance.

    Raises ParityRed, naming the first comparison that fails.
    """
    tolerance = TOLERANCE_FP32 if model.weights == "fp32" else TOLERANCE_16_BIT
    found = {
        "kernels": _kernels(model),
        "stored": _stored(model),
        "chunked": _chunked(model),
        "packed": _packed(model),
        "view": _view(model),
        "coded": _coded(model),
    }
    for name, worst in found.items():
        _require(name, worst, tolerance)
    return {**{name: figure(worst) for name, worst in found.items()}, "tolerance": tolerance}


def check_answers(choice: DecoderChoice, ids: list[int]) -> dict[str, float | None]:
    """The logits of what answers, of several tokens and of single ones, beside the model's own.

    ids     N_TOKENS of a text: what few bits do to tokens drawn by chance says little
    Raises  ParityRed
    """
    usual = TOLERANCE_FP32 if choice.model.weights == "fp32" else TOLERANCE_16_BIT
    tolerance = TOLERANCE_PACKED.get(choice.format, usual)
    worst = _answers(choice, ids)
    _require("answers", worst, tolerance)
    return {"answers": figure(worst), "answers_tolerance": tolerance}


def _require(name: str, worst: float, tolerance: float) -> None:
    if not worst <= tolerance:
        raise ParityRed(
            f"Parity is red: {name} differs from the plain computation by {worst:.2g} of its "
            f"range, {tolerance:.2g} is allowed.",
            "No figure is printed; run `python launch.py test` to find out more.",
        )


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
    many, long_k, long_v = drawn(N_LONG), drawn(N_LONG + 5), drawn(N_LONG + 5)
    for name, given in (
        ("attend", (many, long_k, long_v, scale)),
        ("attend_causal", (many, long_k[:, :N_LONG], long_v[:, :N_LONG], scale)),
    ):
        pairs.append((getattr(kernels, name)(*given), getattr(reference, name)(*given)))
    pairs.append(_turned(many[:, :7], long_k, long_v, scale))
    pairs.append(_turned(many[:, :7], long_k, long_v, scale, (k[:, :5], v[:, :5])))
    return _worst([difference(a, b) for f, p in pairs for a, b in zip(f, p, strict=True)])


def _turned(
    q: Tensor, k: Tensor, v: Tensor, scale: float, tail: kernels.Tail | None = None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Few queries over heads of uneven length that lie in parts, fast and plain; with a tail as a
    token of an answer has one, the output alone.
    """
    lengths = [k.shape[1], 37, 1]
    entries = kernels.TurnedEntries.room(lengths, k.shape[2], k.dtype, k.device)
    for head, n in enumerate(lengths):
        entries.lay(head, k[head, :n], v[head, :n])
    if tail is not None:
        given = q, entries, scale, tail
        return (kernels.mix_turned(*given),), (turned.mix_turned(*given),)
    return kernels.attend_turned(q, entries, scale), turned.attend_turned(q, entries, scale)


def _stored(model: LoadedModel) -> float:
    """Quantising, choosing what stays and a head's scores, against the plain versions.

    On the CPU all but the choice are the plain ones, and nothing is to be found.
    """
    generator = torch.Generator().manual_seed(2)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(model.device)

    worst = []
    rows = drawn(131, model.geometry.head_dim)
    for bits in (8, 4, 2):
        found = kernels.from_codes(kernels.to_codes(rows, bits), torch.float32)
        plain = codes_of_rows.dequantise(codes_of_rows.quantise(rows, bits), torch.float32)
        worst.append(difference(found, plain))
    lengths = [257, 0, 63, 1]
    offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=model.device)
    places = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths]).to(model.device)
    floors = torch.full((len(lengths),), 5, dtype=torch.int32, device=model.device)
    given = (drawn(sum(lengths)), places, offsets, places < 4, floors, 150, 120)
    same = torch.equal(kernels.keep_mask(*given), selection.keep_mask(*given))
    worst.append(0.0 if same else float("inf"))
    width, n_heads = 64, model.geometry.n_kv_heads
    hidden = drawn(33, model.geometry.hidden_size).to(model.compute_dtype)
    weights = (
        drawn(width, model.geometry.hidden_size) * 0.05, drawn(width),
        drawn(n_heads, width) * 0.1, drawn(n_heads),
    )  # fmt: skip
    scores = kernels.retaining_scores(hidden, *weights)
    worst.append(difference(scores, retaining.retaining_scores(hidden, *weights)))
    return _worst(worst)


def _worst(values: list[float]) -> float:
    """The largest; infinity if one is not a number."""
    return max(v if v == v else float("inf") for v in values)


def _config(chunk_tokens: int, model: LoadedModel) -> PrefillConfig:
    from engine.eviction import EvictionConfig
    from engine.prefill import PrefillConfig

    kv_dtype = "fp32" if model.compute_dtype == torch.float32 else "auto"
    whole = EvictionConfig(budget_tokens=None, positions="original")
    return PrefillConfig(chunk_tokens=chunk_tokens, eviction=whole, kv_dtype=kv_dtype)


def _ids(model: LoadedModel, n: int = N_TOKENS) -> list[int]:
    generator = torch.Generator().manual_seed(1)
    vocab = model.geometry.vocab_size or int(model.model.lm_head.out_features)
    ids: list[int] = torch.randint(vocab, (n,), generator=generator).tolist()
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


def _packed(model: LoadedModel) -> float:
    """A pass of many tokens from packed weights, where they are there, and from the model's own."""
    from engine.prefill import prefill
    from engine.scorers.recency import RecencyScorer
    from engine.trunk import MANY_TOKENS, hidden_after

    if not model.reads_packed:
        return 0.0
    ids = _ids(model, MANY_TOKENS)
    document = prefill(model, ids[:N_DOCUMENT], _config(N_TOKENS, model), RecencyScorer())
    with torch.inference_mode():
        found, plain = (
            model.model.lm_head(hidden_after(way, torch.as_tensor(ids), document.view())[-1])
            for way in (model, replace(model, reads_packed=False))
        )
    return difference(found.float(), plain.float())


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


def _answers(choice: DecoderChoice, ids: list[int]) -> float:
    """A question of several tokens, each looked at, and two single steps: one may be recorded."""
    from engine.generate import StockDecoder
    from engine.prefill import prefill
    from engine.scorers.recency import RecencyScorer

    model = choice.model
    document = prefill(model, ids[:N_DOCUMENT], _config(N_TOKENS, model), RecencyScorer())
    found, plain = (
        torch.cat(
            [
                decoder.forward_all(view, ids[N_DOCUMENT:-2]),
                *(decoder.forward(view, ids[at:][:1])[None] for at in (-2, -1)),
            ]
        )
        for decoder, view in (
            (choice.decoder, document.view()),
            (StockDecoder(model), document.view()),
        )
    )
    return difference(found, plain)


def _coded(model: LoadedModel) -> float:
    """A question on a cache of codes, by this device's kernels and by plain attention."""
    from engine.generate import forward
    from engine.prefill import prefill
    from engine.quantisation import QuantConfig
    from engine.scorers.recency import RecencyScorer

    ids = _ids(model)
    config = replace(_config(CHUNK_TOKENS, model), quant=QuantConfig(8, 4, recent_tokens=8))
    document = prefill(model, ids[:N_DOCUMENT], config, RecencyScorer())
    found = forward(model, document.view(), ids[N_DOCUMENT:])
    with kernels.force("reference"):
        plain = forward(model, replace(document, _readable=[]).view(), ids[N_DOCUMENT:])
    return difference(found, plain)
