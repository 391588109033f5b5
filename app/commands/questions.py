"""`questions`: build a question set as JSON lines, to measure scorers with or to train on."""

from __future__ import annotations

import argparse

from app.commands.arguments import a_path, no_folder
from app.commands.common import add_json, print_json
from app.desk import words

NAME = "questions"
HELP = "builds a question set from public data or from nothing, as JSON lines"
# As in heads.questions.catalog, which is not imported to print a line of help.
NAMES = (
    "fairytaleqa", "qmsum", "leval", "loogle", "covidqa", "xquad", "nq", "kv", "synthetic",
)  # fmt: skip
_NUMBERS = (
    ("--tokens", "length of made documents"),
    ("--documents", "at most so many, a seeded sample"),
    ("--min-tokens", "only documents of at least so many (characters / 4)"),
    ("--max-tokens", "only documents of at most so many (characters / 4)"),
    ("--per-document", "questions a document, a seeded sample"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags. Names of sets and parts are checked when building, with what there is."""
    parser.add_argument("set", metavar="SET", help=f"one of {', '.join(NAMES)}")
    parser.add_argument(
        "--source",
        type=a_path,
        metavar="PATH",
        help="the set's folder or file; for synthetic a text to hide facts in",
    )
    parser.add_argument(
        "--part", metavar="NAME", help="split, task or kind of fact, as val, coursera or multikey"
    )
    for flag, help_text in _NUMBERS:
        parser.add_argument(flag, type=int, metavar="N", help=help_text)
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--exclude",
        type=a_path,
        metavar="FOLDER",
        help="qmsum: leave out meetings that L-Eval in this folder holds too",
    )
    parser.add_argument(
        "--out", type=no_folder, required=True, metavar="FILE", help="what to write"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Build the set, write it, and say what it holds."""
    from heads.questions.catalog import Request, build_set
    from heads.questions.documents import write_set

    request = Request(
        source=args.source,
        part=args.part,
        tokens=args.tokens,
        n_documents=args.documents,
        per_document=args.per_document,
        min_tokens=args.min_tokens,
        max_tokens=args.max_tokens,
        seed=args.seed,
        exclude=args.exclude,
    )
    documents = build_set(args.set, request)
    write_set(documents, args.out)
    counts = {
        "set": args.set,
        "documents": len(documents),
        "questions": sum(len(document.questions) for document in documents),
        "out": str(args.out),
    }
    if args.json:
        print_json(counts)
    else:
        asked = words.count(counts["questions"], "question")
        print(f"{words.count(len(documents), 'document')}, {asked}: {args.out}")
    return 0
