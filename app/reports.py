"""The JSON that commands print about sessions: names and shapes other programs rely on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from app.answers import Answer
from app.memory import peak_rss_bytes

if TYPE_CHECKING:
    from app.records import SessionRecord
    from app.service import OpenSession
    from engine.cache import DocCache
    from ingest import Document


def session_report(session: OpenSession) -> dict[str, Any]:
    """What `ingest --json` prints of a session: the document, its cache, and what it took."""
    record, report, cache = session.record, session.report, session.cache
    return {
        "session": record.id,
        "document": {
            "title": session.document.title,
            "pages": len(session.document.pages),
            "tokens": record.n_tokens,
            "sha256": session.document.sha256,
            "kind": session.document.kind,
            "first_page": record.first_page,
            "last_page": record.last_page,
            "warnings": [warning.message for warning in session.document.warnings],
        },
        "cache": {
            "budget_tokens": record.settings["budget_tokens"] or None,
            "kept_tokens": round(cache.kept_tokens, 2),
            "kept_fraction": round(cache.kept_fraction, 6),
            "bytes": cache.nbytes,
            "snapshot_bytes": record.snapshot_bytes,
            "k_bits": _bits(cache.quant.k_bits, cache),
            "v_bits": _bits(cache.quant.v_bits, cache),
            "scorer": record.settings["scorer"],
            "allocation": record.settings["allocation"],
            "positions": cache.positions_mode,
            "read_twice": record.settings.get("read_twice", False),
            "refit": record.settings.get("refit", False),
        },
        "timing": {
            "parse_s": round(session.parse_s, 4),
            "model_load_s": round(session.model_load_s, 4),
            "prefill_s": round(report.prefill_s, 4),
            "prefill_tok_s": round(report.prefill_tok_s, 3),
            "prefill_quarter_tok_s": [round(rate, 3) for rate in report.quarter_tok_s],
            "second_reading_s": round(report.second_s, 4),
            "restore_s": round(report.restore_s, 4),
            "save_s": round(report.save_s, 4),
        },
        "memory": {**session.memory, "peak_rss_bytes": peak_rss_bytes()},
        "reused": session.reused,
        "resumed_from": report.resumed_from,
        "prefilled_tokens": report.prefill_tokens + report.second_tokens,
        "reused_tokens": round(cache.kept_tokens) if session.reused else 0,
        "model": session.model.name,
        "weights": session.model.weights,
    }


def _bits(settled: int, cache: DocCache) -> int:
    """Bits of a kept number: what settled ones have, or those of the storage dtype."""
    return settled if settled < 16 else 8 * cache.layers[0].keys.fine.element_size()


def ask_report(session: OpenSession, answers: Sequence[Answer]) -> dict[str, Any]:
    """What `ask --json` prints for one document.

    prefilled_tokens counts every token that went through the model before an answer: the document
    if it was read now, and the questions. reused_tokens counts cache entries that came from disk.
    """
    report = session_report(session)
    report["prefilled_tokens"] += sum(answer.prefilled_tokens for answer in answers)
    return {"answers": [answer.to_dict() for answer in answers], **report}


def parse_report(document: Document, parse_s: float) -> dict[str, Any]:
    """What `ingest --parse-only --json` prints of a document."""
    return {
        "title": document.title,
        "kind": document.kind,
        "sha256": document.sha256,
        "pages": len(document.pages),
        "characters": len(document.text),
        "warnings": [
            {"code": w.code, "message": w.message, "page": w.page} for w in document.warnings
        ],
        "page_kind": document.page_kind,
        "toc_entries": len(document.toc),
        "parse_s": round(parse_s, 4),
    }


def library_entry(record: SessionRecord) -> dict[str, Any]:
    """One session in the list of `sessions --json`."""
    return {
        "session": record.id,
        "title": record.title,
        "file_name": record.file_name,
        "kind": record.kind,
        "pages": record.n_pages,
        "first_page": record.first_page,
        "last_page": record.last_page,
        "tokens": record.n_tokens,
        "state": record.state,
        "problem": record.problem,
        "model": record.model,
        "settings": record.settings,
        "kept_tokens": record.kept_tokens,
        "kept_fraction": record.kept_fraction,
        "bytes": record.nbytes,
        "snapshot_bytes": record.snapshot_bytes,
        "questions": record.n_questions,
        "sha256": record.document,
        "created_at": record.created_at,
        "used_at": record.used_at,
    }
