"""The log file of the data directory: tracebacks and what was done, never a document's text."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from logging.handlers import RotatingFileHandler

from app.paths import DataPaths

LOG_NAME = "longread.log"
_MAX_BYTES = 2_000_000


def start_log(paths: DataPaths) -> logging.Logger:
    """Send the program's log to logs/longread.log; calling it again changes the file."""
    log = logging.getLogger("longread")
    log.setLevel(logging.INFO)
    log.propagate = False
    stop_log()
    paths.logs.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(
        paths.logs / LOG_NAME,
        maxBytes=_MAX_BYTES,
        backupCount=3,
        encoding="utf-8",
        errors="backslashreplace",  # of file names that are no text
        delay=True,
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    log.addHandler(handler)
    return log


def stop_log() -> None:
    """Close the log file; on a full disk its last lines may be lost."""
    log = logging.getLogger("longread")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        with suppress(OSError):
            handler.close()


class _LogFile(RotatingFileHandler):
    """A log that cannot be written puts no traceback of its own between the program's words."""

    def handleError(self, record: logging.LogRecord) -> None:
        """See Handler.handleError; an error of the file system loses the record."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)
