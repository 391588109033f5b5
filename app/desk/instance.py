"""One desk per data directory: an operating-system lock, and a note that says where the desk is.

The lock ends with its process, however that ends, so a crash leaves nothing to clean up. The note
(readable by its owner only) holds the URL with the launch token, so that a second start can open
the running desk instead of becoming a second one.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

LOCK_FILE = "desk.lock"
NOTE_FILE = "desk.json"
LIVE_CHECK_S = 2.0
STARTING_WAIT_S = 20.0


class DeskLock:
    """Holds the data directory for one desk; use `take` and `release`."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._file: IO[bytes] | None = None

    def take(self) -> bool:
        """Take the lock; False if another process (or another desk of this one) holds it."""
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (self.data_dir / LOCK_FILE).open("a+b")
        try:
            _lock(file)
        except OSError:
            file.close()
            return False
        self._file = file
        return True

    def announce(self, url: str) -> None:
        """Write where the desk is; written aside and renamed, so that it is never half there."""
        note = self.data_dir / NOTE_FILE
        aside = note.with_suffix(".new")
        aside.unlink(missing_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"url": url, "pid": os.getpid()}, file)
        aside.replace(note)

    def release(self) -> None:
        """Remove the note and give the lock back; harmless if it was not taken."""
        if self._file is None:
            return
        (self.data_dir / NOTE_FILE).unlink(missing_ok=True)
        _unlock(self._file)
        self._file.close()
        self._file = None


def running_desk(data_dir: Path) -> str | None:
    """URL of the desk that already serves this data directory, or None if none does.

    Waits up to STARTING_WAIT_S for a desk that holds the lock but is not up yet.
    """
    deadline = time.monotonic() + STARTING_WAIT_S
    while True:
        url = announced_url(data_dir)
        if url is not None and answers(url):
            return url
        if not _is_locked(data_dir) or time.monotonic() > deadline:
            return None
        time.sleep(0.2)


def announced_url(data_dir: Path) -> str | None:
    """What the note says, whether or not anything answers there."""
    try:
        note = json.loads((data_dir / NOTE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    url = note.get("url") if isinstance(note, dict) else None
    return url if isinstance(url, str) else None


def answers(url: str) -> bool:
    """Whether a desk of ours is at this URL: it takes the token and sets its cookie."""
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        return False
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=LIVE_CHECK_S)
    try:
        connection.request("GET", f"{parts.path or '/'}?{parts.query}")
        response = connection.getresponse()
        cookie = response.getheader("set-cookie") or ""
        return response.status == 303 and cookie.startswith(f"longread-{parts.port}=")
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _is_locked(data_dir: Path) -> bool:
    try:
        file = (data_dir / LOCK_FILE).open("r+b")
    except FileNotFoundError:
        return False
    with file:
        try:
            _lock(file)
        except OSError:
            return True
        _unlock(file)
    return False


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def _unlock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(file: IO[bytes]) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)
