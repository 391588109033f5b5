"""Reading one document into a snapshot, with checkpoints on the way."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import NoSuchSession
from app.identity import identity_of, session_id_of
from app.library import Library, remove_folder
from app.progress import OnProgress, RateMeter
from app.prompts import Layout, Prefix
from app.records import SESSION_READY
from app.settings import CHECKPOINT_EVERY_CHUNKS, ReadSettings
from app.speeds import remember_speed

if TYPE_CHECKING:
    from engine.cache import DocCache
    from engine.loader import LoadedModel
    from engine.prefill import PrefillConfig
    from engine.scoring import Scorer
    from ingest import Document


@dataclass
class Job:
    """One document, one model, one set of settings: all that is fixed before the first token."""

    document: Document
    pages: tuple[int, int]
    settings: ReadSettings  # resolved
    model: LoadedModel
    layout: Layout
    config: PrefillConfig
    scorer: Scorer
    stored_identity: dict[str, Any] | None = None
    counted: Prefix | None = None  # the document's tokens, where the settings needed their number

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes this reading the same as an earlier one."""
        return self.stored_identity or identity_of(
            self.document.sha256,
            self.pages,
            self.model,
            self.config,
            self.scorer,
            self.document.parser_version,
            self.settings.read_twice,
        )

    @cached_property
    def session_id(self) -> str:
        """The session's name, from its identity."""
        return session_id_of(self.identity)

    @cached_property
    def prefix(self) -> Prefix:
        """The tokenised document in its layout; computed when first needed."""
        return self.counted or self.layout.prefix_of(self.document, self.pages)

    def save(self, folder: Path, cache: DocCache, *, goes_on: bool = False) -> int:
        """Write a snapshot or checkpoint with this job's identity inside; returns bytes.

        goes_on  the reading is not at its end, even if the cache is frozen
        """
        from engine.snapshot import save_snapshot

        return save_snapshot(
            folder,
            cache,
            model=self.model,
            scorer=self.scorer.digest(),
            config=self.config,
            extra={"identity": self.identity, "document_sha256": self.document.sha256},
            goes_on=goes_on,
        )

    def load(self, folder: Path) -> DocCache:
        """Read a snapshot or checkpoint back. Raises SnapshotCorrupt or SnapshotMismatch."""
        from engine.snapshot import load_snapshot

        cache, _ = load_snapshot(folder, model=self.model, expect={"identity": self.identity})
        return cache


@dataclass(frozen=True)
class ReadReport:
    """What opening a session took. A restored session has prefill_s 0, a read one restore_s 0.

    second_s, second_tokens  of a second reading; prefill_s and the rates are those of the first
    """

    prefill_s: float = 0.0
    prefill_tok_s: float = 0.0
    prefill_tokens: int = 0
    quarter_tok_s: tuple[float, ...] = ()
    restore_s: float = 0.0
    save_s: float = 0.0
    resumed_from: int = 0
    second_s: float = 0.0
    second_tokens: int = 0


def read_document(
    job: Job,
    library: Library,
    *,
    on_progress: OnProgress,
    on_session: Callable[[str], None] | None = None,
    stop: Callable[[], bool] | None = None,
    announce: Callable[[str], None],
) -> tuple[DocCache, ReadReport]:
    """Read the document, save its snapshot and record the session.

    A checkpoint of an earlier attempt is taken up; a second reading that was cut off begins anew,
    after a first that is not repeated. Raises PrefillStopped after the state so far was saved, and
    what prefill and saving raise.
    """
    from engine.errors import PrefillStopped
    from engine.prefill import prefill

    paths = library.paths
    total = len(job.prefix.token_ids)
    config = _first_config(job)
    record_start(job, library)
    if on_session is not None:
        on_session(job.session_id)
    partial = paths.partial(job.session_id)
    resume = _checkpoint(job, partial, announce)
    resumed_from = resume.n_seen if resume is not None else 0
    meter = RateMeter()
    meter.start(resumed_from, total)
    on_progress("read", resumed_from, total)
    started = time.perf_counter()

    def progressed(done: int, of: int) -> None:
        meter.update(done, of)
        on_progress("read", done, of)

    try:
        cache = prefill(
            job.model,
            job.prefix.token_ids,
            config,
            job.scorer,
            resume=resume,
            on_progress=progressed,
            stop=stop,
            on_checkpoint=lambda state: _save_checkpoint(job, partial, state),
            checkpoint_every_chunks=CHECKPOINT_EVERY_CHUNKS,
        )
    except PrefillStopped as stopped:
        if stopped.n_seen > resumed_from:
            _save_checkpoint(job, partial, stopped.cache)
        raise
    prefill_s = time.perf_counter() - started
    n_read = total - resumed_from
    rate = n_read / prefill_s if prefill_s > 0 else 0.0
    second_s = 0.0
    if job.settings.read_twice:
        if n_read:
            on_progress("save", 0, 0)
            _save_checkpoint(job, partial, cache)
        started = time.perf_counter()
        cache = _read_again(job, cache, on_progress, stop)
        second_s = time.perf_counter() - started
    on_progress("save", 0, 0)
    started = time.perf_counter()
    snapshot_bytes = job.save(paths.snapshot(job.session_id), cache)
    save_s = time.perf_counter() - started
    measured = {"prefill_s": prefill_s, "prefill_tok_s": rate}
    _record_end_or_clear(job, library, cache, snapshot_bytes, **measured)
    remember_speed(paths, job, n_read, rate)
    remove_folder(partial)
    quarters = tuple(meter.quarters())
    n_again = total if job.settings.read_twice else 0
    report = ReadReport(
        prefill_s, rate, n_read, quarters, 0.0, save_s, resumed_from, second_s, n_again
    )
    return cache, report


def _first_config(job: Job) -> PrefillConfig:
    """How the reading begins: before a second one more is kept.

    Raises InvalidSetting if the model's window has no room for a second reading.
    """
    if not job.settings.read_twice:
        return job.config
    from heads.second_reading import check_room, first_pass

    n_tokens = len(job.prefix.token_ids)
    check_room(job.model.geometry.window, job.layout, n_tokens, job.config)
    return first_pass(job.config)


def _read_again(
    job: Job, cache: DocCache, on_progress: OnProgress, stop: Callable[[], bool] | None
) -> DocCache:
    """The second reading: the cache of the first, cut down to the budget."""
    from heads.second_reading import read_again

    on_progress("read_again", 0, cache.n_seen)
    return read_again(
        job.model,
        cache,
        job.layout,
        job.prefix.n_header,
        job.config.eviction,
        on_progress=lambda done, of: on_progress("read_again", done, of),
        stop=stop,
    )


def _checkpoint(job: Job, partial: Path, announce: Callable[[str], None]) -> DocCache | None:
    """The state an earlier attempt left, if it can be trusted; a damaged one is dropped, aloud."""
    from engine.errors import SnapshotCorrupt, SnapshotError
    from engine.snapshot import recover_folder

    recover_folder(partial)
    if not partial.exists():
        return None
    try:
        cache = job.load(partial)
        ids = cache.token_ids.tolist()
        if ids != job.prefix.token_ids[: len(ids)]:
            raise SnapshotCorrupt("state.safetensors", "belongs to another text")
    except SnapshotError as error:
        shutil.rmtree(partial)
        announce(f"The checkpoint is dropped, reading starts again: {error.cause}")
        return None
    if cache.frozen:
        announce("The first reading is on disk; the second begins.")
    else:
        announce(f"Resuming at token {cache.n_seen} of {len(job.prefix.token_ids)}.")
    return cache


def _save_checkpoint(job: Job, partial: Path, cache: DocCache) -> None:
    job.save(partial, cache, goes_on=True)


def record_start(job: Job, library: Library) -> None:
    """Tell the library that a reading begins.

    A session that is read anew stays ready: its snapshot stands until the new one is whole.
    """
    record = library.find_session(job.session_id)
    stands = library.paths.snapshot(job.session_id).is_dir()
    if record is not None and record.state == SESSION_READY and stands:
        return
    library.start_session(
        job.session_id,
        document=job.document.sha256,
        pages=job.pages,
        model=job.model.name,
        settings=job.settings.to_dict(),
        n_tokens=job.prefix.n_document,
    )


def record_end(
    job: Job, library: Library, cache: DocCache, snapshot_bytes: int, **measured: float
) -> None:
    """Tell the library that a session is whole. Raises NoSuchSession if it was deleted."""
    library.finish_session(
        job.session_id,
        kept_tokens=cache.kept_tokens,
        kept_fraction=cache.kept_fraction,
        nbytes=cache.nbytes,
        snapshot_bytes=snapshot_bytes,
        positions=cache.positions_mode,
        **measured,
    )


def _record_end_or_clear(
    job: Job, library: Library, cache: DocCache, snapshot_bytes: int, **measured: float
) -> None:
    """As `record_end`; what was written of a session that was deleted meanwhile goes as well."""
    try:
        record_end(job, library, cache, snapshot_bytes, **measured)
    except NoSuchSession:
        remove_folder(library.paths.snapshot(job.session_id))
        remove_folder(library.paths.partial(job.session_id))
        raise
