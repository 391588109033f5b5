"""`import`: take in a session that was exported."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands.common import add_json, for_each_file, opened_library, print_json
from app.commands.terminal import tell

if TYPE_CHECKING:
    from app.records import SessionRecord

NAME = "import"
HELP = "take in a session from a portable file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("files", nargs="+", metavar="FILE")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Check each file and take it in; one that is refused does not keep the others out."""
    from app.importing import import_session
    from app.reports import library_entry

    taken: list[SessionRecord] = []
    with opened_library(args) as library:

        def take_in(file: str) -> None:
            taken.append(import_session(library, Path(file)))
            if not args.json:
                tell(f"{taken[-1].id}  {taken[-1].title}")

        code = for_each_file(args.files, take_in)
    if args.json:
        print_json([library_entry(record) for record in taken])
    return code
