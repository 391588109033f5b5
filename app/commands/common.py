"""What several commands share: flags, JSON output, and the library."""

from __future__ import annotations

import argparse
import codecs
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from app.commands.arguments import budget, filled, page_range, positive, readable
from app.commands.terminal import say
from app.settings import ReadSettings

if TYPE_CHECKING:
    from app.library import Library
    from app.progress import ProgressLine
    from app.service import OpenSession, Reader

# The engine has the last word on these names; here they are for --help, without importing it.
WEIGHTS = ("auto", "fp32", "bf16", "int8", "nf4")
ANSWER_WEIGHTS = ("auto", "stock", "same", "captured", "fp16", "int8", "int4", "nf4")
ALLOCATIONS = ("uniform", "per_layer", "global", "profile")
SHOWN_WARNINGS = 8
POSITIONS = ("auto", "original", "compact", "shared")


class CommandFailed(Exception):
    """A command ends with this exit code; what went wrong has been printed already."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit code {exit_code}")
        self.exit_code = exit_code


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """--data-dir, accepted before and after the command's name."""
    parser.add_argument(
        "--data-dir",
        type=filled,
        metavar="FOLDER",
        default=argparse.SUPPRESS,
        help="where documents, sessions and models are kept (or LONGREAD_DATA; "
        "LONGREAD_MODELS moves the models alone)",
    )


def add_model(parser: argparse._ActionsContainer) -> None:
    """--model, for commands that choose one."""
    parser.add_argument(
        "--model", type=readable, metavar="NAME", help="model name, hub id, folder or GGUF file"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json: standard output then carries JSON and nothing else."""
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else on stdout")


def add_read_settings(parser: argparse.ArgumentParser) -> None:
    """Flags of commands that read documents."""
    group = parser.add_argument_group("reading")
    add_model(group)
    group.add_argument(
        "--weights", choices=WEIGHTS, default="auto", help="number format of the weights"
    )
    size = group.add_mutually_exclusive_group()
    size.add_argument(
        "--budget",
        type=budget,
        metavar="TOKENS",
        help="cache entries kept per layer and head, or 'all' (default: the model's own, and a "
        "sixteenth of a document that is longer than 16 times that)",
    )
    size.add_argument(
        "--cache-mb",
        type=positive,
        metavar="MB",
        help="megabytes of kept entries instead: as many entries, in as many bits, as answer best",
    )
    group.add_argument("--allocation", choices=ALLOCATIONS, help="how the budget is shared out")
    group.add_argument(
        "--scorer", type=readable, metavar="NAME", help="what decides which entries stay"
    )
    group.add_argument(
        "--positions", choices=POSITIONS, default="auto", help="rotary positions (default: auto)"
    )
    group.add_argument(
        "--chunk", type=positive, default=None, metavar="TOKENS", help="tokens read at a time"
    )
    group.add_argument(
        "--read-twice",
        action="store_true",
        help="keep more at first, then pass the document through the model a second time to "
        "choose what stays",
    )
    group.add_argument(
        "--refit",
        action="store_true",
        help="let kept values take over what evicted entries gave",
    )
    group.add_argument(
        "--kv-bits",
        type=filled,
        metavar="BITS",
        help="bits of kept keys and values: 16, 8, k8v4, k4v4 and others, which a wrong one lists "
        "(default: k8v4; 16 with --refit)",
    )
    group.add_argument(
        "--pages", type=page_range, metavar="A-B", help="read these pages only, as 10-20 or 7"
    )
    group.add_argument("--password", type=filled, help="password of a protected document")
    group.add_argument(
        "--reread", action="store_true", help="read again, even if there is a saved session"
    )


def read_settings(args: argparse.Namespace) -> ReadSettings:
    """The settings that the flags of `add_read_settings` stand for."""
    defaults = ReadSettings()
    _refuse_early(args)
    return ReadSettings(
        model=args.model,
        weights=args.weights,
        budget_tokens=args.budget,
        allocation=args.allocation,
        scorer=args.scorer,
        positions=args.positions,
        chunk_tokens=args.chunk or defaults.chunk_tokens,
        read_twice=args.read_twice,
        refit=args.refit,
        kv_bits=args.kv_bits,
        cache_mb=args.cache_mb,
    )


def _refuse_early(args: argparse.Namespace) -> None:
    """Refuse what is wrong with any document and model before these are opened and loaded."""
    if args.kv_bits is not None:
        from engine.quantisation import parse_kv_bits

        parse_kv_bits(args.kv_bits)
    if args.scorer is not None:
        from heads.catalog import check_scorer_name

        check_scorer_name(args.scorer)
    if args.budget:
        from engine.eviction import EvictionConfig

        EvictionConfig(budget_tokens=args.budget)


def print_json(value: Any, *, lines: bool = False) -> None:
    """One JSON value on stdout, on one line if `lines`.

    Letters that stdout may lack are JSON's own escapes; Python's would be none of JSON's.
    """
    text = json.dumps(value, ensure_ascii=not _has_all_letters(), indent=None if lines else 1)
    print(text, flush=True)


def _has_all_letters() -> bool:
    """Whether every text can be written to stdout: in an encoding of Unicode, or in none."""
    encoding = getattr(sys.stdout, "encoding", None)
    return encoding is None or codecs.lookup(encoding).name.startswith("utf")


def data_dir(args: argparse.Namespace) -> str | None:
    """The --data-dir flag, or None."""
    value: str | None = getattr(args, "data_dir", None)
    return value


@contextmanager
def opened_library(args: argparse.Namespace) -> Iterator[Library]:
    """The library of the data directory; leftovers of a killed run are swept first."""
    from app.library import Library
    from app.logs import start_log
    from app.paths import data_paths
    from app.store import sweep
    from app.unread import sweep_unread

    paths = data_paths(data_dir(args)).make()
    log = start_log(paths)
    library = Library(paths)
    try:
        for name in sweep(paths):
            log.info("removed %s, left by a process that ended", name)
        for name in sweep_unread(library):
            log.info("removed document %s, which was never read", name[:12])
        yield library
    finally:
        library.close()


def make_reader(
    library: Library, args: argparse.Namespace, progress: ProgressLine | None
) -> Reader:
    """A reader with the settings of the command line."""
    from app.service import Reader

    announce = progress.say if progress is not None else say
    asked = getattr(args, "answer_weights", None)  # commands that only read have none
    return Reader(library, read_settings(args), answer_weights=asked, announce=announce)


def for_each_file(files: list[str], work: Callable[[str], None]) -> int:
    """Do the work for every file; one that fails does not keep the others from being done.

    Returns the exit code of the first failure, else 0. A lone file's error is simply raised.
    """
    from app.messages import EXIT_FAULT, EXIT_INTERRUPTED, explain

    code = 0
    for file in files:
        try:
            work(file)
        except Exception as error:
            message = explain(error)
            if len(files) == 1 or message is None or message.exit_code == EXIT_INTERRUPTED:
                raise
            say(f"longread: {file}: {message}")
            code = code or message.exit_code or EXIT_FAULT
    return code


def describe_session(session: OpenSession) -> None:
    """Say on stderr what was opened, and how."""
    report, record = session.report, session.record
    how = (
        f"opened from disk in {report.restore_s:.2f} s"
        if session.reused
        else f"read in {report.prefill_s:.1f} s ({report.prefill_tok_s:.0f} tok/s)"
    )
    if report.second_tokens:
        how += f" and a second time in {report.second_s:.1f} s"
    say(
        f"{session.document.title}: {record.n_tokens} tokens, {how}; "
        f"{session.cache.kept_fraction:.1%} of the cache kept, "
        f"{session.cache.nbytes / 2**20:.1f} MiB; session {record.id}"
    )
    warnings = session.document.warnings
    for warning in warnings[:SHOWN_WARNINGS]:
        named = warning.message.startswith(f"Page {warning.page} ")
        page = f" (page {warning.page})" if warning.page and not named else ""
        say(f"note: {warning.message}{page}")
    if len(warnings) > SHOWN_WARNINGS:
        say(f"note: and {len(warnings) - SHOWN_WARNINGS} more, see --json")
