"""`delete`: remove sessions, with their text, from the library and the disk."""

from __future__ import annotations

import argparse
import re
import sqlite3
from typing import TYPE_CHECKING

from app.commands.common import add_json, data_dir, opened_library, print_json
from app.commands.terminal import tell

if TYPE_CHECKING:
    from app.paths import DataPaths
    from app.records import SessionRecord

NAME = "delete"
HELP = "remove sessions; the document's copy goes with its last session"
_BEGINNING = re.compile(r"[0-9a-f]{4,}")  # of an id, as Library.lookup takes it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("sessions", nargs="+", metavar="SESSION", help="an id, or its beginning")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Delete every session named; all names are checked before the first is deleted.

    On a disk without room to open the library their snapshots go first, which makes some.
    """
    from app.paths import data_paths

    try:
        records = _delete(args)
    except (sqlite3.OperationalError, OSError) as error:
        if not _is_want_of_room(error) or not _make_room(data_paths(data_dir(args)), args.sessions):
            raise
        records = _delete(args)
    if args.json:
        print_json({"deleted": [record.id for record in records]})
    return 0


def _delete(args: argparse.Namespace) -> list[SessionRecord]:
    """Delete what is named; one that is named twice comes once."""
    with opened_library(args) as library:
        named = [library.session(name) for name in args.sessions]
        records = list({record.id: record for record in named}.values())
        for record in records:
            library.delete_session(record.id)
            if not args.json:
                tell(f"Deleted {record.id}: {record.title}")
    return records


def _is_want_of_room(error: Exception) -> bool:
    from app.messages import EXIT_ROOM, explain

    message = explain(error)
    return message is not None and message.exit_code == EXIT_ROOM


def _make_room(paths: DataPaths, names: list[str]) -> bool:
    """Remove the snapshots of these sessions; whether each name was that of one.

    Raises SessionBusy while another program reads one of them.
    """
    found = [_named(paths, name) for name in names]
    if any(len(ids) != 1 for ids in found):
        return False
    for (session_id,) in found:
        _remove_snapshot(paths, session_id)
    return True


def _named(paths: DataPaths, name: str) -> set[str]:
    """Ids, by the folders of snapshots and checkpoints, that begin with a name."""
    if not _BEGINNING.fullmatch(name) or not paths.snapshots.is_dir():
        return set()
    ids = {folder.name.removesuffix(".partial") for folder in paths.snapshots.iterdir()}
    return {found for found in ids if _BEGINNING.fullmatch(found) and found.startswith(name)}


def _remove_snapshot(paths: DataPaths, session_id: str) -> None:
    from app.errors import SessionBusy
    from app.library import remove_folder
    from engine.files import locked

    def refuse() -> None:
        raise SessionBusy(
            f"Session {session_id} is being read by another program.",
            "Wait until it has ended, or stop it, and try again.",
        )

    with locked(paths.snapshots, session_id, on_wait=refuse):
        remove_folder(paths.snapshot(session_id))
        remove_folder(paths.partial(session_id))
