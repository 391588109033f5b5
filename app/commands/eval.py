"""`eval`: measure scorers on a question set, against the full cache."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import TYPE_CHECKING, Any, cast

from app.commands.arguments import a_path, count, no_folder, positive, readable
from app.commands.common import (
    ALLOCATIONS,
    POSITIONS,
    WEIGHTS,
    add_json,
    add_model,
    data_dir,
    print_json,
    say,
)
from app.desk import words

if TYPE_CHECKING:
    from app.paths import DataPaths
    from engine.eviction import Allocation, Positions
    from engine.loader import LoadedModel
    from heads.evaluation import EvalSettings, Refused
    from heads.results import DocumentResult

NAME = "eval"
HELP = "measure what answers lose when a scorer prunes the cache, on a question set"
KEPT = (0.5, 0.25, 0.125)
MIB = 2**20
# (key of a row, heading, width, decimals; None for text)
COLUMNS = (
    ("scorer", "scorer", -20, None),
    ("kept", "kept", 6, 3),
    ("f1", "F1", 6, 3),
    ("recall", "recall", 7, 3),
    ("nll", "NLL", 7, 3),
    ("nll_gap", "gap", 7, 3),
    ("nll_gap_se", "+-", 6, 3),
    ("f1_ratio", "F1/full", 8, 2),
    ("f1_ratio_se", "+-", 5, 2),
    ("overlap", "overlap", 8, 3),
    ("kept_tokens", "entries", 9, 0),
    ("mib", "MiB", 8, 1),
    ("seconds", "s", 7, 1),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--data",
        type=a_path,
        required=True,
        metavar="FILE",
        help="JSON lines: context, and questions with their answers",
    )
    add_json(parser)
    add_model(parser)
    parser.add_argument("--weights", choices=WEIGHTS, default="auto", help="number format")
    _add_compared(parser)
    _add_reading(parser)
    _add_asking(parser)


def _add_compared(parser: argparse.ArgumentParser) -> None:
    """Who chooses, and how much stays."""
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--scorers", type=_names, metavar="A,B", help="scorers or oracles (default: the best)"
    )
    group.add_argument(
        "--kept",
        type=_shares,
        default=KEPT,
        metavar="X,Y",
        help="shares of the document's tokens to keep (default: 0.5,0.25,0.125)",
    )
    group.add_argument(
        "--kv-bits",
        type=_names,
        default=("16",),
        metavar="X,Y",
        help="bits of kept entries, rows for each: 16, 8, k8v4, k4v4 (default: 16)",
    )
    group.add_argument(
        "--equal-bytes",
        action="store_true",
        help="shares are of the full cache's bytes in 16 bits: in fewer bits more entries stay",
    )
    group.add_argument(
        "--oracle",
        type=readable,
        metavar="NAME",
        help="compare what is kept with what this oracle keeps",
    )


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """Readings in chunks, and what they do."""
    group = parser.add_argument_group("how documents are read")
    group.add_argument(
        "--chunked",
        action="store_true",
        help="read anew for every row, evicting after each chunk, instead of pruning a full cache",
    )
    group.add_argument(
        "--chunk", type=positive, default=1024, metavar="TOKENS", help="tokens read at a time"
    )
    group.add_argument(
        "--read-twice",
        action="store_true",
        help="with --chunked: a second reading chooses what stays (rows are named NAME+twice)",
    )
    group.add_argument(
        "--refit",
        action="store_true",
        help="with --chunked: kept values take over what evicted entries gave",
    )
    group.add_argument("--allocation", choices=ALLOCATIONS, help="how the budget is shared out")
    group.add_argument(
        "--positions",
        choices=POSITIONS,
        default="auto",
        help="with --chunked: where kept entries are read (default: auto)",
    )
    group.add_argument(
        "--sinks", type=count, metavar="N", help="first tokens that always stay (default: 4)"
    )
    group.add_argument(
        "--no-full",
        action="store_true",
        help="with --chunked: leave out the full reading, for texts beyond the trained window",
    )


def _add_asking(parser: argparse.ArgumentParser) -> None:
    """Which documents and questions, and what is done with the answers."""
    group = parser.add_argument_group("how much is asked")
    group.add_argument("--documents", type=positive, metavar="N", help="the first N only")
    group.add_argument("--questions", type=positive, metavar="N", help="the first N of each only")
    group.add_argument(
        "--max-new-tokens", type=positive, default=32, metavar="N", help="longest answer"
    )
    group.add_argument(
        "--no-generate", action="store_true", help="likelihoods only; F1 and recall are left out"
    )
    group.add_argument(
        "--log",
        type=no_folder,
        metavar="FILE",
        help="keep finished documents there; the same run goes on after them",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, and print the table or the report."""
    from app.paths import data_paths
    from app.prompts import Layout
    from engine.registry import default_model
    from engine.scoring import Scorer
    from heads.catalog import default_scorer, make_scorer
    from heads.evaluation import evaluate
    from heads.evaluation_report import make_report
    from heads.question_set import read_question_set
    from heads.results import ResultLog

    paths = data_paths(data_dir(args)).make()
    settings = _settings(args)
    _check_log(args)
    documents = read_question_set(args.data, args.documents, args.questions)
    log = ResultLog(args.log)  # now, as one that cannot be kept would end a long run
    model = load(args.model or default_model(), args.weights, paths)
    if not args.scorers:
        settings = replace(settings, scorers=(default_scorer(model.name, paths.models / "heads"),))

    def make(name: str) -> Scorer:
        return make_scorer(name, model, seed=0, state_dir=paths.models / "heads")

    results, refused = evaluate(
        model,
        Layout(model.tokenizer),
        documents,
        settings,
        make,
        log=log,
        on_document=lambda number, outcome: _tell(number, len(documents), outcome),
    )
    _tell_least(settings.least_tokens, results)
    report = make_report(model.name, settings, results, refused)
    if args.json:
        print_json(report)
    else:
        _print_table(report)
    return 0


def _check_log(args: argparse.Namespace) -> None:
    """Raise InvalidSetting if results would be appended to the question set."""
    from engine.errors import InvalidSetting

    if args.log and args.log.exists() and args.data.exists() and args.log.samefile(args.data):
        raise InvalidSetting(f"--log names the question set itself, {args.data}.", "Name another.")


def _settings(args: argparse.Namespace) -> EvalSettings:
    """Checked before a model is loaded, by whose name the scorer is found if none is given."""
    from heads.catalog import UNTRAINED_SCORER
    from heads.evaluation import EvalSettings

    return EvalSettings(
        scorers=args.scorers or (UNTRAINED_SCORER,),
        kept=args.kept,
        chunked=args.chunked,
        chunk_tokens=args.chunk,
        allocation=cast("Allocation | None", args.allocation),
        positions=cast("Positions", args.positions),
        sink_tokens=args.sinks,
        max_new_tokens=args.max_new_tokens,
        generate=not args.no_generate,
        oracle=args.oracle,
        full=not args.no_full,
        read_twice=args.read_twice,
        refit=args.refit,
        kv_bits=args.kv_bits,
        equal_bytes=args.equal_bytes,
    )


def _take_own_device() -> None:
    """One card for each process that `accelerate launch` or `torchrun` starts."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    if rank is not None and torch.cuda.is_available():
        torch.cuda.set_device(int(rank))


def load(name: str, weights: str, paths: DataPaths) -> LoadedModel:
    """A model for measuring and training, fetched if needed, with progress on stderr."""
    from app.progress import ProgressLine
    from engine.loader import load_model

    _take_own_device()
    progress = ProgressLine()
    model = load_model(
        name,
        models_dir=paths.models,
        weights=weights,
        on_progress=lambda done, total: progress("fetch", done, total),
        on_message=progress.say,
    )
    progress.end()
    return model


def _tell(number: int, n_documents: int, outcome: DocumentResult | Refused) -> None:
    from heads.evaluation import Refused

    place = f"document {number + 1} of {n_documents}"
    if isinstance(outcome, Refused):
        say(f"{place}: left out. {outcome.cause}")
        return
    asked = words.count(outcome.n_questions, "question")
    seconds = sum(row.seconds for row in [*outcome.rows, *filter(None, [outcome.full])])
    say(f"{place}: {outcome.n_tokens} tokens, {asked}, {seconds:.1f} s")


def _tell_least(least: int, results: Sequence[DocumentResult]) -> None:
    """Say once where more is kept than was asked for, as `least` entries a head always stay."""
    held: dict[float, list[float]] = {}
    for result in results:
        for row in result.rows:
            if round(row.kept * result.n_tokens) < least and row.kept_tokens <= least:
                held.setdefault(row.kept, []).append(row.kept_tokens / result.n_tokens)
    if held:
        rows = (
            f"rows of {kept:g} hold {mean(held[kept]):.3f} of the tokens" for kept in sorted(held)
        )
        say(f"At least {least} entries a head always stay: {', '.join(rows)}.")


def _print_table(report: dict[str, Any]) -> None:
    how = "read in chunks" if report["chunked"] else "pruned when read"
    if report["read_twice"]:
        how = "read twice in chunks"
    if report["refit"]:
        how += ", values refitted"
    print(
        f"{report['model']}: {words.count(report['documents'], 'document')} of "
        f"{report['n_tokens']:.0f} tokens, {words.count(report['questions'], 'question')}; "
        f"allocation {report['allocation']}, {how}"
    )
    print("".join(_padded(heading, width) for _, heading, width, _ in COLUMNS).rstrip())
    full = {"scorer": "full cache", "kept": 1.0, **report["full"]}
    for row in [full, *report["rows"]]:
        mib = None if row["bytes"] is None else row["bytes"] / MIB
        values = {**row, "mib": mib}
        cells = (_padded(_cell(values.get(key), d), width) for key, _, width, d in COLUMNS)
        print("".join(cells).rstrip())


def _cell(value: Any, decimals: int | None) -> str:
    if value is None:
        return "-"
    return str(value) if decimals is None else f"{value:.{decimals}f}"


def _padded(text: str, width: int) -> str:
    return text.ljust(-width) if width < 0 else text.rjust(width)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return names


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list like 0.5,0.25") from None
