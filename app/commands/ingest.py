"""`ingest`: read documents into sessions, to be asked later."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands.arguments import filled
from app.commands.common import (
    add_json,
    add_read_settings,
    describe_session,
    for_each_file,
    make_reader,
    opened_library,
    print_json,
)
from app.commands.interrupts import StopSwitch
from app.commands.terminal import tell
from app.desk import words

if TYPE_CHECKING:
    from app.progress import ProgressLine
    from app.service import Reader

NAME = "ingest"
HELP = "read documents into sessions; a reading that was cut off goes on where it stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("files", nargs="+", type=filled, metavar="FILE")
    parser.add_argument(
        "--parse-only", action="store_true", help="stop after parsing; no model is loaded"
    )
    add_json(parser)
    add_read_settings(parser)


def run(args: argparse.Namespace) -> int:
    """Read every file, one after the other."""
    from app.progress import ProgressLine

    if args.parse_only:
        return for_each_file(args.files, lambda file: _parse_one(file, args))
    progress = ProgressLine()
    with opened_library(args) as library, StopSwitch() as stop:
        reader = make_reader(library, args, progress)
        return for_each_file(args.files, lambda file: _read_one(reader, file, args, progress, stop))


def _read_one(
    reader: Reader,
    file: str,
    args: argparse.Namespace,
    progress: ProgressLine,
    stop: StopSwitch,
) -> None:
    from app.reports import session_report

    stop.begin()
    session = reader.open(
        file,
        password=args.password,
        pages=args.pages,
        reread=args.reread,
        on_progress=progress,
        stop=stop,
    )
    progress.end()
    describe_session(session)
    if args.json:
        print_json(session_report(session), lines=len(args.files) > 1)
    else:
        print(session.record.id, flush=True)


def _parse_one(file: str, args: argparse.Namespace) -> None:
    from app.reports import parse_report
    from ingest import open_document

    started = time.perf_counter()
    document = open_document(Path(file), args.password, pages=args.pages)
    report = parse_report(document, time.perf_counter() - started)
    if args.json:
        print_json(report, lines=len(args.files) > 1)
        return
    tell(
        f"{document.title}: {document.kind}, {words.count(report['pages'], document.page_kind)}, "
        f"{report['characters']} characters"
    )
    for warning in document.warnings:
        tell(f"  note: {warning.message}")
