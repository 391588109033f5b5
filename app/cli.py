"""The command line: one parser, one place where every error becomes a message and an exit code."""

from __future__ import annotations

import argparse
import io
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
from app.commands.terminal import say

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
    _print_anything()
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        args = parser.parse_args([*arguments, DEFAULT_COMMAND])
    return _guarded(args)


def _print_anything() -> None:
    """Names that are no text, and letters that a terminal lacks, are printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _guarded(args: argparse.Namespace) -> int:
    """Run the command; known errors become messages, others go to the log with their traceback."""
    from app.logs import stop_log
    from app.messages import EXIT_FAULT, EXIT_INTERRUPTED

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
        return _reported(error, args)
    finally:
        stop_log()


def _reported(error: Exception, args: argparse.Namespace) -> int:
    """Say what went wrong, and write what we may be to blame for into the log; the exit code."""
    from app.messages import EXIT_FAULT, FAULT, explain

    message = explain(error) or FAULT
    say(f"longread: {message}")
    if message is FAULT:
        say(f"  {type(error).__name__}: {error}")
    if message.exit_code == EXIT_FAULT or not hasattr(error, "cause"):  # which refusals have
        _log(error, args, aloud=message is FAULT)
    return message.exit_code


def _log(error: Exception, args: argparse.Namespace, *, aloud: bool) -> None:
    """The traceback into the data directory's log, whose place is said if `aloud`."""
    from app.errors import AppError
    from app.logs import LOG_NAME, start_log
    from app.paths import data_paths

    try:
        paths = data_paths(data_dir(args))
        start_log(paths).error("command %s failed", args.command, exc_info=error)
    except (OSError, AppError) as unwritable:
        say(f"The log cannot be written: {unwritable}")
        return
    if aloud:
        say(f"  {paths.logs / LOG_NAME}")
