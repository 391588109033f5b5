"""JSON on stdout can be parsed whatever letters the stream has."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from app.cli import main

TITLE = "m\u00fcnchen - \u6771\u4eac \U0001f5fc"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8", "UTF8", "utf-16"])
def test_json_is_whole_in_every_encoding(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / f"{TITLE}.txt"
    document.write_text("The tower is red. " * 9, encoding="utf-8")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert main(["ingest", "--parse-only", "--json", str(document)]) == 0
    text = written.getvalue().decode(encoding)
    assert json.loads(text)["title"] == TITLE
    assert ("\u6771" in text) == encoding.lower().startswith("utf")


def test_a_stream_without_an_encoding_gets_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / f"{TITLE}.txt"
    document.write_text("The tower is red. " * 9, encoding="utf-8")
    kept = io.StringIO()
    monkeypatch.setattr(sys, "stdout", kept)
    assert main(["ingest", "--parse-only", "--json", str(document)]) == 0
    assert json.loads(kept.getvalue())["title"] == TITLE
