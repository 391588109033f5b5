"""`bench decode`: answering on caches of growing size, against the speed of memory.

A token needs all weights and all kept entries once, so bandwidth over their bytes is the ceiling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.benchmarks import ceilings, synthetic
from app.benchmarks.bench import Bench
from app.benchmarks.figures import figure, median, ratio, timed
from app.plots import Line
from app.settings import DEFAULT_KV_BITS
from engine.errors import InvalidSetting
from engine.memory import POSITION_BYTES, SCORE_BYTES

if TYPE_CHECKING:
    from engine.cache import DocCache
    from engine.generate import Generation

NAME = "decode"
KV_BITS = DEFAULT_KV_BITS
LENGTHS = (1024, 4096, 16_384, 30_000)  # entries per layer and KV head
SESSION_TOKENS = 131_072
QUESTION_TOKENS = 30
NEW_TOKENS = 33  # the first comes from the question's own forward pass
COLUMNS = (
    ("entries", "entries", 8, 0),
    ("ttft_s", "first tok s", 12, 3),
    ("tok_s", "tok/s", 9, 2),
    ("ceiling_tok_s", "ceiling", 9, 2),
    ("ceiling_share", "of it", 8, 3),
    ("open_s", "open s", 8, 3),
)
AXES = ("cache entries per layer and head", "tokens a second")


def measure(bench: Bench) -> dict[str, Any]:
    """Time to the first token and tokens a second for each cache size and for the budget."""
    model = bench.model
    sizes = sorted({*bench.request.lengths, bench.request.budget_tokens})
    rows: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for number, size in enumerate(sizes):
        bench.progress("decode", number, len(sizes))
        n_tokens = max(SESSION_TOKENS, size)
        try:
            cache = synthetic.session_cache(
                model,
                n_tokens,
                size,
                room_tokens=QUESTION_TOKENS + NEW_TOKENS,
                quant=bench.quant,
            )
        except InvalidSetting as problem:
            left_out.append({"entries": size, "reason": problem.cause})
            continue
        rows.append(_row(bench, cache, size))
    bench.progress("decode", len(sizes), len(sizes))
    if not rows:
        raise InvalidSetting(left_out[0]["reason"], "Name smaller --lengths and --budget.")
    return {
        **bench.about(NAME),
        "session_tokens": SESSION_TOKENS,
        "cache": synthetic.HOW,
        "question_tokens": QUESTION_TOKENS,
        "new_tokens": NEW_TOKENS,
        "weights_bytes": weights_read(bench),
        "answers": bench.decoder.reason,
        "ceiling_of": "memory bandwidth (sum over a large block, before and after each answer) "
        "over the bytes of weights, keys and values",
        "rows": rows,
        "left_out": left_out,
    }


def _row(bench: Bench, cache: DocCache, size: int) -> dict[str, Any]:
    device = bench.model.device
    open_s, _ = timed(cache.view, device)
    answer(bench, cache, 2)
    bandwidths, answers = [], []
    for _ in range(bench.request.runs):
        bandwidths.append(ceilings.read_bytes_per_s(device))
        answers.append(answer(bench, cache, NEW_TOKENS))
        bandwidths.append(ceilings.read_bytes_per_s(device))
    bandwidth = median(bandwidths)
    nbytes = entries_bytes(cache)
    ceiling = bandwidth / (weights_read(bench) + nbytes)
    tok_s = median([a.decode_tok_s for a in answers])
    return {
        "entries": size,
        "largest_head": max(max(layer.lengths) for layer in cache.layers),
        "positions": cache.positions_mode,
        "cache_bytes": nbytes,
        "open_s": figure(open_s),
        "ttft_s": figure(median([a.ttft_s for a in answers])),
        "tok_s": figure(tok_s),
        "ms_per_token": figure(1e3 / tok_s),
        "bandwidth_gb_s": figure(bandwidth / 1e9),
        "ceiling_tok_s": figure(ceiling),
        "ceiling_share": ratio(tok_s, ceiling),
    }


def answer(bench: Bench, cache: DocCache, new_tokens: int) -> Generation:
    """Ask a question of QUESTION_TOKENS on a fresh view, for exactly new_tokens of answer."""
    from engine.generate import Sampling, generate

    question = bench.ids(QUESTION_TOKENS)
    sampling = Sampling(max_new_tokens=new_tokens)
    answered: Generation = generate(
        bench.endless(), cache.view(), question, sampling, decoder=bench.decoder.decoder
    )
    return answered


def weights_read(bench: Bench) -> int:
    """Bytes of weights a token needs: the packed ones, or the model's own.

    All of the model's but an input embedding that is not the output's.
    """
    packed = getattr(bench.decoder.decoder, "nbytes", 0)
    if packed:
        return int(packed)
    model = bench.model
    total = sum(p.nbytes for p in model.model.parameters())
    embedding = model.model.get_input_embeddings().weight
    tied = embedding is model.model.lm_head.weight
    return int(total if tied else total - embedding.nbytes)


def entries_bytes(cache: DocCache) -> int:
    """Bytes of the kept keys and values as stored; positions and scores are not read."""
    return cache.nbytes - cache.n_entries * (POSITION_BYTES + SCORE_BYTES)


def lines(report: dict[str, Any]) -> list[Line]:
    """Measured speed and its ceiling."""
    return [
        Line(name, [(row["entries"], row[key]) for row in report["rows"]])
        for name, key in (("measured", "tok_s"), ("ceiling", "ceiling_tok_s"))
    ]


def summary(report: dict[str, Any]) -> list[str]:
    """What the table cannot say."""
    said = [
        f"Questions of {report['question_tokens']} tokens on a session of "
        f"{report['session_tokens']}; its cache: {report['cache']}.",
        f"Ceiling: {report['ceiling_of']}. Open: the first view of a restored cache.",
    ]
    return [*said, *(f"Left out: {row['reason']}" for row in report["left_out"])]
