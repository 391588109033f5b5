"""From the marks of many documents to one table: means, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from statistics import mean, stdev
from typing import Any

from heads.evaluation import AUTO, EvalSettings, Refused
from heads.results import DocumentResult, Row


def make_report(
    model_name: str,
    settings: EvalSettings,
    results: Sequence[DocumentResult],
    refused: Sequence[Refused] = (),
) -> dict[str, Any]:
    """The report of an evaluation, as plain values.

    f1, recall and nll are means over all questions; n_tokens, bytes, kept_tokens, overlap and
    seconds are means over documents; nll_gap is nll minus that of the full cache, in nats per
    answer token, and f1_ratio is f1 over that of the full cache; nll_gap_se and f1_ratio_se are
    their standard errors, by the jackknife over documents (Efron and Stein 1981; null for fewer
    than two).
    """
    full = [r.full for r in results if r.full is not None]
    columns = zip(*(r.rows for r in results), strict=True)
    return {
        "model": model_name,
        "documents": len(results),
        "questions": sum(r.n_questions for r in results),
        "n_tokens": mean(r.n_tokens for r in results),
        "chunked": settings.chunked,
        "chunk_tokens": settings.chunk_tokens,
        "read_twice": settings.read_twice,
        "kv_bits": list(settings.kv_bits),
        "equal_bytes": settings.equal_bytes,
        "refit": settings.refit,
        "allocation": settings.allocation or AUTO,
        "oracle": settings.oracle,
        "full": _marks(full) | _costs(full),
        "rows": [_row(list(column), full) for column in columns],
        "refused": [asdict(r) for r in refused],
    }


def _row(rows: list[Row], full: list[Row]) -> dict[str, Any]:
    """One scorer at one share, over all documents."""
    marks, best = _marks(rows), _marks(full)
    gaps = [
        [mine - theirs for mine, theirs in zip(row.nll, whole.nll, strict=True)]
        for row, whole in zip(rows, full, strict=bool(full))
    ]
    f1, best_f1 = marks["f1"], best["f1"]
    return {
        "scorer": rows[0].scorer,
        "kept": rows[0].kept,
        **marks,
        "nll_gap": _mean(g for values in gaps for g in values),
        "nll_gap_se": _ratio_error(gaps, [[1.0] * len(values) for values in gaps]),
        "f1_ratio": f1 / best_f1 if f1 is not None and best_f1 else None,
        "f1_ratio_se": _ratio_error([row.f1 for row in rows], [row.f1 for row in full]),
        **_costs(rows),
        "overlap": _mean(row.overlap for row in rows),
        "by_question_index": _by_index(gaps),
    }


def _marks(rows: list[Row]) -> dict[str, float | None]:
    return {
        "f1": _mean(x for row in rows for x in row.f1 or ()),
        "recall": _mean(x for row in rows for x in row.recall or ()),
        "nll": _mean(x for row in rows for x in row.nll),
    }


def _costs(rows: list[Row]) -> dict[str, float | None]:
    return {
        "bytes": _mean(row.bytes for row in rows),
        "kept_tokens": _mean(row.kept_tokens for row in rows),
        "seconds": _mean(row.seconds for row in rows),
    }


def _by_index(gaps: list[list[float]]) -> list[float]:
    """Mean gap of the first questions, of the second ones, and so on."""
    longest = max((len(values) for values in gaps), default=0)
    return [mean(values[i] for values in gaps if i < len(values)) for i in range(longest)]


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return mean(present) if present else None


def _ratio_error(
    rows: Sequence[list[float] | None], full: Sequence[list[float] | None]
) -> float | None:
    """Of the sum over `rows` over the sum over `full`, a list of marks a document in each.

    From the ratios without one document at a time: a document's questions share its cache, so
    they are no independent draws, and documents are.
    """
    pairs = [(sum(a), sum(b)) for a, b in zip(rows, full, strict=bool(full)) if a and b]
    above, below = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    if len(pairs) < 2 or any(below - b <= 0 for _, b in pairs):
        return None
    without = [(above - a) / (below - b) for a, b in pairs]
    return (len(pairs) - 1) / len(pairs) ** 0.5 * stdev(without)
