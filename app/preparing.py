"""From a document and somebody's wishes to a job: every default resolved, nothing read yet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from app.prompts import Layout
from app.reading import Job
from app.records import SESSION_READY, SessionRecord
from app.settings import ReadSettings, default_budget, eviction_config

if TYPE_CHECKING:
    from engine.eviction import Positions
    from engine.loader import LoadedModel
    from ingest import Document


def make_job(
    document: Document,
    pages: tuple[int, int],
    settings: ReadSettings,
    model: LoadedModel,
    heads_dir: Path,
    *,
    trusted: bool = True,
) -> Job:
    """Everything that is fixed before the first token is read.

    trusted  False for a session from elsewhere: it may not name a file of heads
    Raises   InvalidSetting, ScorerUnavailable
    """
    from engine.errors import ScorerUnavailable
    from engine.prefill import PrefillConfig
    from engine.quantisation import parse_kv_bits
    from heads.catalog import default_scorer, is_head_file, make_scorer

    scorer_name = settings.scorer or default_scorer(model.name, heads_dir)
    if not trusted and is_head_file(scorer_name):
        raise ScorerUnavailable(
            "The session was made with a file of heads that it does not bring along.",
            "Read the document again here.",
        )
    layout = Layout(model.tokenizer)
    scorer = make_scorer(scorer_name, model, seed=0, state_dir=heads_dir)
    budget, counted = own_budget(settings, model), None
    if settings.budget_tokens is None or settings.cache_mb is not None:
        counted = layout.prefix_of(document, pages)
        n_tokens = len(counted.token_ids)
        if settings.cache_mb is not None:
            settings = _filling(settings, n_tokens, model)
        budget = default_budget(budget, n_tokens, model.geometry.window)
    settings = settings.resolved(budget, scorer_name, scorer.allocation)
    config = PrefillConfig(
        chunk_tokens=settings.chunk_tokens,
        eviction=eviction_config(settings, scorer.profile),
        quant=parse_kv_bits(settings.kv_bits or settings.default_kv_bits, model.geometry),
    )
    return Job(document, pages, settings, model, layout, config, scorer, counted=counted)


def serves(record: SessionRecord, job: Job, wanted: ReadSettings) -> bool:
    """Whether a session of the same pages was read as somebody wants them read.

    job  what would be read for `wanted` today
    """
    same = (record.document, record.first_page, record.last_page) == (
        job.document.sha256,
        *job.pages,
    )
    if not same or record.state != SESSION_READY:
        return False
    settings = ReadSettings.from_dict(record.settings)
    if settings.meets(wanted, job.settings):
        return True
    if wanted.sized:
        return False
    # Long documents, too, were read with the model's own budget once.
    return settings.meets(
        wanted, replace(job.settings, budget_tokens=own_budget(wanted, job.model))
    )


def own_budget(settings: ReadSettings, model: LoadedModel) -> int:
    """The model's own number of entries a head, or the engine's for a model that has none."""
    from engine.eviction import EvictionConfig
    from engine.registry import find

    spec = find(settings.model or model.name)
    return spec.default_budget if spec else EvictionConfig().budget_tokens or 0


def _filling(settings: ReadSettings, n_tokens: int, model: LoadedModel) -> ReadSettings:
    """Entries and bits in place of megabytes."""
    from engine.byte_budget import holding
    from engine.eviction import EvictionConfig, compact_ceiling
    from engine.prefill import PrefillConfig

    assert settings.cache_mb is not None
    window = model.geometry.window
    placed = EvictionConfig(positions=cast("Positions", settings.positions))
    compact = placed.resolve_positions(n_tokens, window) != "original"
    held = holding(
        settings.cache_mb * 1_000_000,
        n_tokens,
        model.geometry,
        kv_bits=settings.kv_bits or ("16" if settings.refit else None),
        fine_bytes=PrefillConfig().storage_dtype(model.compute_dtype).itemsize,
        ceiling=compact_ceiling(window, settings.chunk_tokens) if compact else None,
    )
    return replace(
        settings, budget_tokens=held.budget_tokens, kv_bits=held.quant.name, cache_mb=None
    )
