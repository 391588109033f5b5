"""How many threads to compute with beside what else the machine does.

torch's threads wait for each other after every operation. One that has to share its core holds up
all the others, so that beside a single busy program two threads on two cores can be slower than
one (heads/LOG.md). While we compute, we therefore look at what others take, and leave it to them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec

import psutil

LOOK_EVERY_S = 0.5
REMEMBERED_S = 30.0  # how long ago the last look may be when computing begins

_P = ParamSpec("_P")


@dataclass(frozen=True)
class Usage:
    """Seconds since some beginning, summed over the cores that we may use.

    busy_s  in which a core computed, for anybody
    own_s   in which it did for this process
    """

    at_s: float
    busy_s: float
    own_s: float


class Cores:
    """The cores this process may use, and how much of them is taken.

    n_cores  of the machine, or fewer where the process is bound to some
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        bound = getattr(self._process, "cpu_affinity", None)  # not on macOS
        self._ours = bound() if bound is not None else range(psutil.cpu_count() or 1)
        self.n_cores = len(self._ours)

    def usage(self) -> Usage:
        """What was used until now."""
        each = psutil.cpu_times(percpu=True)
        kinds = ("user", "nice", "system", "irq", "softirq")
        ours = [each[core] for core in self._ours if core < len(each)]
        busy = sum(getattr(core, kind, 0.0) for core in ours for kind in kinds)
        own = self._process.cpu_times()
        return Usage(time.monotonic(), busy, own.user + own.system)


class ThreadShare:
    """Sets torch's threads to the cores that others leave free.

    Never more than torch had, and never fewer than one.
    """

    def __init__(self, announce: Callable[[str], None], cores: Cores | None = None) -> None:
        self._announce = announce
        self._cores = cores or Cores()
        self._told: set[int] = set()
        self._seen = self._cores.usage()
        self._threads: int | None = None  # of the last look

    def notice(self) -> None:
        """Count from now, unless the last look is still remembered.

        Called before something that takes its time without computing, as the loading of a model:
        by what that time says the computing after it begins.
        """
        now = self._cores.usage()
        if now.at_s - self._seen.at_s > REMEMBERED_S:
            self._seen, self._threads = now, None

    @contextmanager
    def computing(self) -> Iterator[Callable[[], None]]:
        """Inside, the calling thread computes with as many threads as suits; afterwards as before.

        Yields what is to be called between operations: it looks at the machine, at most every
        LOOK_EVERY_S seconds. The first look is at the time since the last one.
        """
        import torch

        most = torch.get_num_threads()

        def look() -> None:
            if time.monotonic() >= self._seen.at_s + LOOK_EVERY_S:
                self._set(most)

        if most == 1:
            yield lambda: None
            return
        self._set(most, oldest_s=REMEMBERED_S)
        try:
            yield look
        finally:
            torch.set_num_threads(most)

    def _set(self, most: int, *, oldest_s: float = math.inf) -> None:
        """Look, and compute with what suits; with all threads if the last look is older than that.

        While we compute it may be as old as a chunk takes.
        """
        import torch

        before, self._seen = self._seen, self._cores.usage()
        if self._seen.at_s - before.at_s > oldest_s:
            threads = most
        elif self._seen.at_s - before.at_s < LOOK_EVERY_S:
            threads = min(self._threads or most, most)
        else:
            threads = suited(most, self._cores.n_cores, others_share(before, self._seen))
        self._threads = threads
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
            self._tell(threads, most)

    def _tell(self, n_threads: int, most: int) -> None:
        """Say once of each number below the most that others keep us from having more."""
        if n_threads < most and n_threads not in self._told:
            self._told.add(n_threads)
            self._announce(
                f"Other programs keep this machine busy: computing with {n_threads} of {most} "
                "threads until they are done."
            )


def others_share(before: Usage, after: Usage) -> float:
    """How many cores were busy for others, on average between two looks."""
    seconds = after.at_s - before.at_s
    taken = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    return max(taken / seconds, 0.0) if seconds > 0 else 0.0


def suited(most: int, n_cores: int, others: float) -> int:
    """The threads that cores with nothing else to do are there for, of at most `most`."""
    return max(1, min(most, int(n_cores - others + 0.5)))


def both(call: Callable[_P, object], look: Callable[[], None]) -> Callable[_P, None]:
    """`call`, and a look after it."""

    def called(*args: _P.args, **kwargs: _P.kwargs) -> None:
        call(*args, **kwargs)
        look()

    return called
