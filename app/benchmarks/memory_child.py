"""One reading in a process of its own: a request on stdin, its peak memory on stdout, both JSON.

Run by app.benchmarks.memory as `python -m app.benchmarks.memory_child`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.benchmarks.bench import Bench, Request
from app.memory import rss_bytes
from app.progress import ProgressLine

if TYPE_CHECKING:
    from engine.cache import DocCache
    from engine.loader import LoadedModel

SAMPLE_S = 0.002
WARM_UP_TOKENS = 16  # touches every weight, and hardly anything else


class PeakMeter:
    """The most memory held inside a `with` block, in bytes: of the GPU, or resident.

    A process's own record of its peak starts with the loading of the model, so it is reset where
    the system can do that (Linux), and the resident memory is sampled elsewhere.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._peak = 0
        self._ended = threading.Event()
        self._sampler: threading.Thread | None = None
        self.by = "the GPU allocator's record" if self._cuda else "the kernel's record (VmHWM)"

    def held(self) -> int:
        """Memory held now."""
        if self._cuda:
            import torch

            return int(torch.cuda.memory_allocated())
        return rss_bytes()

    def __enter__(self) -> PeakMeter:
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        elif not _reset_record():
            self.by = f"samples of the resident memory every {1e3 * SAMPLE_S:.0f} ms"
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._cuda:
            import torch

            self._peak = int(torch.cuda.max_memory_allocated())
        elif self._sampler is None:
            self._peak = _record() or 0
        else:
            self._ended.set()
            self._sampler.join()

    @property
    def peak(self) -> int:
        """The peak, once the block has ended."""
        return self._peak

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self._peak = max(self._peak, rss_bytes())


def _reset_record() -> bool:
    """Set the kernel's record of our peak to what we hold now; whether that worked."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    record = _record()
    return record is not None and record < 1.1 * rss_bytes()


def _record() -> int | None:
    """The kernel's record of our resident peak, or None where there is none."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def measured(request: Request) -> dict[str, Any]:
    """Read a text of the first of the lengths; peak, loaded model, final cache, and the plan."""
    from engine.memory import give_back_freed
    from engine.prefill import prefill

    bench = Bench(request, ProgressLine())
    model = bench.model
    (n_tokens,) = request.lengths
    ids = bench.ids(max(n_tokens, WARM_UP_TOKENS))
    scorer = bench.new_scorer()
    config = bench.config(scorer)
    prefill(model, ids[:WARM_UP_TOKENS], config, scorer)
    gc.collect()
    give_back_freed()  # so that a reading cannot hide in what loading has freed
    meter = PeakMeter(model.device)
    loaded = meter.held()
    with meter:
        cache = prefill(
            model,
            ids[:n_tokens],
            config,
            scorer,
            on_progress=lambda done, total: bench.progress("read", done, total),
        )
    bench.progress.end()
    return {
        "about": {
            **bench.about("memory"),
            "scorer": bench.scorer_name,
            "peak_by": meter.by,
        },
        "loaded_bytes": loaded,
        "peak_bytes": meter.peak,
        "cache_bytes": cache.nbytes,
        "kept_tokens": cache.kept_tokens,
        "terms": _planned(model, cache, request),
    }


def _planned(model: LoadedModel, cache: DocCache, request: Request) -> dict[str, int]:
    from engine.memory import POSITION_BYTES, SCORE_BYTES, terms

    values = 2 * cache.n_entries * cache.geometry.head_dim
    index = cache.n_entries * (POSITION_BYTES + SCORE_BYTES)
    return terms(
        model.geometry,
        sum(p.nbytes for p in model.model.parameters()),
        min(request.budget_tokens, cache.n_seen),
        min(request.chunk_tokens, cache.n_seen),
        kv_bytes_per_value=(cache.nbytes - index) / values,
        compute_bytes=model.compute_dtype.itemsize,
        in_tiles=model.device == "cpu",
    )


def main() -> int:
    """Answer one request; known refusals travel as a reply."""
    from app.messages import EXIT_INTERRUPTED, explain

    # Libraries may print; only the reply goes where the parent reads.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        reply = measured(Request.from_dict(json.loads(sys.stdin.readline())))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED  # the parent got it too, and says so
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        reply = {
            "error": message.cause,
            "next_step": message.next_step,
            "exit_code": message.exit_code,
        }
    replies.write(json.dumps(reply) + "\n")
    replies.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
