"""How far the work is, and how long it will take."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

# (stage, done, total): stages are "parse", "fetch" (bytes), "load", "read" and "read_again"
# (tokens), and "save".
OnProgress = Callable[[str, int, int], None]

STAGE_NAMES = {
    "parse": "Opening the document",
    "fetch": "Fetching the model",
    "load": "Loading the model",
    "read": "Reading",
    "read_again": "Reading a second time",
    "save": "Saving the session",
}
OPENING_STAGES = ("parse", "fetch", "load")
READING_STAGES = ("read", "read_again")


def ignore_progress(stage: str, done: int, total: int) -> None:
    """OnProgress for callers that do not want to know."""


class RateMeter:
    """Speed and time left of one reading, from the times at which tokens were done.

    The cost of a chunk grows until the budget is full and is steady from then on, so the time left
    follows the latest RECENT updates, not the mean of all.
    """

    RECENT = 8

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._recent: deque[tuple[float, int]] = deque(maxlen=self.RECENT + 1)
        self._all: list[tuple[float, int]] = []
        self.total = 0

    def start(self, done: int, total: int) -> None:
        """Begin at `done` tokens (more than 0 when a reading is resumed)."""
        self.total = total
        self._all = [(self._clock(), done)]
        self._recent.clear()
        self._recent.append(self._all[0])

    def update(self, done: int, total: int) -> None:
        """Note that `done` tokens are read now."""
        self.total = total
        point = (self._clock(), done)
        self._all.append(point)
        self._recent.append(point)

    @property
    def tok_s(self) -> float:
        """Tokens per second over the latest updates; 0 before the second."""
        return _rate(self._recent[0], self._recent[-1]) if len(self._recent) > 1 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the present speed, or None while it is unknown."""
        rate = self.tok_s
        return (self.total - self._all[-1][1]) / rate if rate > 0 else None

    def quarters(self) -> list[float]:
        """Tokens per second in each quarter of what was read; empty if nothing was."""
        if len(self._all) < 2 or self._all[-1][1] <= self._all[0][1]:
            return []
        first, last = self._all[0][1], self._all[-1][1]
        edges = [first + (last - first) * n / 4 for n in range(5)]
        times = [self._time_at(edge) for edge in edges]
        return [(edges[n + 1] - edges[n]) / max(times[n + 1] - times[n], 1e-9) for n in range(4)]

    def _time_at(self, tokens: float) -> float:
        """When this many tokens were done, interpolated between two updates."""
        for (t0, n0), (t1, n1) in zip(self._all, self._all[1:], strict=False):
            if n0 <= tokens <= n1 and n1 > n0:
                return t0 + (t1 - t0) * (tokens - n0) / (n1 - n0)
        return self._all[-1][0]


class ProgressLine:
    """Progress for a person at a terminal, on stderr: one line that is rewritten, or plain lines.

    Without a terminal a line is printed when a stage begins and ends, and every EVERY_S between.
    """

    EVERY_S = 5.0

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._quiet = quiet
        self._stage = ""
        self._printed_at = 0.0
        self._open_line = False
        self._meter = RateMeter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """OnProgress."""
        now = time.perf_counter()
        new_stage = stage != self._stage
        if new_stage:
            self._stage = stage
            self._meter.start(done, total)
        else:
            self._meter.update(done, total)
        ended = total > 0 and done >= total
        wait = 0.1 if self._live else self.EVERY_S
        if self._quiet or not (new_stage or ended or now - self._printed_at >= wait):
            return
        self._printed_at = now
        self._show(self._text(stage, done, total))

    def say(self, text: str) -> None:
        """Print one sentence on a line of its own."""
        if self._quiet:
            return
        self.end()
        print(text, file=self._stream, flush=True)

    def end(self) -> None:
        """Leave the rewritten line as it stands and go on below it."""
        if self._open_line:
            print(file=self._stream, flush=True)
            self._open_line = False

    def _show(self, text: str) -> None:
        if self._live:
            print(f"\r\x1b[K{text}", end="", file=self._stream, flush=True)
            self._open_line = True
        else:
            print(text, file=self._stream, flush=True)

    def _text(self, stage: str, done: int, total: int) -> str:
        name = STAGE_NAMES.get(stage, stage)
        if total <= 0:
            return f"{name} ..."
        if stage == "fetch":
            return f"{name}: {done / 2**20:.0f} of {total / 2**20:.0f} MiB"
        text = f"{name}: {done} of {total}"
        if stage in READING_STAGES:
            text += " tokens"
            if self._meter.tok_s:
                text += f", {self._meter.tok_s:.0f} tok/s"
            if self._meter.eta_s and done < total:
                text += f", {clock_text(self._meter.eta_s)} left"
        return text


def clock_text(seconds: float) -> str:
    """Seconds as a person reads them: 42 s, 3 min 20 s, 1 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _rate(first: tuple[float, int], last: tuple[float, int]) -> float:
    elapsed = last[0] - first[0]
    return (last[1] - first[1]) / elapsed if elapsed > 0 else 0.0
