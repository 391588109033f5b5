"""`ask`: read (or reopen) documents and answer questions about them."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.arguments import filled, question, seed
from app.commands.common import (
    ANSWER_WEIGHTS,
    CommandFailed,
    add_json,
    add_read_settings,
    describe_session,
    for_each_file,
    make_reader,
    opened_library,
    print_json,
)
from app.commands.interrupts import StopSwitch
from app.commands.terminal import harmless, tell
from app.errors import NoSuchSession
from app.settings import ReadSettings

if TYPE_CHECKING:
    from app.answers import Answer
    from app.progress import ProgressLine
    from app.records import SessionRecord
    from app.service import OpenSession, Reader
    from engine.generate import Sampling

NAME = "ask"
HELP = "answer questions about documents; each is read once, and reopened from then on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "files", nargs="+", type=filled, metavar="FILE", help="a document, or a session's id"
    )
    parser.add_argument(
        "-q",
        "--question",
        action="append",
        type=question,
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
    group.add_argument("--seed", type=seed, help="makes a drawn answer repeatable")


def run(args: argparse.Namespace) -> int:
    """Answer every question on every document, one document after the other."""
    from app.progress import ProgressLine
    from engine.generate import Sampling

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


def open_any(
    reader: Reader, name: str, args: argparse.Namespace, progress: ProgressLine, stop: StopSwitch
) -> OpenSession:
    """The session of a file, or, if there is no such file, of a session id."""
    if not _is_there(name):
        record = reader.library.lookup(name)
        if record is not None:
            _check_as_read(record, args)
            return reader.reopen(record.id, reread=args.reread, on_progress=progress, stop=stop)
        if _like_an_id(name):
            raise NoSuchSession(
                f"There is neither a file {name} nor one session whose id begins so.",
                "Check the path, or list sessions with the command `sessions`.",
            )
    return reader.open(
        name,
        password=args.password,
        pages=args.pages,
        reread=args.reread,
        on_progress=progress,
        stop=stop,
    )


def _like_an_id(name: str) -> bool:
    """Whether a name that no file has may be meant for a session."""
    return re.fullmatch(r"[0-9a-f]{1,64}", name) is not None


def _known_name(model: str | None) -> str | None:
    """The name of a known model that another of its names stands for."""
    from engine.registry import find

    spec = find(model) if model is not None else None
    return spec.name if spec is not None else model


def _check_as_read(record: SessionRecord, args: argparse.Namespace) -> None:
    """Raises InvalidSetting if flags ask for another reading than the one the session is of."""
    from engine.errors import InvalidSetting

    read = ReadSettings.from_dict(record.settings)
    asked = {  # of flags: what was asked for (or None), and what the session was read with
        "--model": (_known_name(args.model), _known_name(read.model)),
        "--weights": (None if args.weights == "auto" else args.weights, read.weights),
        "--budget": (args.budget, read.budget_tokens),
        "--cache-mb": (args.cache_mb, None),
        "--allocation": (args.allocation, read.allocation),
        "--scorer": (args.scorer, read.scorer),
        "--positions": (None if args.positions == "auto" else args.positions, read.positions),
        "--chunk": (args.chunk, read.chunk_tokens),
        "--read-twice": (args.read_twice or None, read.read_twice),
        "--refit": (args.refit or None, read.refit),
        "--kv-bits": (args.kv_bits, read.kv_bits),
        "--pages": (args.pages, (record.first_page, record.last_page)),
        "--password": (args.password, None),
    }
    other = {f: given for f, (given, had) in asked.items() if given is not None and given != had}
    if other:
        flags = ", ".join(_as_typed(flag, given) for flag, given in other.items())
        raise InvalidSetting(
            f"Session {record.id[:8]} was read already, and not with {flags}.",
            "Leave that out, or name the document's file to have it read so.",
        )


def _as_typed(flag: str, given: Any) -> str:
    """A flag with its value as a user types it; a password stays unsaid."""
    if given is True or flag == "--password":
        return flag
    return f"{flag} {'-'.join(map(str, given)) if isinstance(given, tuple) else given}"


def _is_there(name: str) -> bool:
    """Whether a file has this name; one that is too long for a file has not."""
    try:
        return Path(name).exists()
    except OSError:
        return False


def _ask_one(
    reader: Reader,
    file: str,
    args: argparse.Namespace,
    sampling: Sampling,
    progress: ProgressLine,
    stop: StopSwitch,
) -> None:
    from app.messages import EXIT_INTERRUPTED
    from app.reports import ask_report

    stop.begin()
    session = open_any(reader, file, args, progress, stop)
    progress.end()
    describe_session(session)
    answers: list[Answer] = []
    try:
        for text in args.questions:
            answers.append(_answer(reader, session, text, args, sampling, stop))
            if answers[-1].finish == "stop":
                raise CommandFailed(EXIT_INTERRUPTED)
    finally:
        if args.json and answers:  # those before a failure took their time, too
            print_json(ask_report(session, answers), lines=len(args.files) > 1)


def _answer(
    reader: Reader,
    session: OpenSession,
    text: str,
    args: argparse.Namespace,
    sampling: Sampling,
    stop: StopSwitch,
) -> Answer:
    """Ask one question; without --json it and its answer are printed as they come."""
    from app.conversation import answer_stored

    if not args.json:
        tell(f"\n> {text}\n")
    ids = reader.library.add_question(session.record.id, text)
    on_text = None if args.json else _print_piece
    answer = answer_stored(
        reader.library, reader, session, text, ids, sampling, on_text=on_text, stop=stop
    )
    if not args.json:
        _print_sources(answer, session)
    return answer


def _print_piece(text: str) -> None:
    print(harmless(text), end="", flush=True)


def _print_sources(answer: Answer, session: OpenSession) -> None:
    print(flush=True)
    for citation in answer.citations:
        quote = " ".join(citation.quote.split())
        sign = "found word for word" if citation.verified else "similar words"
        place = place_name(session, citation.page, citation.label)
        tell(f"  [{place}] ({sign}) {quote}")


def place_name(session: OpenSession, page: int, label: str) -> str:
    """A page as the reader knows it: its printed label, with the page number where they differ."""
    kind = session.document.page_kind
    short = {"page": "p."}.get(kind, kind)
    if not label or label == str(page):
        return f"{short} {page}"
    return f"{short} {label} ({page})" if kind == "page" else label
