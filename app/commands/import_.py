"""`import`: take in a session that was exported."""

from __future__ import annotations

import argparse
from pathlib import Path

from app.commands.common import add_json, opened_library, print_json

NAME = "import"
HELP = "take in a session from a portable file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("files", nargs="+", metavar="FILE")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Check each file and take it in; a session that is here already is replaced."""
    from app.importing import import_session
    from app.reports import library_entry

    with opened_library(args) as library:
        records = [import_session(library, Path(file)) for file in args.files]
    if args.json:
        print_json([library_entry(record) for record in records])
    else:
        for record in records:
            print(f"{record.id}  {record.title}")
    return 0
