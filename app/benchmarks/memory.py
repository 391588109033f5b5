"""`bench memory`: what a reading takes beyond the model, against the sum of engine.memory.

Each reading has a process of its own (app.benchmarks.memory_child), so that each peak is its own.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.benchmarks.bench import Bench
from app.benchmarks.children import Child
from app.benchmarks.figures import median, ratio
from app.plots import Line
from app.settings import DEFAULT_KV_BITS

NAME = "memory"
KV_BITS = DEFAULT_KV_BITS
LENGTHS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
COMMAND = (sys.executable, "-m", "app.benchmarks.memory_child")
ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
# Of the planned terms: what a reading holds beyond the weights, the libraries and the cache.
ACTIVATION_TERMS = ("activations", "logits")
READING_TERMS = ("kv_cache", "kv_index", "chunk_kv", "activations", "attention", "logits")
COLUMNS = (
    ("tokens", "tokens", 8, 0),
    ("cache_mib", "cache MiB", 11, 1),
    ("extra_mib", "peak MiB", 10, 1),
    ("planned_mib", "planned MiB", 13, 1),
    ("cache_multiple", "x cache", 9, 2),
)
AXES = ("tokens read", "MiB beyond the model")


def measure(bench: Bench) -> dict[str, Any]:
    """Peak memory beyond the loaded model for each length."""
    request = bench.request
    about: dict[str, Any] = {}
    rows = []
    for n_tokens in request.lengths:
        found = []
        for _ in range(request.runs):
            bench.progress.say(f"Reading {n_tokens} tokens in a process of its own ...")
            reply = _measured(bench, n_tokens)
            about = reply["about"]
            found.append(reply)
        rows.append(_row(n_tokens, found))
    return {
        **about,
        "benchmark": NAME,
        "runs": request.runs,
        "peak_by": about["peak_by"],
        "planned_by": "engine.memory.terms, without weights and overhead",
        "cache_multiple_of": "(peak - one chunk's activations and logits) / final cache",
        "rows": rows,
    }


def _measured(bench: Bench, n_tokens: int) -> dict[str, Any]:
    request = replace(bench.request, lengths=(n_tokens,), runs=1)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with Child("The measuring process", COMMAND, {**os.environ, "PYTHONPATH": path}) as child:
        return child.ask(**request.to_dict())


def _row(n_tokens: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    extra = median([reply["peak_bytes"] - reply["loaded_bytes"] for reply in found])
    one = found[-1]
    terms, cache = one["terms"], one["cache_bytes"]
    planned = sum(terms[name] for name in READING_TERMS)
    activations = sum(terms[name] for name in ACTIVATION_TERMS)
    return {
        "tokens": n_tokens,
        "loaded_bytes": round(median([reply["loaded_bytes"] for reply in found])),
        "extra_bytes": round(extra),
        "cache_bytes": cache,
        "kept_tokens": one["kept_tokens"],
        "activation_bytes": activations,
        "planned_bytes": planned,
        "planned": {name: terms[name] for name in READING_TERMS},
        "cache_multiple": ratio(extra - activations, cache),
        "extra_mib": round(extra / MIB, 1),
        "cache_mib": round(cache / MIB, 1),
        "planned_mib": round(planned / MIB, 1),
    }


def lines(report: dict[str, Any]) -> list[Line]:
    """The peak, the plan and the final cache."""
    return [
        Line(name, [(row["tokens"], row[key]) for row in report["rows"]])
        for name, key in (("peak", "extra_mib"), ("planned", "planned_mib"), ("cache", "cache_mib"))
    ]


def summary(report: dict[str, Any]) -> list[str]:
    """What the table cannot say."""
    last = report["rows"][-1]["planned"]
    terms = ", ".join(f"{name} {nbytes / MIB:.0f}" for name, nbytes in last.items())
    return [
        f"Peak by {report['peak_by']}, beyond the loaded and warmed-up model.",
        f"Planned for the longest, MiB: {terms}.",
        f"x cache: {report['cache_multiple_of']}.",
    ]
