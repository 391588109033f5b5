"""Runs the worker and survives it: a hang is killed, a crash becomes an error with a cause."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingest.errors import IngestError, ParserCrashed, ParseTimeout, error_from_dict
from ingest.limits import MIB, ParseLimits

_ROOT = Path(__file__).resolve().parent.parent
_SUPPORT = "Please report this, with the file if you can share it."
PATIENCE = 3  # times timeout_s, for a worker that goes on page by page
_CPU_SIGNAL = int(getattr(signal, "SIGXCPU", 0)) or 10_000
WORKER_COMMAND = (sys.executable, "-m", "ingest.worker")


def run_guarded(
    request: dict[str, Any],
    limits: ParseLimits,
    command: Sequence[str] = WORKER_COMMAND,
) -> str:
    """The document as JSON, from `command RESULT PROGRESS` with the request on its stdin.

    The worker runs in a folder and session of its own and is killed, with anything it started, at
    limits.timeout_s (see there) or when this call is interrupted. Its output is kept for the error
    message and not printed. Raises the worker's IngestError, ParseTimeout or ParserCrashed.
    """
    with tempfile.TemporaryDirectory(prefix="longread-parse-") as name:
        folder = Path(name)
        result, progress, log = folder / "result.json", folder / "progress", folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, str(result), str(progress)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=_environment(),
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
            try:
                in_time = _wait(process, json.dumps(request).encode(), progress, limits.timeout_s)
            finally:
                _kill(process)
        if not in_time or process.returncode == -_CPU_SIGNAL:
            raise _timeout(progress, limits)
        return _answer(result, process.returncode, log, limits)


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    paths = [str(_ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["PYTHONUTF8"] = "1"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"):
        environment[name] = "1"  # threads reserve address space, which is what is limited
    return environment


def _wait(
    process: subprocess.Popen[bytes], request: bytes, progress: Path, timeout_s: float
) -> bool:
    """Whether the worker ended by itself: within timeout_s, or later if it kept turning pages."""
    step_s = timeout_s / 2
    seen = (0, 0)
    for step in range(1, 2 * PATIENCE + 1):
        try:
            process.communicate(request if step == 1 else None, timeout=step_s)
            return True
        except subprocess.TimeoutExpired:
            now = _progress(progress)
            if step >= 2 and now == seen:
                return False
            seen = now
    return False


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _answer(result: Path, code: int, log: Path, limits: ParseLimits) -> str:
    if code != 0 or not result.exists():
        raise _crash(code, log, limits)
    answer = json.loads(result.read_bytes())
    if "error" in answer:
        raise error_from_dict(answer["error"])
    document: str = answer["document"]
    return document


def _timeout(progress: Path, limits: ParseLimits) -> ParseTimeout:
    page, count = _progress(progress)
    where = f" It had come to part {page} of {count}." if page else ""
    next_step = f"Open pages 1-{page - 1} of it instead." if page > 1 else "Try another copy of it."
    return ParseTimeout(
        f"Reading took longer than {limits.timeout_s:g} s and was stopped.{where}", next_step
    )


def _progress(path: Path) -> tuple[int, int]:
    if not path.exists():
        return 0, 0
    words = path.read_text("ascii", errors="replace").split()
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return 0, 0
    return int(words[0]), int(words[1])


def _crash(code: int, log: Path, limits: ParseLimits) -> IngestError:
    tail = " ".join(log.read_text("utf-8", errors="replace").split())[-300:]
    if "MemoryError" in tail or "Cannot allocate memory" in tail or "failed to map" in tail:
        from ingest.worker import out_of_memory

        return out_of_memory(limits)
    cause = f"signal {_signal_name(-code)}" if code < 0 else f"exit code {code}"
    detail = f" Its last words: {tail}" if tail else ""
    return ParserCrashed(
        f"The reading process died ({cause}; memory limit {limits.memory_bytes // MIB} MiB)."
        f"{detail}",
        f"The file may be damaged: print it to a new PDF. {_SUPPORT}",
    )


def _signal_name(number: int) -> str:
    names = {int(known): known.name for known in signal.Signals}
    return names.get(number, str(number))
