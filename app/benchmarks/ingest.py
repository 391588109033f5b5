"""`bench ingest`: how fast a document is read, against the machine's peak of matrix products.

One long reading gives all lengths: the time of the first L tokens is that of their chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.benchmarks import ceilings
from app.benchmarks.bench import Bench
from app.benchmarks.figures import clock, figure, median, ratio
from app.benchmarks.flops import reading_flops
from app.plots import Line
from app.settings import DEFAULT_KV_BITS

if TYPE_CHECKING:
    from engine.cache import DocCache
    from engine.scoring import Scorer

NAME = "ingest"
KV_BITS = DEFAULT_KV_BITS
LENGTHS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
WINDOW_TOKENS = 8192
COLUMNS = (
    ("tokens", "tokens", 8, 0),
    ("seconds", "s", 9, 2),
    ("tok_s", "tok/s", 9, 1),
    ("gflops", "GFLOP/s", 9, 1),
    ("peak_share", "of peak", 9, 3),
)
AXES = ("tokens read", "tokens a second")


@dataclass
class Reading:
    """One reading: (tokens, seconds) after each chunk from (0, 0) on, and where time went.

    score_s  in the scorer's own calls; what it makes the engine compute besides (attention mass,
             logits) counts as reading
    evict_s  choosing what stays and gathering it
    """

    marks: list[tuple[int, float]] = field(default_factory=lambda: [(0, 0.0)])
    score_s: float = 0.0
    evict_s: float = 0.0
    cache: DocCache | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the whole reading."""
        return self.marks[-1][1]

    def time_at(self, n_tokens: int) -> float:
        """Seconds until n_tokens were read, inside a chunk by its mean speed."""
        for (n0, t0), (n1, t1) in zip(self.marks, self.marks[1:], strict=False):
            if n0 < n_tokens <= n1:
                return t0 + (t1 - t0) * (n_tokens - n0) / (n1 - n0)
        return 0.0


def measure(bench: Bench) -> dict[str, Any]:
    """Tokens a second by length and by window, the peak, and the share of scorer and eviction."""
    model, request = bench.model, bench.request
    ids = bench.ids(max(request.lengths))
    bench.warm_up()
    readings: list[Reading] = []
    peaks: list[float] = []

    def peak() -> None:
        rows, dtype = request.chunk_tokens, model.compute_dtype
        peaks.append(
            ceilings.gemm_flops_per_s(
                model.geometry, rows, dtype, model.device, packed=model.reads_packed
            )
        )

    for number in range(request.runs):
        bench.stage(f"run {number + 1} of {request.runs}")
        peak()
        readings.append(read(bench, ids))
        peak()
    return {**bench.about(NAME), **report(bench, readings, peaks, len(ids))}


def read(bench: Bench, ids: Sequence[int]) -> Reading:
    """Read the text once, with a clock on every chunk, on the scorer and on the eviction."""
    from engine.prefill import prefill

    reading, device = Reading(), bench.model.device
    scorer = bench.new_scorer()
    bench.progress("read", 0, len(ids))
    with _clocks(reading, scorer, device):
        started = clock(device)

        def progressed(done: int, total: int) -> None:
            reading.marks.append((done, clock(device) - started))
            bench.progress("read", done, total)

        reading.cache = prefill(
            bench.model, ids, bench.config(scorer), scorer, on_progress=progressed
        )
    return reading


@contextmanager
def _clocks(reading: Reading, scorer: Scorer, device: str) -> Iterator[None]:
    """While this holds, the scorer's calls and the chunk's eviction add to the reading's times."""
    from engine.prefill import ChunkStore

    def on_clock(call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            started = clock(device)
            try:
                return call(*args, **kwargs)
            finally:
                setattr(reading, part, getattr(reading, part) + clock(device) - started)

        return clocked

    for name in ("score", "rescore", "see_logits"):
        setattr(scorer, name, on_clock(getattr(scorer, name), "score_s"))
    evict = ChunkStore.evict
    setattr(ChunkStore, "evict", on_clock(evict, "evict_s"))  # noqa: B010 - a typed method
    try:
        yield
    finally:
        setattr(ChunkStore, "evict", evict)  # noqa: B010


def report(
    bench: Bench, readings: Sequence[Reading], peaks: Sequence[float], n_tokens: int
) -> dict[str, Any]:
    """The figures, each the median of the runs."""
    peak = median(peaks)
    cache = readings[-1].cache
    assert cache is not None
    windows = [
        _span(bench, readings, peak, start, start + WINDOW_TOKENS)
        for start in range(0, n_tokens - WINDOW_TOKENS + 1, WINDOW_TOKENS)
    ]
    second, last = (windows[1], windows[-1]) if len(windows) > 2 else (None, None)
    score, evict = (
        median([getattr(r, part) / r.seconds for r in readings]) for part in ("score_s", "evict_s")
    )
    both = median([(r.score_s + r.evict_s) / r.seconds for r in readings])
    second_rate, last_rate = (None if w is None else w["tok_s"] for w in (second, last))
    return {
        "scorer": bench.scorer_name,
        "positions": cache.positions_mode,
        "peak_gflops": figure(peak / 1e9),
        "peak_gflops_range": [figure(min(peaks) / 1e9), figure(max(peaks) / 1e9)],
        "peak_of": f"product of {bench.request.chunk_tokens} rows with a feed-forward matrix, "
        f"{bench.reading_format}, before and after each reading",
        "rows": [_span(bench, readings, peak, 0, n) for n in bench.request.lengths],
        "window_tokens": WINDOW_TOKENS,
        "windows": windows,
        "second_window_tok_s": second_rate,
        "last_window_tok_s": last_rate,
        "last_over_second": ratio(last_rate, second_rate),
        "scorer_share": figure(score),
        "evict_share": figure(evict),
        "scorer_and_evict_share": figure(both),
        "kept_tokens": figure(cache.kept_tokens),
        "cache_bytes": cache.nbytes,
    }


def _span(
    bench: Bench, readings: Sequence[Reading], peak: float, start: int, end: int
) -> dict[str, Any]:
    """Figures of the tokens from start to end."""
    request, geometry = bench.request, bench.model.geometry
    seconds = median([r.time_at(end) - r.time_at(start) for r in readings])
    work = [
        reading_flops(geometry, n, request.chunk_tokens, request.budget_tokens)
        for n in (start, end)
    ]
    rate = (work[1] - work[0]) / seconds
    return {
        "start": start,
        "tokens": end - start,
        "seconds": figure(seconds),
        "tok_s": figure((end - start) / seconds),
        "gflops": figure(rate / 1e9),
        "peak_share": figure(rate / peak),
    }


def lines(report: dict[str, Any]) -> list[Line]:
    """Speed of the reading so far, and of each window at its end."""
    found = [Line("from the start", [(row["tokens"], row["tok_s"]) for row in report["rows"]])]
    if report["windows"]:
        points = [(w["start"] + w["tokens"], w["tok_s"]) for w in report["windows"]]
        found.append(Line(f"windows of {report['window_tokens']}", points))
    return found


def summary(report: dict[str, Any]) -> list[str]:
    """What the table cannot say."""
    said = [
        f"Peak: {report['peak_gflops']} GFLOP/s ({report['peak_of']}).",
        f"Scorer {report['scorer']}: {report['scorer_share']:.1%} of the time, "
        f"eviction {report['evict_share']:.1%}.",
    ]
    if report["last_over_second"] is not None:
        said.append(
            f"The last {report['window_tokens']} tokens: {report['last_window_tok_s']} tok/s, "
            f"{report['last_over_second']:.3f} of the second {report['window_tokens']}."
        )
    return said
