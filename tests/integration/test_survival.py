"""A reading that is killed leaves nothing broken, and the same command finishes it."""

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
SENTENCES = [
    f"On day {n} the harbour master counted {(n * 37) % 91} ships and wrote the number down."
    for n in range(110)
]


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "harbour log.txt"
    path.write_text("\n\n".join(SENTENCES), encoding="utf-8")
    return path


def command(document: Path, data: Path, models: Path, *more: str) -> tuple[list[str], Any]:
    line = [sys.executable, "-m", "app", "ask", str(document), "-q", "How many ships on day 3?"]
    line += ["--model", "smollm2-135m", "--budget", "512", "--chunk", "64", "--json"]
    line += ["--max-new-tokens", "8", "--data-dir", str(data), *more]
    env = {**os.environ, "LONGREAD_MODELS": str(models), "PYTHONPATH": str(ROOT)}
    return line, env


def run(document: Path, data: Path, models: Path, *more: str) -> subprocess.CompletedProcess[str]:
    line, env = command(document, data, models, *more)
    return subprocess.run(line, env=env, capture_output=True, text=True, timeout=240)


def kill_when(document: Path, data: Path, models: Path, ready: Any) -> None:
    """Start the reading and kill -9 it as soon as `ready()` says so."""
    line, env = command(document, data, models)
    process = subprocess.Popen(
        line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    limit = time.monotonic() + 200
    while not ready():
        assert process.poll() is None, "the reading ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_in_the_middle_it_resumes_and_answers_as_if_nothing_had_happened(
    document: Path, tmp_path: Path, models_dir: Path
) -> None:
    whole = run(document, tmp_path / "calm", models_dir)
    assert whole.returncode == 0, whole.stderr
    data = tmp_path / "killed"
    checkpoints = data / "snapshots"
    kill_when(document, data, models_dir, lambda: list(checkpoints.glob("*.partial")))
    again = run(document, data, models_dir)
    assert again.returncode == 0, again.stderr
    expected, found = json.loads(whole.stdout), json.loads(again.stdout)
    assert found["resumed_from"] >= 512
    assert found["answers"][0]["text"] == expected["answers"][0]["text"]
    assert found["cache"]["bytes"] == expected["cache"]["bytes"]
    assert not list(checkpoints.glob("*.partial"))
    third = json.loads(run(document, data, models_dir).stdout)
    assert third["reused"] is True
    assert third["answers"][0]["text"] == expected["answers"][0]["text"]
    assert third["answers"][0]["prefilled_tokens"] < 400
    assert third["answers"][0]["reused_tokens"] == third["cache"]["kept_tokens"]


def test_killed_while_parsing_it_starts_again(
    document: Path, tmp_path: Path, models_dir: Path
) -> None:
    data = tmp_path / "killed"
    kill_when(document, data, models_dir, lambda: (data / "documents").exists())
    again = run(document, data, models_dir)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["reused"] is False


def test_a_damaged_snapshot_is_refused_by_name_and_read_again_on_request(
    document: Path, tmp_path: Path, models_dir: Path
) -> None:
    data = tmp_path / "data"
    assert run(document, data, models_dir).returncode == 0
    (file,) = (data / "snapshots").glob("*/layers-001.safetensors")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.write_bytes(raw)
    refused = run(document, data, models_dir)
    assert refused.returncode == 1
    assert "layers-001.safetensors" in refused.stderr
    assert run(document, data, models_dir, "--reread").returncode == 0
