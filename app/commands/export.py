"""`export`: write a session to one file."""

from __future__ import annotations

import argparse
from pathlib import Path

from app.commands.arguments import filled
from app.commands.common import add_json, opened_library, print_json
from app.commands.terminal import tell

NAME = "export"
HELP = "write a session to one portable file (it contains the document's whole text)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("session", metavar="SESSION", help="an id, or its beginning")
    parser.add_argument(
        "file",
        nargs="?",
        type=filled,
        metavar="FILE",
        help="where to write it (default: TITLE.longread)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Write the file; one that was named is replaced when the new one is whole."""
    from app.exporting import default_target, export_session

    with opened_library(args) as library:
        record = library.session(args.session)
        target = Path(args.file) if args.file else default_target(record)
        nbytes = export_session(library, record.id, target)
    if args.json:
        print_json({"session": record.id, "file": str(target), "bytes": nbytes})
    else:
        tell(f"{target}: {nbytes / 2**20:.1f} MiB, with the whole text of {record.title}")
    return 0
