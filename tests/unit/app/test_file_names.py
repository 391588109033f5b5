"""Names of files that are no text, or too long to be a name: read, or refused by their name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.library import Library
from app.logs import LOG_NAME
from app.paths import data_paths
from tests.unit.app.tiny_reader import BOOK, use_tiny_model

TINY = ["--model", "tiny", "--budget", "400", "--chunk", "128", "--max-new-tokens", "2"]
NOT_UTF8 = os.fsdecode(b"bad\xff.txt")
# Windows stores names as UTF-16, macOS refuses what is not UTF-8.
anywhere = pytest.mark.skipif(sys.platform != "linux", reason="no such names here")


@anywhere
def test_a_file_whose_name_is_not_utf8_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_model(monkeypatch)
    (tmp_path / NOT_UTF8).write_text(BOOK, encoding="utf-8")
    code = main(["ask", str(tmp_path / NOT_UTF8), "-q", "Who?", "--json", *TINY])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert json.loads(out)["answers"][0]["question"] == "Who?"
    library = Library(data_paths())
    assert library.sessions()[0].file_name == "bad?.txt"
    library.close()


@pytest.mark.parametrize(
    "name", ["n" * 300, pytest.param(os.fsdecode(b"no\xff.txt"), marks=anywhere), "x/\u00e9.txt"]
)
@pytest.mark.parametrize("command", [["ask", "-q", "Who?"], ["ingest"], ["ingest", "--parse-only"]])
def test_a_file_that_is_not_there_is_a_document_that_cannot_be_read(
    command: list[str], name: str, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, name]) == 3
    err = capsys.readouterr().err
    assert "should not have" not in err and "None" not in err
    assert not (data_dir / "logs" / LOG_NAME).exists(), "it is no fault of ours"


@anywhere
def test_a_name_that_is_not_utf8_is_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError(f"in {NOT_UTF8}")

    monkeypatch.setattr("app.service.Reader.open", broken)
    assert main(["ingest", NOT_UTF8]) == 1
    assert "Logging error" not in capsys.readouterr().err
    assert r"bad\udcff.txt" in (data_paths().logs / LOG_NAME).read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [["delete"], ["export"]])
def test_no_session_has_a_name_that_is_not_utf8(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "\udcff"]) == 2
    assert "no session" in capsys.readouterr().err


@pytest.mark.parametrize("stem", ["Alice's Adventures, Vol. 1 \u2013 Notes & Letters", "n" * 120])
def test_a_title_from_a_file_name_is_that_name(
    stem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_model(monkeypatch)
    (tmp_path / f"{stem}.txt").write_text(BOOK, encoding="utf-8")
    assert main(["ingest", str(tmp_path / f"{stem}.txt"), "--json", *TINY[:-2]]) == 0
    assert json.loads(capsys.readouterr().out)["document"]["title"] == stem
    library = Library(data_paths())
    assert library.sessions()[0].title == stem
    library.close()


def test_a_title_of_the_documents_own_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tiny_model(monkeypatch)
    (tmp_path / "a, b.md").write_text(f"# Wolves\n\n{BOOK}", encoding="utf-8")
    assert main(["ingest", str(tmp_path / "a, b.md"), "--json", *TINY[:-2]]) == 0
    assert json.loads(capsys.readouterr().out)["document"]["title"] == "Wolves"
