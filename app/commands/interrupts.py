"""Ctrl-C: a request to work that looks at it, the end of work that does not."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any

from app.commands.terminal import say

GRACE_S = 2.0


class StopSwitch:
    """Ctrl-C as a request, where the work asks for it: between chunks, and between tokens.

    The second ends the program. So does the first for as long as nothing has asked, as while a
    document is opened and a model loaded, of which nothing is worth keeping: by KeyboardInterrupt,
    and where the main thread is in a call that hears of none (a tokenizer's), GRACE_S later by the
    end of the process. What that leaves of a document the next start sweeps.
    """

    def __init__(self) -> None:
        self.asked = False
        self._heeded = False
        self._answered = False
        self._before: Any = None
        self._fd_before = -1

    def __call__(self) -> bool:
        """Whether to stop; whoever asks this heeds the answer."""
        self._heeded = True
        return self.asked

    def begin(self) -> None:
        """The next document's turn. Raises KeyboardInterrupt if an end was asked for before."""
        if self.asked:
            raise KeyboardInterrupt
        self._heeded = False

    def __enter__(self) -> StopSwitch:
        self._alarm, self._rung = socket.socketpair()
        self._alarm.setblocking(False)  # as signal.set_wakeup_fd wants it
        self._before = signal.signal(signal.SIGINT, self._on_signal)
        self._fd_before = signal.set_wakeup_fd(self._alarm.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="interrupts", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        signal.set_wakeup_fd(self._fd_before)
        signal.signal(signal.SIGINT, self._before)
        self._alarm.close()  # which ends the watch

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._answered = True
        if self.asked or not self._heeded:
            raise KeyboardInterrupt
        self.asked = True
        say("\nStopping after this step (Ctrl-C again to stop at once) ...")

    def _watch(self) -> None:
        """End the process if the first Ctrl-C reaches nobody: handlers wait for the main thread.

        Listens until the switch ends: where nobody does, Python says so at the next signal.
        """
        from app.messages import EXIT_INTERRUPTED

        rung = False
        with self._rung:
            while signals := self._rung.recv(1):
                if rung or signals[0] != signal.SIGINT:
                    continue
                rung = True
                time.sleep(GRACE_S)
                if not self._answered and not self._heeded:
                    say("Interrupted.")
                    os._exit(EXIT_INTERRUPTED)
