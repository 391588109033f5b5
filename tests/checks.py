"""Every check in one run: lint, format, types, tests. Started by `python launch.py test`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
WHOLE_TREE = (
    ("ruff check", ("ruff", "check", ".")),
    ("ruff format", ("ruff", "format", "--check", ".")),
    ("mypy", ("mypy",)),
)
# Tests that need neither models nor time run in several processes of one thread each; those that
# load models, drive a browser or kill programs at a given moment run alone, one after the other.
SIDE_BY_SIDE = ("tests/unit", "tests/kernels")
MOST_PROCESSES = 4  # each holds torch


def say(text: str) -> None:
    """One line about what the checks are at."""
    print(text, file=sys.stderr, flush=True)


def find_chromium() -> str | None:
    """A browser that the desk's tests can drive, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def ensure_chromium() -> None:
    """Install Chromium from the distribution where that needs no question; else say so."""
    if find_chromium():
        return
    apt = shutil.which("apt-get")
    if apt and sys.platform == "linux" and os.geteuid() == 0:
        say("Installing Chromium for the desk's tests ...")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (["update"], ["install", "-y", "chromium"]):
            done = subprocess.run(
                [apt, "-qq", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                say(f"apt-get {arguments[0]} failed: {done.stderr.strip()[-300:]}")
    if not find_chromium():
        say("The desk's browser tests will be skipped: no Chromium was found. Install it for them.")


def n_processes() -> int:
    """How many processes share the tests that can run beside each other."""
    return max(min(os.cpu_count() or 1, MOST_PROCESSES), 1)


def pytest(*arguments: str, one_thread: bool = False) -> int:
    """Run some tests; returns pytest's exit code."""
    threads = {"OMP_NUM_THREADS": "1"} if one_thread else {}
    command = [sys.executable, "-m", "pytest", *arguments]
    return subprocess.call(command, cwd=ROOT, env={**os.environ, **threads})


def every_test() -> int:
    """All tests, those of SIDE_BY_SIDE first; the exit code of the first run that failed."""
    shared = ("-n", str(n_processes()), "--dist", "loadfile")
    say(f"== pytest {' '.join(SIDE_BY_SIDE)}, {n_processes()} processes")
    beside = pytest(*SIDE_BY_SIDE, *shared, one_thread=True)
    say("== pytest, the rest")
    alone = pytest(*(f"--ignore={folder}" for folder in SIDE_BY_SIDE))
    return beside or alone


def main(arguments: list[str]) -> int:
    """Run the checks; `arguments` go to pytest. Returns pytest's exit code, or 1 if another failed.

    Somebody who names tests runs them alone; that the other checks are left out is said.
    """
    ensure_chromium()
    failed = []
    if arguments:
        say("Chosen tests only: lint, format and types are not checked.")
    for name, command in () if arguments else WHOLE_TREE:
        say(f"== {name}")
        if subprocess.call([sys.executable, "-m", *command], cwd=ROOT) != 0:
            failed.append(name)
    code = pytest(*arguments) if arguments else every_test()
    if code != 0:
        failed.append("pytest")
    passed = "The chosen tests passed." if arguments else "All checks passed."
    say(f"Failed: {', '.join(failed)}." if failed else passed)
    return code or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
