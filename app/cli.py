"""The command line: one parser, one place where every error becomes a message and an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from app.commands import (
    ask,
    bench,
    delete,
    doctor,
    eval,
    export,
    import_,
    ingest,
    models,
    questions,
    sessions,
    train_heads,
    ui,
)
from app.commands.common import CommandFailed, add_data_dir, data_dir

_COMMANDS = (
    ui,
    ask,
    ingest,
    sessions,
    delete,
    export,
    import_,
    models,
    train_heads,
    eval,
    bench,
    questions,
    doctor,
)
DEFAULT_COMMAND = "ui"


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; building it imports nothing heavy."""
    parser = argparse.ArgumentParser(
        prog="longread",
        description="Ask questions of long documents on your own machine.",
        epilog="Without a command the desk opens in the browser.",
    )
    add_data_dir(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in _COMMANDS:
        command = commands.add_parser(module.NAME, help=module.HELP, description=module.HELP)
        add_data_dir(command)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        args = parser.parse_args([*arguments, DEFAULT_COMMAND])
    return _guarded(args)


def _guarded(args: argparse.Namespace) -> int:
    """Run the command; known errors become messages, others go to the log with their traceback."""
    from app.logs import start_log, stop_log
    from app.messages import EXIT_FAULT, EXIT_INTERRUPTED, FAULT, explain
    from app.paths import data_paths

    paths = data_paths(data_dir(args))
    try:
        code: int = args.run(args)
        return code
    except CommandFailed as failed:
        return failed.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output (head, less) went away: nothing is left to say, or to flush.
        sys.stdout = None
        return EXIT_FAULT
    except Exception as error:  # noqa: BLE001 - the top of the program: reported, never swallowed
        message = explain(error)
        if message is None or message.exit_code == EXIT_FAULT:
            try:
                start_log(paths).error("command %s failed", args.command, exc_info=error)
            except OSError as unwritable:
                print(f"The log cannot be written: {unwritable}", file=sys.stderr)
        message = message or FAULT
        print(f"longread: {message}", file=sys.stderr)
        if message is FAULT:
            print(f"  {type(error).__name__}: {error}", file=sys.stderr)
            print(f"  {paths.logs / 'longread.log'}", file=sys.stderr)
        return message.exit_code
    finally:
        stop_log()
