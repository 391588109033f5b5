"""How the desk refuses to start: in words, with 2, and with everything given back."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import pytest

from app.cli import main
from app.desk import instance
from app.desk.instance import DeskLock
from app.desk.server import MAX_UPLOAD_BYTES, Desk, bind
from app.errors import PortUnavailable
from ingest.limits import ParseLimits


def test_a_port_that_is_taken_is_named(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = bind()
    port = taken.getsockname()[1]
    assert main(["ui", "--no-browser", "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert f"Port {port}" in err and "--port" in err and "should not have" not in err
    with pytest.raises(PortUnavailable):
        Desk(MagicMock(), data_dir, port=port)
    lock = DeskLock(data_dir)
    assert lock.take()
    lock.release()
    taken.close()


def test_a_desk_that_does_not_answer_is_said(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance, "STARTING_WAIT_S", 0.0)
    lock = DeskLock(data_dir)
    assert lock.take()
    assert main(["ui", "--no-browser"]) == 2
    err = capsys.readouterr().err
    assert "does not answer" in err and "--data-dir" in err and "should not have" not in err
    lock.release()


def test_no_file_is_taken_that_is_too_large_to_be_read() -> None:
    assert ParseLimits().max_file_bytes == MAX_UPLOAD_BYTES
