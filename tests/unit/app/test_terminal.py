"""What a document or a file is called does not steer the terminal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from app.cli import main
from app.paths import data_paths
from tests.unit.app.tiny_reader import BOOK, use_tiny_model

STEERING = "\x1b\x9b\u202e\u2066\x07"
TITLE = "Evil\x1b[31m \x9b2J \u202etxt \u2066 \x07 \u0634"
TINY = ["--model", "tiny", "--budget", "400", "--chunk", "128"]


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A document whose title, name and text are full of control characters."""
    use_tiny_model(monkeypatch)
    monkeypatch.chdir(tmp_path)
    body = f"<p>{BOOK}</p>"
    path = tmp_path / "evil \x1b[2J.html"
    path.write_text(f"<title>{TITLE}</title>{body}", encoding="utf-8")
    return str(path)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    return out + err


def test_no_command_prints_a_title_raw(evil: str, capsys: pytest.CaptureFixture[str]) -> None:
    said_of: list[str] = []
    for command in (
        ["ingest", "--parse-only", evil],
        ["ask", evil, "-q", "Who?", "--max-new-tokens", "2", *TINY],
        ["sessions"],
        ["ingest", evil, f"{evil}.gone", *TINY],
    ):
        main(command)
        said_of.append(said(capsys))
    main(["sessions", "--json"])
    session = json.loads(capsys.readouterr().out)[0]["session"]
    main(["export", session, "evil.longread"])
    shutil.rmtree(data_paths().snapshot(session))
    for command in (
        ["doctor"],
        ["delete", session],
        ["import", "evil.longread"],
        ["ask", f"{evil}.gone", "-q", "Who?"],
    ):
        main(command)
        said_of.append(said(capsys))
    assert len(said_of) == 8
    for text in said_of:
        assert not set(text) & set(STEERING), repr(text)
    assert r"\x9b2J" in said_of[0] and "\u0634" in said_of[0]
    assert all("Evil" in text for text in said_of[:3])
