"""One launcher at a time: a file lock that the system frees, however its holder ended."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from typing import IO

from app.setup.installer import say


@contextlib.contextmanager
def lock(path: str) -> Iterator[bool]:
    """Hold a file lock; a second launcher waits. Yields whether it had to.

    The system frees it when its holder is gone, however it ended. On POSIX the installer inherits
    it, so that one that outlives a killed launcher is waited for as well.
    """
    with open(path, "a+b") as file:
        os.set_inheritable(file.fileno(), os.name == "posix")
        waited = False
        while not try_lock(file):
            if not waited:
                say("Another start is setting up Longread; waiting for it ...")
            waited = True
            time.sleep(0.5)
        yield waited


def try_lock(file: IO[bytes]) -> bool:
    """Take an exclusive lock on an open file without waiting; False if somebody holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True
