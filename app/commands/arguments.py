"""Words of the command line as values: each function is an argparse type and refuses with a reason.

An empty word is refused everywhere: it is a variable that a script forgot to set, and would
silently mean the default.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

LAST_PORT = 65_535
HEADS_SUFFIX = ".safetensors"
# What torch takes for a seed.
SEEDS = (-(2**63), 2**64 - 1)


def filled(text: str) -> str:
    """A word that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def readable(text: str) -> str:
    """A word that is not empty, and whose letters can be stored and shown."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8") from None
    return filled(text)


def question(text: str) -> str:
    """What somebody asks: readable, and more than blanks."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the question is empty")
    return readable(text)


def a_path(text: str) -> Path:
    """A file or folder, which need not be there."""
    return Path(filled(text))


def no_folder(text: str) -> Path:
    """A file, there or not yet."""
    path = a_path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder")
    return path


def new_file(text: str) -> Path:
    """A file that can be written: its folder is there."""
    path = no_folder(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def heads_file(text: str) -> Path:
    """A file that trained heads can be written to; its folder can be made where it is not there.

    Heads are told from other files by their name, and their card lies beside them as .md.
    """
    path = no_folder(text)
    if path.suffix != HEADS_SUFFIX:
        raise argparse.ArgumentTypeError(f"{text} does not end in {HEADS_SUFFIX}")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is no folder")
    if not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"nothing can be written to {there}")
    return path


def page_range(text: str) -> tuple[int, int]:
    """A page range as typed: "10-20", or "7" for one page."""
    first, dash, last = text.partition("-")
    try:
        pages = (int(first), int(last if dash else first))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one range of pages, like 10-20 or 7"
        ) from None
    if not 1 <= pages[0] <= pages[1]:
        raise argparse.ArgumentTypeError(
            f"{text!r}: pages count from 1, and the smaller comes first, as in 10-20"
        )
    return pages


def budget(text: str) -> int:
    """Entries to keep, 0 for "all"."""
    return 0 if text == "all" else positive(text)


def above_zero(text: str) -> float:
    """A finite number above 0, as typed."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def positive(text: str) -> int:
    """A whole number of at least 1, as typed; underscores may group its digits."""
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def count(text: str) -> int:
    """A whole number of at least 0."""
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def port(text: str) -> int:
    """A port of this machine; 0 is any free one."""
    value = count(text)
    if value > LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text} is above {LAST_PORT}, the last port there is")
    return value


def seed(text: str) -> int:
    """A number that draws can be repeated with."""
    value, (least, most) = _whole(text), SEEDS
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text} does not fit into 64 bits")
    return value


def _whole(text: str) -> int:
    try:
        return int(text.replace("_", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
