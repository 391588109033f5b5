"""A download that fails on this machine's own disk, or is stopped, says so in its own words."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from engine import hub
from engine.errors import EngineError, ModelDownloadFailed, NotEnoughDisk

Fetch = Any
FULL = OSError(errno.ENOSPC, "No space left on device")
FULL_IN_RUST = RuntimeError("IO error: No space left on device (os error 28)")
NOT_OURS = PermissionError(errno.EACCES, "Permission denied", "hub/models--owner--thing")


def snapshot(tmp_path: Path) -> Path:
    return hub.snapshot("owner/thing", tmp_path)


def one_file(tmp_path: Path) -> Path:
    return hub.fetch_file("owner/thing", (".bin",), tmp_path)


def of_one_commit(tmp_path: Path) -> None:
    """The files of a repository whose config.json is here already."""
    folder = commit(tmp_path)
    try:
        hub._download("owner/thing", folder, ["model.safetensors"], 9, None, None)
    except OSError as problem:
        raise hub._failure("owner/thing", tmp_path, problem) from problem


def commit(tmp_path: Path) -> Path:
    folder = tmp_path / "models--owner--thing" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder.parents[1] / "blobs").mkdir()
    return folder


def failing(monkeypatch: pytest.MonkeyPatch, problem: Exception) -> None:
    def fail(*given: Any, **named: Any) -> Any:
        raise problem

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo: ["heads.bin"])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)


@pytest.mark.parametrize(
    ("fetch", "problem"),
    [(snapshot, FULL), (one_file, FULL), (of_one_commit, FULL), (of_one_commit, FULL_IN_RUST)],
)
def test_a_full_disk_is_a_full_disk(
    fetch: Fetch, problem: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, problem)
    with pytest.raises(NotEnoughDisk, match="owner/thing filled the disk"):
        fetch(tmp_path)


@pytest.mark.parametrize("fetch", [snapshot, one_file, of_one_commit])
def test_a_folder_one_may_not_write_is_named(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, NOT_OURS)
    with pytest.raises(ModelDownloadFailed) as caught:
        fetch(tmp_path)
    assert "hub/models--owner--thing may not be written" in caught.value.cause
    assert "ermissions" in caught.value.next_step and "--data-dir" in caught.value.next_step


def test_another_failure_is_still_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the library for large files has a PermissionError of its own, for a login that ran out
    for problem in (ConnectionError("reset"), PermissionError("token expired")):
        failing(monkeypatch, problem)
        with pytest.raises(ModelDownloadFailed, match="cannot be reached"):
            snapshot(tmp_path)


@pytest.mark.parametrize("fetch", [hub.snapshot, lambda r, d: hub.fetch_file(r, (".bin",), d)])
def test_a_name_the_hub_does_not_allow_is_refused_by_name(
    fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(EngineError, match=r"'owner/na\.\.me' is not the id of a hub repository"):
        fetch("owner/na..me", tmp_path)


def test_a_stop_is_answered_while_the_file_under_way_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    told = threading.Event()
    fetched: list[str] = []

    def slow(repo: str, name: str, **named: Any) -> str:
        assert told.wait(60), "it is said before the file is complete"
        fetched.append(name)
        return ""

    def tell(sentence: str) -> None:
        said.append(sentence)
        told.set()

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", slow)
    files = ["a.safetensors", "b.safetensors"]
    with pytest.raises(KeyboardInterrupt):
        hub._download("owner/thing", commit(tmp_path), files, 10, stop, tell)
    assert fetched == files[:1] and len(said) == 1 and "file" in said[0]
