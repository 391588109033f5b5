"""Careful writing: who writes beside another loses nothing of his own."""

from __future__ import annotations

from pathlib import Path

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
