"""Careful writing and hashing of model files: digests, disk room, locks, atomic publication."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import NotEnoughDisk

if TYPE_CHECKING:
    from filelock import BaseFileLock

BLOCK_BYTES = 8 << 20
DIGEST_CACHE = "digests.json"
SILENT_WAIT_S = 1.0
# How Rust ends the text of a full disk, on POSIX and on Windows.
FULL_IN_RUST = ("os error 28)", "os error 112)")


def sha256_of(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Hex SHA-256 of a file; on_bytes gets the size of each block read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            if on_bytes:
                on_bytes(len(block))
    return digest.hexdigest()


def cached_sha256(path: Path, cache_dir: Path) -> str:
    """SHA-256 of a large file, remembered in cache_dir under its path, size and change time.

    A file changed in place without a new time or size keeps its old digest: good enough for
    telling models apart, not a defence against someone who can write to the model folder.
    """
    store = cache_dir / DIGEST_CACHE
    state = path.stat()
    key = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}"
    known = read_json(store) or {}
    if key not in known:
        known[key] = sha256_of(path)
        remember(store, known)
    return str(known[key])


def read_json(path: Path) -> dict[str, object] | None:
    """The object in a JSON file, or None if there is no such file or it holds no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: object) -> None:
    """Write JSON to a temporary name, fsync, rename: readers see the old or the new file.

    Two threads may write one file: each call has a name of its own, and the last one stays.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
        fsync(temporary)
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # there only if something failed
            temporary.unlink(missing_ok=True)


def remember(path: Path, value: object) -> None:
    """Write JSON that only spares work later: where nothing can be written, go on without it."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)


def fsync(path: Path) -> None:
    """Flush a file, or on POSIX a folder's entries, to the disk."""
    if path.is_dir():
        if os.name == "nt":  # Windows cannot open a folder for this; its renames are journaled
            return
        handle = os.open(path, os.O_RDONLY)
    else:
        handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(temporary: Path, final: Path) -> None:
    """Give a finished file or folder its final name, durably; an older one there is replaced."""
    if temporary.is_dir():
        for inner in sorted(temporary.rglob("*")):
            fsync(inner)
        if final.exists():
            shutil.rmtree(final)
    fsync(temporary)
    os.replace(temporary, final)
    fsync(final.parent)


def need_disk(folder: Path, nbytes: int, what: str) -> None:
    """Raise NotEnoughDisk unless the disk under folder (it may not exist yet) has nbytes free."""
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < nbytes:
        raise NotEnoughDisk(
            f"{what} needs {nbytes / 2**30:.1f} GiB of disk, and {existing} has "
            f"{free / 2**30:.1f} GiB free.",
            "Free some space, or choose another folder with --data-dir.",
        )


def is_disk_full(problem: BaseException) -> bool:
    """Whether an error says that the disk is full; libraries in Rust say it in their text only."""
    if isinstance(problem, OSError) and problem.errno == errno.ENOSPC:
        return True
    return any(end in str(problem) for end in FULL_IN_RUST)


def disk_full(what: str) -> NotEnoughDisk:
    """The refusal for a disk that filled up during `what`, though there was room at its start."""
    return NotEnoughDisk(
        f"{what} filled the disk.", "Free some space, or choose another folder with --data-dir."
    )


@contextmanager
def locked(folder: Path, name: str, *, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an inter-process lock, so that two runs do not fetch or convert one model twice.

    on_wait  called after every SILENT_WAIT_S that another holds it; what it raises ends the wait
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{name}.lock"
    lock = FileLock(path)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=SILENT_WAIT_S)
        except Timeout:
            if on_wait is not None:
                on_wait()
    try:
        yield
    finally:
        _release(lock, path)


def _release(lock: BaseFileLock, path: Path) -> None:
    """Let go of a lock and leave no file of it.

    It is removed while it is held. A process that had opened it before finds, once it has locked
    it, that no name leads to it any more, and opens the next one: filelock looks after each
    attempt. On Windows filelock removes the file itself.
    """
    try:
        if os.name != "nt":
            path.unlink(missing_ok=True)
    finally:
        lock.release()
