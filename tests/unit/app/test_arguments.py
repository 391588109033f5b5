"""Mistakes on the command line end with 2 and a reason, before anything is opened or loaded."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import pytest

from app.cli import main
from app.commands.arguments import heads_file, page_range

NOT_UTF8 = "\udcff what"
HUGE = "99999999999999999999999"


def ended(arguments: list[str]) -> Any:
    """The exit code, whether argparse or the command ends."""
    try:
        return main(arguments)
    except SystemExit as exit_:
        return exit_.code


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: Any, **__: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("engine.loader.load_model", unwanted)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["ui", "--port", "99999"], "65535"),
        (["ui", "--port=-1"], "below 0"),
        (["ui", "--model", ""], "empty"),
        (["--data-dir", "", "sessions"], "empty"),
        (["sessions", "--data-dir", ""], "empty"),
        (["ask", "", "-q", "Who?"], "empty"),
        (["ask", "x.txt", "-q", " "], "empty"),
        (["ask", "x.txt", "-q", NOT_UTF8], "UTF-8"),
        (["ask", "x.txt", "-q", "Who?", "--model", ""], "empty"),
        (["ask", "x.txt", "-q", "Who?", "--model", NOT_UTF8], "UTF-8"),
        (["ask", "x.txt", "-q", "Who?", "--scorer", ""], "empty"),
        (["ask", "x.txt", "-q", "Who?", "--seed", HUGE], "64 bits"),
        (["ask", "x.txt", "-q", "Who?", "--temperature", "nan"], "nan"),
        (["ask", "x.txt", "-q", "Who?", "--temperature", "inf"], "inf"),
        (["ingest", ""], "empty"),
        (["ingest", "x.txt", "--parse-only", "--kv-bits", ""], "empty"),
        (["models", "get", ""], "empty"),
        (["train-heads", ""], "empty"),
        (["train-heads", "tiny", "--data", ""], "empty"),
        (["train-heads", "tiny", "--data", "x.txt", "--seed", HUGE], "64 bits"),
        (["train-heads", "tiny", "--data", "x.txt", "--rounds=-1"], "below 0"),
        (["train-heads", "tiny", "--data", "x.txt", "--out", "x.md"], "not end in .safetensors"),
        (["train-heads", "tiny", "--data", "x.txt", "--out", "x"], "not end in .safetensors"),
        (["train-heads", "tiny", "--data", "x.txt", "--out", "x.bin"], "not end in .safetensors"),
        (
            ["train-heads", "tiny", "--data", "x.txt", "--out", f"{__file__}/a/x.safetensors"],
            f"{__file__} is no folder",
        ),
        (["eval", "--data", "", "--model", "tiny"], "empty"),
        (["eval", "--data", "x.jsonl", "--log", "."], "is a folder"),
        (["eval", "--data", "x.jsonl", "--sinks=-1"], "below 0"),
        (["bench", "ingest", "--plot", "/no-such-folder/x.svg"], "no folder"),
        (["bench", "ingest", "--plot", "."], "is a folder"),
        (["bench", "ingest", "--text", ""], "empty"),
        (["questions", "kv", "--out", ""], "empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_word_is_named(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and reason in err and "should not have" not in err


def test_a_file_for_heads_may_lie_in_a_folder_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tmp_path / "new" / "x.safetensors"
    assert heads_file(str(wanted)) == wanted and not wanted.parent.exists()
    monkeypatch.setattr("os.access", lambda folder, how: False)
    with pytest.raises(ArgumentTypeError, match="nothing can be written"):
        heads_file(str(wanted))


@pytest.mark.parametrize(("text", "pages"), [("3-7", (3, 7)), ("4", (4, 4))])
def test_page_ranges(text: str, pages: tuple[int, int]) -> None:
    assert page_range(text) == pages


@pytest.mark.parametrize("command", [["sessions"], ["models"], ["bench", "restore"]])
@pytest.mark.parametrize("folder", ["a file", "/proc/no-such", "~no-such-person/x"])
def test_a_data_directory_that_cannot_be_is_named(
    folder: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if folder == "a file":
        (tmp_path / "file").write_text("x")
        folder = str(tmp_path / "file")
    code = ended([*command, "--data-dir", folder])
    err = capsys.readouterr().err
    assert code == 2, err
    assert folder in err and "--data-dir" in err and "should not have" not in err


def test_doctor_goes_on_without_a_data_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert ended(["doctor", "--data-dir", str(tmp_path / "file")]) == 0
    assert "cannot be used" in capsys.readouterr().out
