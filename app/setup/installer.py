"""Runs pip and uv: a line of progress for the person, the whole output in the log."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time


class SetupFailed(Exception):
    """The environment could not be made; the text is for the user, `code` for the shell."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def say(text: str) -> None:
    """One line to the user, never mixed into a command's own output."""
    print(text, file=sys.stderr, flush=True)


def clean_environment(env: dict[str, str] | None = None) -> dict[str, str]:
    """The environment variables our own processes get: nothing of other Pythons leaks in."""
    env = dict(os.environ if env is None else env)
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):
        env.pop(name, None)
    env.update(PYTHONNOUSERSITE="1", PYTHONUTF8="1", PIP_USER="0")
    hosts = [h for h in env.get("NO_PROXY", env.get("no_proxy", "")).split(",") if h]
    if hosts != ["*"]:  # which means every host, and only when it stands alone
        hosts += [h for h in ("localhost", "127.0.0.1", "::1") if h not in hosts]
    env["NO_PROXY"] = env["no_proxy"] = ",".join(hosts)
    return env


class Progress:
    """One line that says what the installer is doing: phase, packages so far, seconds."""

    PHASES = re.compile(
        r"\s*(Collecting|Downloading|Installing|Building|Using cached|Resolved|Prepared) (.*)"
    )

    def __init__(self, title: str) -> None:
        self.title, self.phase, self.count = title, "starting", 0
        self.started = time.monotonic()
        self.live = sys.stderr.isatty()
        self.stopped = threading.Event()
        self.clock = threading.Thread(target=self.tick, daemon=True)
        self.clock.start()

    def tick(self) -> None:
        """Repaint each second on a terminal; elsewhere print a line now and then."""
        while not self.stopped.wait(1 if self.live else 20):
            if self.live:
                width = max(shutil.get_terminal_size().columns - 1, 20)
                sys.stderr.write("\r" + str(self)[:width].ljust(width))
                sys.stderr.flush()
            else:
                say(str(self))

    def take(self, line: str) -> None:
        """Take one line of the installer's output."""
        found = self.PHASES.match(line)
        if not found:
            return
        word, rest = found.groups()
        self.count += word == "Collecting"
        if word == "Installing":
            rest = "{} packages".format(rest.count(",") + 1)
        self.phase = f"{word.lower()} {rest.split(' (from ')[0].strip()[:60]}"

    def __str__(self) -> str:
        seconds = time.monotonic() - self.started
        return f"{self.title}: {self.count} packages, {self.phase} ({seconds:.0f} s)"

    def end(self, outcome: str) -> None:
        """End the line and say how it came out."""
        self.stopped.set()
        self.clock.join()
        if self.live:
            sys.stderr.write("\r")
        done = f"{self.title}: {outcome} after {time.monotonic() - self.started:.0f} s"
        say(done.ljust(shutil.get_terminal_size().columns - 1) if self.live else done)


CAUSES = (
    (r"No space left|not enough space|Disk quota", "the disk is full; free some space", 5),
    (r"CERTIFICATE_VERIFY_FAILED", "a proxy replaces certificates; set PIP_CERT to its own", 1),
    (
        r"NewConnectionError|NameResolution|getaddrinfo|ConnectionError|unreachable|timed out|"
        r"dns error|error sending request",
        "the package index was not reached; connect to the internet, then start again",
        1,
    ),
    (
        r"Access is denied|being used by another|PermissionError",
        "a file is in use or locked; close Longread, then start again",
        1,
    ),
    (
        r"No matching distribution|no wheels",
        "a package is not made for this Python; take 3.11, 3.12 or 3.13",
        1,
    ),
)


class Installer:
    """Runs installers one after another, with everything they print in one log."""

    def __init__(self, log: str) -> None:
        self.log = log

    def begin(self, note: str) -> None:
        """Start the log anew."""
        with open(self.log, "w", encoding="utf-8") as log:
            log.write(note + "\n")

    def run(self, command: list[str], title: str) -> int:
        """Run one installer with a progress line; returns its exit code."""
        progress, outcome = Progress(title), "interrupted"
        try:
            with open(self.log, "a", encoding="utf-8") as log:
                log.write("\n$ {}\n".format(" ".join(command)))
                log.flush()
                with subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=clean_environment(),
                    close_fds=os.name != "posix",  # the launcher's lock goes along, nothing else
                    encoding="utf-8",
                    errors="replace",
                ) as process:
                    assert process.stdout is not None
                    for line in process.stdout:
                        log.write(line)
                        progress.take(line)
            outcome = "failed" if process.returncode else "done"
            return process.returncode
        finally:
            progress.end(outcome)

    def failure(self, what: str) -> SetupFailed:
        """What went wrong in the last run, read from the end of the log."""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            tail = file.read().rsplit("\n$ ", 1)[-1]
        for pattern, advice, code in CAUSES:
            if re.search(pattern, tail, re.IGNORECASE):
                return SetupFailed(
                    f"{what} could not be installed: {advice}. The log: {self.log}", code
                )
        return SetupFailed(f"{what} could not be installed. The log says why: {self.log}")
