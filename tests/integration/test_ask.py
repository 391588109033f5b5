"""The main job on a real model: read once, ask often, survive a kill and a damaged file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.weights
ROOT = Path(__file__).resolve().parents[2]
MODEL = ["--model", "smollm2-135m"]
FIRST = (
    "The ferry keeper of Ellis Point was called Marten Voss, and he owned a blind grey horse.\n\n"
)
FILLER = (
    "On the following day the weather was mild, and the people of the village mended their nets. "
    "Nobody came down the road, and nothing of importance was said at the inn.\n\n"
)


def longread(models_dir: Path, *arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does; the data directory comes from the environment."""
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env={**os.environ, "LONGREAD_MODELS": str(models_dir)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        **how,
    )


def answered(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON of a command that went well."""
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "ferry.md"
    path.write_text("# The ferry\n\n" + FIRST + FILLER * 12, encoding="utf-8")
    return path


def test_a_document_is_read_once_and_asked_again(models_dir: Path, book: Path) -> None:
    ask = ["ask", str(book), "--json", *MODEL, "--budget", "384", "--max-new-tokens", "32"]
    question = ["-q", "What was the ferry keeper called?"]
    first = answered(longread(models_dir, *ask, *question))
    assert first["reused"] is False
    assert first["cache"]["kept_tokens"] == pytest.approx(384, rel=0.01)
    assert first["document"]["tokens"] > 400 and len(first["answers"]) == 1
    second = answered(longread(models_dir, *ask, *question, "-q", "What is said of the weather?"))
    assert second["reused"] is True and second["session"] == first["session"]
    assert second["answers"][0]["text"] == first["answers"][0]["text"]
    assert second["prefilled_tokens"] < 400
    assert second["reused_tokens"] == pytest.approx(384, rel=0.01)
    text = book.read_text(encoding="utf-8")
    for answer in second["answers"]:
        assert answer["ttft_s"] > 0 and answer["new_tokens"] > 0
        for citation in answer["citations"]:
            assert citation["quote"] in text


def test_the_whole_cache_answers_from_the_text(models_dir: Path, book: Path) -> None:
    ask = ["ask", str(book), "--json", *MODEL, "--budget", "all", "--max-new-tokens", "24"]
    question = "What was the ferry keeper of Ellis Point called?"
    report = answered(longread(models_dir, *ask, "-q", question))
    assert report["cache"]["kept_fraction"] == 1.0
    (answer,) = report["answers"]
    assert "Voss" in answer["text"]
    assert any("Marten Voss" in citation["quote"] for citation in answer["citations"])


def test_a_killed_reading_goes_on_where_it_was(
    models_dir: Path, data_dir: Path, tmp_path: Path
) -> None:
    book = tmp_path / "long.md"
    book.write_text(FIRST + FILLER * 60, encoding="utf-8")
    command = ["ingest", str(book), *MODEL, "--budget", "384", "--chunk", "64"]
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *command],
        cwd=ROOT,
        env={**os.environ, "LONGREAD_MODELS": str(models_dir)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while not list(data_dir.glob("snapshots/*.partial/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = longread(models_dir, *command, "--json")
    report = answered(done)
    assert "Resuming at token" in done.stderr
    assert report["resumed_from"] > 0
    assert report["prefilled_tokens"] + report["resumed_from"] > report["document"]["tokens"]
    assert not list(data_dir.glob("snapshots/*.partial"))
    assert not list(data_dir.glob("snapshots/*.tmp-*"))


def test_a_damaged_session_is_refused_by_name(models_dir: Path, data_dir: Path, book: Path) -> None:
    ask = ["ask", str(book), "--json", *MODEL, "--budget", "384", "-q", "Who?"]
    ask += ["--max-new-tokens", "4"]
    session = answered(longread(models_dir, *ask))["session"]
    file = data_dir / "snapshots" / session / "layers-001.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    refused = longread(models_dir, *ask)
    assert refused.returncode == 1 and refused.stdout == ""
    assert "layers-001.safetensors" in refused.stderr and "--reread" in refused.stderr
    again = answered(longread(models_dir, *ask, "--reread"))
    assert again["session"] == session and again["reused"] is False
