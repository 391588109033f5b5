"""`bench restore`: saving and opening snapshots, against a plain read and SHA-256 of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.benchmarks import ceilings, synthetic
from app.benchmarks.bench import Bench
from app.benchmarks.decode import NEW_TOKENS, QUESTION_TOKENS
from app.benchmarks.figures import figure, median, ratio, timed
from app.plots import Line
from app.settings import DEFAULT_KV_BITS

if TYPE_CHECKING:
    from engine.cache import DocCache

NAME = "restore"
KV_BITS = DEFAULT_KV_BITS
LENGTHS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)  # document tokens
COLUMNS = (
    ("tokens", "tokens", 8, 0),
    ("kept", "kept", 8, 0),
    ("mb", "MB", 9, 1),
    ("save_s", "save s", 9, 3),
    ("load_s", "load s", 9, 3),
    ("load_mb_s", "MB/s", 9, 1),
    ("ceiling_s", "ceiling s", 11, 3),
    ("over_ceiling", "over it", 9, 2),
)
AXES = ("document tokens", "seconds")


def measure(bench: Bench) -> dict[str, Any]:
    """Seconds to save and to load a session, warm, for each document length at the budget."""
    rows = []
    lengths = bench.request.lengths
    for number, n_tokens in enumerate(lengths):
        bench.progress("restore", number, len(lengths))
        kept = min(n_tokens, bench.request.budget_tokens)
        room = QUESTION_TOKENS + NEW_TOKENS
        cache = synthetic.session_cache(
            bench.model, n_tokens, kept, room_tokens=room, quant=bench.quant
        )
        with bench.folder() as folder:
            rows.append({"tokens": n_tokens, "kept": kept, **_row(bench, cache, folder / "s")})
    bench.progress("restore", len(lengths), len(lengths))
    return {
        **bench.about(NAME),
        "cache": synthetic.HOW,
        "ceiling_of": "read and SHA-256 of the snapshot's files, after each load",
        "rows": rows,
    }


def _row(bench: Bench, cache: DocCache, folder: Path) -> dict[str, Any]:
    from engine.snapshot import load_snapshot

    model = bench.model
    saves = [timed(lambda: save(bench, cache, folder)) for _ in range(bench.request.runs)]
    loads, plain = [], []
    load_snapshot(folder, model=model)  # the first fills the system's file cache
    for _ in range(bench.request.runs):
        loads.append(timed(lambda: load_snapshot(folder, model=model), model.device)[0])
        plain.append(ceilings.read_and_hash(folder)[0])
    nbytes, load_s, ceiling = saves[-1][1], median(loads), median(plain)
    return {
        "bytes": nbytes,
        "mb": figure(nbytes / 1e6),
        "cache_bytes": cache.nbytes,
        "save_s": figure(median([seconds for seconds, _ in saves])),
        "load_s": figure(load_s),
        "load_mb_s": figure(nbytes / 1e6 / load_s),
        "ceiling_s": figure(ceiling),
        "over_ceiling": ratio(load_s, ceiling),
    }


def save(bench: Bench, cache: DocCache, folder: Path) -> int:
    """Write the cache as a session's snapshot, at the cache's own bits; returns bytes."""
    from engine.snapshot import save_snapshot

    scorer = bench.new_scorer()
    return save_snapshot(
        folder,
        cache,
        model=bench.model,
        scorer=scorer.digest(),
        config=replace(bench.config(scorer), quant=cache.quant),
        extra={},
    )


def lines(report: dict[str, Any]) -> list[Line]:
    """Seconds to load, to save, and of the ceiling."""
    return [
        Line(name, [(row["tokens"], row[key]) for row in report["rows"]])
        for name, key in (("load", "load_s"), ("save", "save_s"), ("read + hash", "ceiling_s"))
    ]


def summary(report: dict[str, Any]) -> list[str]:
    """What the table cannot say."""
    return [f"Ceiling: {report['ceiling_of']}. Cache: {report['cache']}."]
