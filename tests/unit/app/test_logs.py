"""The log is written where it can be, and is never the fault itself."""

from __future__ import annotations

import errno
import io
import logging

import pytest

from app.logs import LOG_NAME, start_log, stop_log
from app.paths import data_paths


class FullStream(io.StringIO):
    """A file on a disk without room."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        self.flush()


def test_a_full_disk_loses_the_log_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    log = start_log(data_paths().make())
    (handler,) = log.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(FullStream())
    log.warning("something")
    stop_log()
    assert log.handlers == [] and capsys.readouterr() == ("", "")


def test_what_was_done_stands_in_the_log() -> None:
    paths = data_paths().make()
    start_log(paths).info("removed x")
    stop_log()
    assert "INFO removed x" in (paths.logs / LOG_NAME).read_text(encoding="utf-8")
