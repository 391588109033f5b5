"""`sessions`: what the library holds."""

from __future__ import annotations

import argparse

from app.commands.common import add_json, opened_library, print_json
from app.commands.terminal import tell
from app.desk import words
from app.records import SESSION_READING, SESSION_READY, SessionRecord

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
        tell(f"{record.id}  {record.title}  {', '.join(_facts(record))}{_state(record)}")
    return 0


def _facts(record: SessionRecord) -> list[str]:
    """What tells sessions apart, those of one document too."""
    facts = [words.stretch(record), f"{record.n_tokens} tokens"]
    if record.state != SESSION_READING:
        facts += [f"{record.kept_fraction:.1%} kept", words.size(record.nbytes)]
    bits = record.settings.get("kv_bits")
    facts += [f"--kv-bits {bits}"] if bits else []
    return [*facts, words.count(record.n_questions, "question"), record.model]


def _state(record: SessionRecord) -> str:
    if record.state == SESSION_READING:
        return "  [not read to its end: being read, or to go on with `ingest` or `ask`]"
    if record.state == SESSION_READY:
        return ""
    return f"  [{record.state}] {record.problem}".rstrip()
