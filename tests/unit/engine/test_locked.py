"""Locks between processes: one holder at a time, a word to who waits, and no file left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from engine import files

NAME = "s"


def lock_file(folder: Path) -> Path:
    return folder / f".{NAME}.lock"


def somebody_holds(folder: Path) -> bool:
    """Whether another process could not have the lock now; its file stays as it is."""
    if not lock_file(folder).exists():
        return False
    found = []

    def tried() -> None:
        try:
            with FileLock(lock_file(folder), timeout=0):
                found.append(False)
        except Timeout:
            found.append(True)

    thread = threading.Thread(target=tried)
    thread.start()
    thread.join()
    return found[0]


def test_a_lock_leaves_no_file_behind(tmp_path: Path) -> None:
    with files.locked(tmp_path, NAME):
        assert somebody_holds(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), files.locked(tmp_path, NAME):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_one_at_a_time_however_often_the_file_goes(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(20):
            with files.locked(tmp_path, NAME):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 80 and max(most) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be removed there")
def test_who_opened_a_file_that_was_then_removed_takes_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waiter's worst moment: between opening the file and locking it."""
    import fcntl

    flock: Callable[[int, int], None] = fcntl.flock
    removed: list[int] = []

    def late(descriptor: int, how: int) -> None:
        if not removed:
            removed.append(os.fstat(descriptor).st_ino)
            lock_file(tmp_path).unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with files.locked(tmp_path, NAME):
        assert removed and somebody_holds(tmp_path)


def test_who_waits_is_asked_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SILENT_WAIT_S", 0.05)
    said: list[str] = []
    told = threading.Event()

    def say() -> None:
        said.append("waiting")
        if len(said) > 2:
            told.set()

    def wait() -> None:
        with files.locked(tmp_path, NAME, on_wait=say):
            said.append("in")

    with files.locked(tmp_path, NAME, on_wait=lambda: said.append("never")):
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert told.wait(10)
    waiter.join()
    assert said[2:] and set(said[:-1]) == {"waiting"} and said[-1] == "in"


def test_what_a_killed_process_left_is_taken_over_and_removed(tmp_path: Path) -> None:
    lock_file(tmp_path).touch()
    with files.locked(tmp_path, NAME):
        assert somebody_holds(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_who_will_not_wait_leaves_the_lock_to_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SILENT_WAIT_S", 0.01)
    refused = threading.Event()

    def refuse() -> None:
        raise RuntimeError

    def come_second() -> None:
        with pytest.raises(RuntimeError), files.locked(tmp_path, NAME, on_wait=refuse):
            raise AssertionError("the lock was held")
        refused.set()

    with files.locked(tmp_path, NAME):
        second = threading.Thread(target=come_second)
        second.start()
        second.join()
        assert refused.is_set() and somebody_holds(tmp_path)
    assert list(tmp_path.iterdir()) == []
