"""Processes that measure for us: one JSON line asked, one answered, on their own stdin and stdout.

A reply is an object; {"progress": [done, total]} may come before it any number of times, and
{"error": cause, "next_step": text, "exit_code": n} instead of it.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.benchmarks.errors import ChildFailed

LEAVE_S = 5.0


class Child:
    """A process that answers; leaving the `with` block ends it."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """name: for messages. Raises ChildFailed if the command cannot be started."""
        self.name = name
        self._on_progress = on_progress or (lambda done, total: None)
        try:
            self._process = subprocess.Popen(
                command,
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
            )
        except OSError as problem:
            raise ChildFailed(f"{name} cannot be started: {problem}.") from problem

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        process = self._process
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                _close(pipe)
        if error[0] is not None:
            process.kill()
        try:
            process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its reply. Raises ChildFailed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None
        for line in self._process.stdout:
            reply = self._parsed(line)
            if "progress" in reply:
                self._on_progress(*reply["progress"])
                continue
            if "error" in reply:
                raise ChildFailed(
                    reply["error"], reply.get("next_step", ""), reply.get("exit_code", 1)
                )
            return reply
        raise self._ended()

    def _parsed(self, line: str) -> dict[str, Any]:
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise ChildFailed(f"{self.name} said what is no reply: {line.strip()[:80]!r}.")
        return reply

    def _ended(self) -> ChildFailed:
        code = self._process.wait()
        if code == -signal.SIGILL:
            return ChildFailed(
                f"{self.name} stopped at an instruction that it may not use here (SIGILL).",
                "It was built for another processor, or by a compiler that gets this one wrong "
                "(GCC 12 and AMX, for one); build it again with other flags.",
            )
        return ChildFailed(
            f"{self.name} ended with exit code {code} before it answered.",
            "What it printed stands above; shorter --lengths need less memory.",
        )


def _close(pipe: Any) -> None:
    try:
        pipe.close()
    except OSError:
        return  # what was left to send, to a process that is gone
