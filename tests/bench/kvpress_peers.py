"""The heads beside the scorers of kvpress, on the same tokens: real rivals, in their own code.

    python tests/bench/kvpress_peers.py --data ../shared/data --models DIR --python PYTHON

PYTHON (or LONGREAD_KVPRESS_PYTHON) is that of an environment with kvpress (0.5.5 was tried); this
one does not need it. A rival reads each document whole, with all of it in memory, and then prunes;
ours reads in chunks and evicts as it goes. Questions come later and are unknown to both. Every row
keeps the same share of the entries, in 16 bits. Before anything is printed the full caches of both
sides must agree on the likelihood of the answers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from app.prompts import Layout
from engine.loader import LoadedModel, load_model
from engine.sources import locate
from heads.catalog import make_scorer
from heads.evaluation import EvalSettings, evaluate
from heads.metrics import token_f1
from heads.question_set import QuestionedDocument
from heads.results import DocumentResult
from tests.bench.standing import SETS, documents_of, spread

PYTHON_ENV = "LONGREAD_KVPRESS_PYTHON"
SIDE = Path(__file__).with_name("kvpress_side.py")
PRESSES = "keydiff,expected_attention,adakv_expected_attention,adakv_snapkv,compactor,kvzip_plus"
PARITY_NATS = 0.02  # between both full caches, both in bf16


def task_of(
    layout: Layout, documents: Sequence[QuestionedDocument], presses: Sequence[str],
    kept: Sequence[float], max_new_tokens: int,
) -> dict[str, Any]:  # fmt: skip
    """What the other side is to do, in token ids: no text is cut into tokens twice."""

    def plain(text: str) -> list[int]:
        encoded = layout.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])

    return {
        "presses": list(presses),
        "kept": list(kept),
        "max_new_tokens": max_new_tokens,
        "documents": [
            {
                "name": document.name,
                "prefix": list(layout.prefix(document.text).token_ids),
                "tails": [list(layout.tail(q.text)) for q in document.questions],
                "answers": [plain(q.answers[0]) for q in document.questions],
            }
            for document in documents
        ],
    }


def their_rows(python: str, folder: Path, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of kvpress_side.py as they come."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "task.json"
        file.write_text(json.dumps(task))
        command = [python, str(SIDE), "--model", str(folder), "--task", str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as side:
            assert side.stdout is not None
            for line in side.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
        if side.returncode:
            raise SystemExit(f"kvpress_side.py ended with {side.returncode}; see above.")


def gap(row: Sequence[float], full: Sequence[float]) -> float:
    return mean(row) - mean(full)


def f1_of(model: LoadedModel, row: dict[str, Any], document: QuestionedDocument) -> float:
    decode = model.tokenizer.decode
    texts = [decode(ids, skip_special_tokens=True) for ids in row["answers"]]
    return mean(
        token_f1(text, q.answers) for text, q in zip(texts, document.questions, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with qa/")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--set", default="tales", choices=SETS)
    parser.add_argument("--presses", default=PRESSES, help="with commas between")
    parser.add_argument("--scorers", default="retaining", help="ours, with commas between")
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--questions", type=int, default=8, help="of each document")
    parser.add_argument("--kept", default="0.25,0.125,0.0625")
    parser.add_argument("--max-new-tokens", type=int, default=24, help="0: likelihoods alone")
    parser.add_argument("--python", default=os.environ.get(PYTHON_ENV), help=f"or {PYTHON_ENV}")
    options = parser.parse_args()
    if not options.python:
        raise SystemExit(f"Name the Python that has kvpress: --python, or {PYTHON_ENV}.")
    kept, n_new = tuple(map(float, options.kept.split(","))), options.max_new_tokens
    model = load_model(options.model, models_dir=options.models)
    folder = locate(options.model, options.models, download=False).folder
    layout = Layout(model.tokenizer)
    documents = documents_of(options.set, options.data / "qa", options.documents, options.questions)
    names = tuple(options.scorers.split(","))
    settings = EvalSettings(
        names, kept, chunked=True, chunk_tokens=SETS[options.set].chunk_tokens,
        max_new_tokens=n_new, generate=bool(n_new),
    )  # fmt: skip
    ours, _ = evaluate(model, layout, documents, settings, lambda n: make_scorer(n, model, seed=0))
    task = task_of(layout, documents, options.presses.split(","), kept, n_new)
    theirs = list(their_rows(options.python, folder, task))
    report(model, documents, ours, theirs)


def report(
    model: LoadedModel,
    documents: Sequence[QuestionedDocument],
    ours: Sequence[DocumentResult],
    theirs: Sequence[dict[str, Any]],
) -> None:
    """A line a row: nats lost an answer token +- standard error over documents, part of full F1."""
    their_full = {r["document"]: r for r in theirs if r["press"] == "full"}
    by_name = {document.name: document for document in documents}
    for result in ours:
        assert result.full is not None
        off = gap(their_full[result.name]["nll"], result.full.nll)
        if abs(off) > PARITY_NATS:
            raise SystemExit(f"The full caches differ by {off:+.3f} nats on {result.name}.")
    found: dict[tuple[str, float], list[tuple[float, float, float]]] = {}
    for result in ours:
        assert result.full is not None
        for row in result.rows:
            marks = (mean(row.f1 or [0]), mean(result.full.f1 or [0]))
            found.setdefault((f"Longread {row.scorer}", row.kept), []).append(
                (gap(row.nll, result.full.nll), *marks)
            )
    for other in theirs:
        if other["press"] == "full":
            continue
        full = their_full[other["document"]]
        marks = (0.0, 0.0)
        if other["answers"] is not None:
            document = by_name[other["document"]]
            marks = (f1_of(model, other, document), f1_of(model, full, document))
        found.setdefault((f"kvpress {other['press']}", other["kept"]), []).append(
            (gap(other["nll"], full["nll"]), *marks)
        )
    n_questions = sum(len(document.questions) for document in documents)
    print(
        f"{len(ours)} documents, {n_questions} questions, {mean(r.n_tokens for r in ours):.0f} "
        f"tokens, full NLL {mean(mean(r.full.nll) for r in ours if r.full):.3f}"
    )
    for (name, kept), values in found.items():
        line = f"  {name:36} {kept:7.5g}  {spread([v[0] for v in values])}"
        full_f1 = sum(v[2] for v in values)
        if full_f1:
            line += f"  F1 {100 * sum(v[1] for v in values) / full_f1:.0f} %"
        print(line, flush=True)


if __name__ == "__main__":
    main()
