"""`bench`: what reading, answering and returning cost, beside a ceiling or a rival."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.arguments import a_path, filled, new_file, positive, readable
from app.commands.common import (
    ANSWER_WEIGHTS,
    WEIGHTS,
    add_json,
    add_model,
    data_dir,
    print_json,
    say,
)

if TYPE_CHECKING:
    from types import ModuleType

    from app.benchmarks.bench import Request

NAME = "bench"
HELP = "measure reading, decoding, restoring and memory against ceilings, or against llama.cpp"
BENCHMARKS = ("ingest", "decode", "restore", "memory", "peers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("benchmark", choices=BENCHMARKS, help="what to measure")
    add_json(parser)
    add_model(parser)
    parser.add_argument("--weights", choices=WEIGHTS, default="auto", help="number format")
    group = parser.add_argument_group("how to measure")
    group.add_argument("--threads", type=positive, metavar="N", help="threads to compute with")
    group.add_argument(
        "--lengths",
        type=_lengths,
        metavar="N,N",
        help="document tokens to measure at; for decode, entries kept per layer and head",
    )
    group.add_argument(
        "--budget",
        type=positive,
        default=4096,
        metavar="TOKENS",
        help="cache entries kept per layer and head (default: 4096)",
    )
    group.add_argument(
        "--chunk", type=positive, default=1024, metavar="TOKENS", help="tokens read at a time"
    )
    group.add_argument(
        "--runs", type=positive, default=3, metavar="N", help="figures are their median"
    )
    group.add_argument(
        "--answer-weights",
        choices=ANSWER_WEIGHTS,
        default="auto",
        help="what answers are computed with",
    )
    group.add_argument(
        "--kv-bits",
        type=filled,
        metavar="BITS",
        help="bits of kept keys and values: 16, 8, k8v4, k4v4 (default: k8v4, as documents are "
        "read; for peers 16, whose cache is stored in k8v4 besides)",
    )
    group.add_argument(
        "--scorer", type=readable, metavar="NAME", help="what decides which entries stay"
    )
    group.add_argument(
        "--text", type=a_path, metavar="FILE", help="text to read (default: made on the spot)"
    )
    group.add_argument(
        "--rival-python",
        type=filled,
        metavar="PATH",
        help="peers: the Python that has llama-cpp-python (or LONGREAD_LLAMA_PYTHON)",
    )
    group.add_argument("--plot", type=new_file, metavar="FILE.svg", help="draw the figures there")


def run(args: argparse.Namespace) -> int:
    """Measure; print the table and one JSON line, or the JSON line alone."""
    from app.benchmarks.bench import Bench
    from app.progress import ProgressLine

    benchmark = _module(args.benchmark)
    progress = ProgressLine()
    try:
        report = benchmark.measure(Bench(_request(args, benchmark), progress))
    finally:
        progress.end()
    if not args.json:
        _print_table(benchmark, report)
    print_json(report, lines=True)
    if args.plot is not None:
        _draw(args.plot, benchmark, report)
    return 0


def _module(name: str) -> ModuleType:
    from app.benchmarks import decode, ingest, memory, peers, restore

    modules = {module.NAME: module for module in (ingest, decode, restore, memory, peers)}
    return modules[name]


def _request(args: argparse.Namespace, benchmark: ModuleType) -> Request:
    from app.benchmarks.bench import Request
    from app.paths import data_paths
    from engine.registry import default_model

    paths = data_paths(data_dir(args)).make()
    return Request(
        model=args.model or default_model(),
        data_dir=str(paths.root),
        models_dir=str(paths.models),
        lengths=args.lengths or benchmark.LENGTHS,
        weights=args.weights,
        threads=args.threads,
        budget_tokens=args.budget,
        chunk_tokens=args.chunk,
        runs=args.runs,
        kv_bits=args.kv_bits or benchmark.KV_BITS,
        answer_weights=args.answer_weights,
        scorer=args.scorer,
        text=None if args.text is None else str(args.text),
        rival_python=args.rival_python,
    )


def _draw(path: Path, benchmark: ModuleType, report: dict[str, Any]) -> None:
    from app.plots import line_chart

    title = f"bench {benchmark.NAME}: {report['model']}, {report['threads']} threads"
    x_name, y_name = benchmark.AXES
    chart = line_chart(title, x_name, y_name, benchmark.lines(report), log_x=True)
    path.write_text(chart, encoding="utf-8")
    say(f"Drawn: {path}")


def _print_table(benchmark: ModuleType, report: dict[str, Any]) -> None:
    print(
        f"{report['model']}, weights {report['weights']}, computing in {report['reading_format']} "
        f"with {report['threads']} threads on {report['cpu']}; median of {report['runs']}"
    )
    columns = benchmark.COLUMNS
    print("".join(heading.rjust(width) for _, heading, width, _ in columns))
    for row in report["rows"]:
        print("".join(_cell(row[key], digits).rjust(width) for key, _, width, digits in columns))
    for line in benchmark.summary(report):
        print(line)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _lengths(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive(part.strip()) for part in text.split(",")}))
