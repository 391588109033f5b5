"""The return of a session from disk: what it was made of, its snapshot, its row in the library."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from app.identity import flat, session_id_of
from app.library import Library, remove_folder
from app.reading import Job, ReadReport, record_end, record_start
from app.records import SESSION_READY

if TYPE_CHECKING:
    from engine.cache import DocCache

_HOW_IT_WAS_READ = ("scorer", "eviction.", "chunk_tokens", "second_reading", "quantisation")


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
        record_start(job, library)
    if record is None or record.state != SESSION_READY:
        nbytes = sum(file.stat().st_size for file in folder.iterdir())
        record_end(job, library, cache, nbytes)
