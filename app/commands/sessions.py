"""`sessions`: what the library holds."""

from __future__ import annotations

import argparse

from app.commands.common import add_json, opened_library, print_json
from app.commands.terminal import tell
from app.desk import words
from app.records import SESSION_READY

NAME = "sessions"
HELP = "list the documents that were read"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the list, the last used first."""
    from app.reports import library_entry

    with opened_library(args) as library:
        records = library.sessions()
    if args.json:
        print_json([library_entry(record) for record in records])
        return 0
    if not records:
        print("No document has been read yet. Try: ask FILE -q QUESTION")
    for record in records:
        ready = record.state == SESSION_READY
        state = "" if ready else f"  [{record.state}] {record.problem}".rstrip()
        tell(
            f"{record.id}  {record.title}  {record.n_tokens} tokens, "
            f"{record.nbytes / 2**20:.1f} MiB, {words.count(record.n_questions, 'question')}, "
            f"{record.model}{state}"
        )
    return 0
