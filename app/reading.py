"""Reading one document into a snapshot: checkpoints on the way, and the return from disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import NoSuchSession
from app.identity import flat, identity_of, session_id_of
from app.library import Library, remove_folder
from app.progress import OnProgress, RateMeter
from app.prompts import Layout, Prefix
from app.records import SESSION_READY
from app.settings import CHECKPOINT_EVERY_CHUNKS, ReadSettings

if TYPE_CHECKING:
    from engine.cache import DocCache
    from engine.loader import LoadedModel
    from engine.prefill import PrefillConfig
    from engine.scoring import Scorer
    from ingest import Document


_HOW_IT_WAS_READ = ("scorer", "eviction.", "chunk_tokens", "second_reading", "quantisation")


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


def restore(job: Job, library: Library) -> tuple[DocCache, ReadReport] | None:
    """The session's cache from its snapshot, or None if there is none.

    The checkpoint of a reading anew that was cut off goes: the snapshot is whole.
    Raises SnapshotError if there is one that cannot be trusted; the session is marked as damaged.
    """
    from engine.errors import SnapshotCorrupt, SnapshotError
    from engine.snapshot import recover_folder

    folder = library.paths.snapshot(job.session_id)
    recover_folder(folder)
    if not folder.exists():
        return None
    started = time.perf_counter()
    try:
        cache = job.load(folder)
        if not cache.frozen:
            raise SnapshotCorrupt("manifest.json", "says that the reading had not ended")
        _verify_imported(job, library, cache)
    except SnapshotError as error:
        library.mark_damaged(job.session_id, error.cause)
        raise
    _record_found(job, library, cache, folder)
    remove_folder(library.paths.partial(job.session_id))
    return cache, ReadReport(restore_s=time.perf_counter() - started)


def check_same(job: Job, session_id: str, snapshot: Path) -> Job:
    """The job under which a session that was read to its end is opened again.

    How it was read (scorer, eviction, chunks) may have changed since: other heads, other defaults.
    Its cache is whole, and answers as it did; the job then goes by the session's own identity.
    Raises SnapshotMismatch, naming the field, if it was made of anything else, as another model;
    without this it would be read again unasked.
    """
    from engine import manifest
    from engine.errors import SnapshotMismatch
    from engine.snapshot import recover_folder

    if job.session_id == session_id:
        return job
    recover_folder(snapshot)
    if snapshot.exists():
        identity = manifest.read(snapshot)["extra"].get("identity", {})
        stored, here = flat(identity), flat(job.identity)
        for field in sorted(stored.keys() | here.keys()):
            if field.startswith(_HOW_IT_WAS_READ):
                continue
            if stored.get(field) != here.get(field):
                raise SnapshotMismatch(field, stored.get(field), here.get(field))
        if session_id_of(identity) == session_id:
            return replace(job, stored_identity=identity)
    raise SnapshotMismatch("session", session_id, job.session_id)


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
    _record_start(job, library)
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


def _record_start(job: Job, library: Library) -> None:
    """A session that is read anew stays ready: its snapshot stands until the new one is whole."""
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


def _record_end(
    job: Job, library: Library, cache: DocCache, snapshot_bytes: int, **measured: float
) -> None:
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
    """As `_record_end`; what was written of a session that was deleted meanwhile goes as well."""
    try:
        _record_end(job, library, cache, snapshot_bytes, **measured)
    except NoSuchSession:
        remove_folder(library.paths.snapshot(job.session_id))
        remove_folder(library.paths.partial(job.session_id))
        raise


def _verify_imported(job: Job, library: Library, cache: DocCache) -> None:
    """A session from elsewhere must hold the text that its pages show."""
    from engine.errors import SnapshotCorrupt

    record = library.find_session(job.session_id)
    if record is None or not record.unverified:
        return
    if cache.token_ids.tolist() != job.prefix.token_ids:
        raise SnapshotCorrupt("state.safetensors", "holds another text than the document")
    library.mark_verified(job.session_id)


def _record_found(job: Job, library: Library, cache: DocCache, folder: Path) -> None:
    """A snapshot is the truth: a library that lost its row, or marked it otherwise, is mended."""
    record = library.find_session(job.session_id)
    if record is None:
        _record_start(job, library)
    if record is None or record.state != SESSION_READY:
        nbytes = sum(file.stat().st_size for file in folder.iterdir())
        _record_end(job, library, cache, nbytes)
