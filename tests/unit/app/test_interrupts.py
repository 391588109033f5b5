"""Ctrl-C ends what nothing was read for at once, and lets a reading come to the end of its step."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.commands.interrupts import StopSwitch
from app.library import Library
from app.messages import EXIT_INTERRUPTED
from app.paths import data_paths
from tests.unit.app.tiny_reader import tiny_loaded, use_tiny_model

ROOT = Path(__file__).resolve().parents[3]
TINY = ["--model", "tiny", "--budget", "400", "--chunk", "128"]
# A call that runs no Python for a minute, as tokenizing five megabytes does for many seconds.
DEAF = """
import hashlib
from app.commands.interrupts import StopSwitch
with StopSwitch():
    print("deaf", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 100_000_000)
"""


# Heeds the first Ctrl-C, and ends by the second.
TWICE = """
import signal, time
from app.commands.interrupts import StopSwitch
with StopSwitch() as stop:
    stop()
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.3)
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("ended")
    time.sleep(0.3)
"""


def test_the_second_interrupt_ends_it_without_a_traceback() -> None:
    command = [sys.executable, "-c", TWICE]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "ended\n" and "Ctrl-C again" in ended.stderr
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr


@pytest.mark.parametrize("command", [["ingest"], ["ask", "-q", "Who?"]])
def test_before_the_reading_one_interrupt_is_the_end(
    command: list[str],
    typed_book: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    went_on: list[str] = []

    def interrupted(name: str, **how: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        went_on.append(name)
        return tiny_loaded()

    monkeypatch.setattr("engine.loader.load_model", interrupted)
    assert main([*command, typed_book, *TINY]) == EXIT_INTERRUPTED
    assert not went_on and "Interrupted." in capsys.readouterr().err
    library = Library(data_paths())
    assert not library.unread_documents() and not library.sessions(), "nothing stays behind"
    library.close()


def test_a_reading_comes_to_the_end_of_its_chunk_and_is_kept(
    typed_book: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_model(monkeypatch)

    def interrupt(self: Any, stage: str, done: int, total: int) -> None:
        if stage == "read" and done == 256:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("app.progress.ProgressLine.__call__", interrupt)
    assert main(["ingest", typed_book, *TINY]) == EXIT_INTERRUPTED
    assert "Stopping after this step" in capsys.readouterr().err
    assert list(data_paths().snapshots.glob("*.partial"))
    monkeypatch.setattr("app.progress.ProgressLine.__call__", lambda *how: None)
    assert main(["ingest", typed_book, *TINY]) == 0
    assert "Resuming at token 256" in capsys.readouterr().err


def test_of_several_documents_none_is_begun_after_the_interrupt(
    typed_book: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("The bird sang. " * 20)
    opened: list[str] = []

    def interrupt(self: Any, stage: str, done: int, total: int) -> None:
        opened.append(stage)
        if stage == "save":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("app.progress.ProgressLine.__call__", interrupt)
    assert main(["ingest", typed_book, str(other), *TINY]) == EXIT_INTERRUPTED
    assert opened.count("parse") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot be sent Ctrl-C alone there")
def test_a_call_that_hears_of_no_interrupt_ends_within_seconds() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "deaf\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=15)
    finally:
        process.kill()
    assert process.returncode == EXIT_INTERRUPTED and "Interrupted." in err


def test_the_switch_leaves_signals_as_it_found_them() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSwitch() as stop:
        assert signal.getsignal(signal.SIGINT) != before and not stop()
    assert signal.getsignal(signal.SIGINT) == before
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    assert fd == -1
