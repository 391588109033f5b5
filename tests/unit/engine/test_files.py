"""Careful writing: who writes beside another loses nothing of his own."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from engine import files


def test_a_file_written_by_two_at_once_is_one_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flushed = tmp_path / "f.json", files.fsync
    others = [{"by": "another"}]

    def written_between(temporary: Path) -> None:
        if others:
            files.write_json(path, others.pop())
        flushed(temporary)

    monkeypatch.setattr(files, "fsync", written_between)
    files.write_json(path, {"by": "the first"})
    assert files.read_json(path) == {"by": "the first"}
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"], "nothing is left behind"


def test_a_digest_that_cannot_be_remembered_is_still_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of models that one may read and not write: write, flush and folder fail alike."""

    def forbidden(*given: Any, **named: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    expected = files.sha256_of(path)
    for owner, name in ((Path, "write_text"), (files, "fsync"), (Path, "mkdir")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, forbidden)
            assert files.cached_sha256(path, tmp_path / "store") == expected
        assert not list(tmp_path.glob("store/*")), "nothing half written is left"
    assert files.cached_sha256(path, tmp_path / "store") == expected
    assert [p.name for p in tmp_path.glob("store/*")] == [files.DIGEST_CACHE]


def test_a_file_that_cannot_be_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: Any) -> str:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    monkeypatch.setattr(files, "sha256_of", broken)
    with pytest.raises(OSError, match="Input/output"):
        files.cached_sha256(path, tmp_path)


@pytest.mark.parametrize(
    ("problem", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("error 28"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(problem: Exception, full: bool) -> None:
    assert files.is_disk_full(problem) is full
