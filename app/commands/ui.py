"""`ui`: the desk in the browser."""

from __future__ import annotations

import argparse

from app.commands.arguments import port, readable
from app.commands.common import opened_library, say

NAME = "ui"
HELP = "open the desk in the browser"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    parser.add_argument(
        "--port", type=port, default=0, help="port on 127.0.0.1 (default: any free one)"
    )
    parser.add_argument(
        "--model", type=readable, metavar="NAME", help="model to read new documents with"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from app.desk.server import serve
    from app.service import Reader
    from app.settings import ReadSettings
    from app.worker import Worker
    from engine.sources import check_name

    def announce(text: str) -> None:
        say(text)
        worker.hear(text)

    if args.model is not None:  # a desk that opens and can read nothing would be a riddle
        check_name(args.model)
    with opened_library(args) as library:
        settings = ReadSettings(model=args.model)
        reader = Reader(library, settings, answer_weights="auto", announce=announce)
        worker = Worker(reader, history_tokens=HISTORY_TOKENS)
        try:
            serve(worker, port=args.port, open_browser=not args.no_browser)
        finally:
            worker.close()
    return 0


# Earlier turns of a conversation that a question at the desk is asked with, in tokens.
HISTORY_TOKENS = 1024
