"""`delete`: remove sessions, with their text, from the library and the disk."""

from __future__ import annotations

import argparse

from app.commands.common import add_json, opened_library, print_json

NAME = "delete"
HELP = "remove sessions; the document's copy goes with its last session"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("sessions", nargs="+", metavar="SESSION", help="an id, or its beginning")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Delete every session named; all names are checked before the first is deleted."""
    with opened_library(args) as library:
        records = [library.session(name) for name in args.sessions]
        for record in {record.id: record for record in records}.values():
            library.delete_session(record.id)
            if not args.json:
                print(f"Deleted {record.id}: {record.title}")
    if args.json:
        print_json({"deleted": [record.id for record in records]})
    return 0
