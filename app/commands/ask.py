"""`ask`: read (or reopen) documents and answer questions about them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.common import (
    ANSWER_WEIGHTS,
    CommandFailed,
    StopSwitch,
    add_json,
    add_read_settings,
    make_reader,
    opened_library,
    print_json,
    say,
)

if TYPE_CHECKING:
    from app.answers import Answer
    from app.progress import ProgressLine
    from app.service import OpenSession, Reader

NAME = "ask"
HELP = "answer questions about documents; each is read once, and reopened from then on"

SHOWN_WARNINGS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a document, or a session's id")
    parser.add_argument(
        "-q",
        "--question",
        action="append",
        required=True,
        metavar="QUESTION",
        dest="questions",
        help="what to ask; repeat it for more questions",
    )
    add_json(parser)
    add_read_settings(parser)
    group = parser.add_argument_group("answering")
    group.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    group.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    group.add_argument("--top-p", type=float, default=1.0)
    group.add_argument("--repetition-penalty", type=float, default=1.0)
    group.add_argument(
        "--answer-weights",
        choices=ANSWER_WEIGHTS,
        default="auto",
        help="what answers are computed with; reading uses --weights. On a card: stock, same, "
        "captured (same, a token one CUDA graph), nf4",
    )
    group.add_argument("--seed", type=int, help="makes a drawn answer repeatable")


def run(args: argparse.Namespace) -> int:
    """Answer every question on every document, one document after the other."""
    from app.messages import EXIT_ARGUMENTS
    from app.progress import ProgressLine
    from engine.generate import Sampling

    if not all(question.strip() for question in args.questions):
        say("longread: a question is empty.")
        return EXIT_ARGUMENTS
    sampling = Sampling(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
    )
    progress = ProgressLine()
    with opened_library(args) as library, StopSwitch() as stop:
        reader = make_reader(library, args, progress)
        return for_each_file(
            args.files, lambda file: _ask_one(reader, file, args, sampling, progress, stop)
        )


def for_each_file(files: list[str], work: Any) -> int:
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


def open_any(
    reader: Reader, name: str, args: argparse.Namespace, progress: ProgressLine, stop: StopSwitch
) -> OpenSession:
    """The session of a file, or, if there is no such file, of a session id."""
    if not Path(name).exists():
        record = reader.library.lookup(name)
        if record is not None:
            return reader.reopen(record.id, reread=args.reread, on_progress=progress, stop=stop)
    return reader.open(
        name,
        password=args.password,
        pages=args.pages,
        reread=args.reread,
        on_progress=progress,
        stop=stop,
    )


def _ask_one(
    reader: Reader,
    file: str,
    args: argparse.Namespace,
    sampling: Any,
    progress: ProgressLine,
    stop: StopSwitch,
) -> None:
    from app.conversation import answer_stored
    from app.messages import EXIT_INTERRUPTED
    from app.reports import ask_report

    session = open_any(reader, file, args, progress, stop)
    progress.end()
    describe_session(session)
    answers: list[Answer] = []
    for question in args.questions:
        if not args.json:
            print(f"\n> {question}\n", flush=True)
        ids = reader.library.add_question(session.record.id, question)
        on_text = None if args.json else _print_piece
        answer = answer_stored(
            reader.library, reader, session, question, ids, sampling, on_text=on_text, stop=stop
        )
        answers.append(answer)
        if not args.json:
            _print_sources(answer, session)
        if answer.finish == "stop":
            raise CommandFailed(EXIT_INTERRUPTED)
    if args.json:
        print_json(ask_report(session, answers), lines=len(args.files) > 1)


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
        page = f" (page {warning.page})" if warning.page else ""
        say(f"note: {warning.message}{page}")
    if len(warnings) > SHOWN_WARNINGS:
        say(f"note: and {len(warnings) - SHOWN_WARNINGS} more, see --json")


def _print_piece(text: str) -> None:
    print(text, end="", flush=True)


def _print_sources(answer: Answer, session: OpenSession) -> None:
    print(flush=True)
    for citation in answer.citations:
        quote = " ".join(citation.quote.split())
        sign = "found word for word" if citation.verified else "similar words"
        place = place_name(session, citation.page, citation.label)
        print(f"  [{place}] ({sign}) {quote}", flush=True)


def place_name(session: OpenSession, page: int, label: str) -> str:
    """A page as the reader knows it: its printed label, with the page number where they differ."""
    kind = session.document.page_kind
    short = {"page": "p."}.get(kind, kind)
    if not label or label == str(page):
        return f"{short} {page}"
    return f"{short} {label} ({page})" if kind == "page" else label
