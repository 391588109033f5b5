"""Text from elsewhere on a terminal: what would steer it is printed as an escape."""

from __future__ import annotations

import re
import sys

# Control characters but tabs and line ends, and those that turn the direction of what follows.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """The text with every character that steers a terminal as its escape, as in Python."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def tell(text: str) -> None:
    """A line on stdout, of what a command was run for."""
    print(harmless(text), flush=True)


def say(text: str) -> None:
    """A sentence for the person, on stderr."""
    print(harmless(text), file=sys.stderr, flush=True)
