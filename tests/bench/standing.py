"""How the heads stand: every set of documents, read in chunks with eviction, beside the goals.

    python tests/bench/standing.py --data ../shared/data --models DIR --log FILE

For each set: documents that no shipped head was trained on, evenly chosen by length, read whole,
then once for every scorer and share with real eviction; its questions are asked of each cache.
Prints a line a row with what the row lost (nats an answer token over the full cache), its F1 as a
share of the full cache's, both +- standard error over documents, and the goals; then, over all rows
of a scorer, by how much the last question of a cache lost more than its first; then one JSON line.
With --log a run that was cut off goes on where it stopped; with --equal-bytes a share of the full
cache's bytes holds more entries in fewer bits (--kv-bits).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from app.prompts import Layout
from engine.eviction import Allocation, Positions
from engine.loader import load_model
from heads.catalog import make_scorer
from heads.evaluation import EvalSettings, evaluate
from heads.evaluation_report import make_report
from heads.oracles import ORACLES
from heads.question_set import QuestionedDocument
from heads.questions.catalog import Request, build_set
from heads.questions.documents import approx_tokens
from heads.results import DocumentResult, ResultLog

SHORT, LONG = (0.25, 0.125, 0.0625), (0.0625, 0.03125)
MOST_QUESTIONS = 10


@dataclass(frozen=True)
class Goals:
    """What a share of the cache is to keep: nats lost at most, part of the full F1 at least."""

    nats: float | None
    f1_ratio: float


TALE_GOALS = {0.25: Goals(0.0, 0.97), 0.125: Goals(0.25, 0.93), 0.0625: Goals(None, 0.85)}
LONG_GOALS = {
    0.25: Goals(None, 0.97),
    0.125: Goals(None, 0.93),
    0.0625: Goals(0.05, 0.98),
    0.03125: Goals(None, 0.90),
}


@dataclass(frozen=True)
class TestSet:
    """Where documents come from (a set of `launch.py questions`), and how they are read.

    tokens    least and most, in characters / 4
    answer_tokens  longest generated answer, in tokens: a key and its value are words of some thirty
    unread    whether no shipped head was trained on a document, by its name
    """

    source: str
    path: str
    part: str | None
    tokens: tuple[int, int]
    chunk_tokens: int = 1024
    kept: tuple[float, ...] = LONG
    answer_tokens: int = 24
    unread: Callable[[str], bool] = lambda name: True

    @property
    def goals(self) -> dict[float, Goals]:
        return TALE_GOALS if self.kept == SHORT else LONG_GOALS


# By an oversight the default's heads have learnt through answers about these of the kept articles.
READ_ARTICLES = (3, 7, 11, 15, 23, 43)


def unread_article(name: str) -> bool:
    """COVID-QA's articles whose number leaves 3 when divided by 4 are kept for measuring, but for
    those that were read even so.
    """
    number = int(name.split("-")[1])
    return number % 4 == 3 and number not in READ_ARTICLES


PAIRS = "lost_in_the_middle/kv-retrieval-140_keys.first100.jsonl"
SETS = {
    "tales": TestSet("fairytaleqa", "fairytaleqa", "val", (1000, 6000), 512, SHORT),
    "meetings": TestSet("qmsum", "qmsum", "held", (5000, 30000)),
    "papers": TestSet("leval", "leval", "scientific_qa", (5000, 30000)),
    "articles": TestSet("covidqa", "covidqa/200423_covidQA.half.json", None, (5000, 30000),
                        unread=unread_article),
    "several": TestSet("leval", "leval", "multidoc_qa", (3000, 30000)),
    "lectures": TestSet("leval", "leval", "coursera", (5000, 30000)),
    "stories": TestSet("leval", "leval", "quality", (5000, 30000)),
    "encyclopedia": TestSet("loogle", "loogle_sample/shortdep_qa.jsonl", None, (5000, 24000)),
    "pairs": TestSet("kv", PAIRS, None, (2000, 30000), answer_tokens=96),
}  # fmt: skip


def documents_of(
    name: str, data: Path, n_documents: int, n_questions: int
) -> list[QuestionedDocument]:
    """Evenly chosen by length, among those that no head has read."""
    kind = SETS[name]
    low, high = kind.tokens
    request = Request(
        source=data / kind.path,
        part=kind.part,
        min_tokens=low,
        max_tokens=high,
        per_document=n_questions,
        exclude=data / "leval" if kind.source == "qmsum" else None,
    )
    found = [d for d in build_set(kind.source, request) if kind.unread(d.name)]
    return evenly(sorted(found, key=lambda d: (approx_tokens(d), d.name)), n_documents)


def evenly(documents: Sequence[QuestionedDocument], n: int) -> list[QuestionedDocument]:
    """n documents, from the middles of n equal parts of their order; all if there are fewer."""
    if n >= len(documents):
        return list(documents)
    return [documents[int((i + 0.5) * len(documents) / n)] for i in range(n)]


def last_minus_first(results: Sequence[DocumentResult], scorer: str) -> list[float]:
    """A value a document and share: what its last question lost more than its first, in nats."""
    found = []
    for result in results:
        assert result.full is not None
        for row in result.rows:
            if row.scorer == scorer and len(row.nll) > 1:
                gaps = [a - b for a, b in zip(row.nll, result.full.nll, strict=True)]
                found.append(gaps[-1] - gaps[0])
    return found


def spread(values: Sequence[float]) -> str:
    """Mean and its standard error."""
    if not values:
        return "-"
    error = f" +- {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{mean(values):+.3f}{error}"


def row_line(row: dict[str, Any], goals: Goals | None) -> str:
    """One row of a report, with the goals beside what was found."""
    error = "" if row["nll_gap_se"] is None else f" +- {row['nll_gap_se']:.3f}"
    ratio = "-" if row["f1_ratio"] is None else f"{100 * row['f1_ratio']:.0f}"
    about = "" if row["f1_ratio_se"] is None else f" +- {100 * row['f1_ratio_se']:.0f}"
    line = f"  {row['scorer']:18} {row['kept']:7.5g}  {row['nll_gap']:+.3f}{error}"
    line = (
        f"{line:48} F1 {row['f1'] or 0:.3f} {f'{ratio}{about} %':>11}  {row['bytes']:>12,.0f} bytes"
    )
    if goals is None:
        return line
    nats = "" if goals.nats is None else f"at most {goals.nats:.2f}, "
    return f"{line}  (goal: {nats}{100 * goals.f1_ratio:.0f} %)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with qa/")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--sets", default=",".join(SETS), help="with commas between")
    parser.add_argument("--scorers", default="retaining,keydiff")
    parser.add_argument("--documents", type=int, default=2, help="of each set")
    parser.add_argument("--questions", type=int, default=MOST_QUESTIONS, help="of each document")
    parser.add_argument("--max-new-tokens", type=int, help="default: as suits each set")
    parser.add_argument("--kept", help="shares, with commas between; default: as suits each set")
    parser.add_argument("--kv-bits", default="16", help="with commas between, a row each")
    parser.add_argument("--equal-bytes", action="store_true", help="shares are of bytes")
    parser.add_argument("--read-twice", action="store_true", help="a second reading chooses")
    parser.add_argument("--allocation", choices=get_args(Allocation), help="default: the scorer's")
    parser.add_argument("--positions", choices=get_args(Positions), default="auto")
    parser.add_argument("--log", type=Path, help="finished documents; a second run goes on")
    options = parser.parse_args()
    model = load_model(options.model, models_dir=options.models)
    layout = Layout(model.tokenizer)
    # Of each name the shipped heads: a user's own may have read what is measured on.
    scorers = {
        name: make_scorer(name, model, seed=0)
        for name in options.scorers.split(",")
        if name not in ORACLES
    }
    for name, reads in scorers.items():
        print(f"{name}: {reads.digest()}, allocation {reads.allocation}", flush=True)
    reports: dict[str, Any] = {}
    everything: list[DocumentResult] = []
    for name in options.sets.split(","):
        kind = SETS[name]
        kept = tuple(map(float, options.kept.split(","))) if options.kept else kind.kept
        settings = EvalSettings(
            tuple(options.scorers.split(",")), kept, chunked=True,
            chunk_tokens=kind.chunk_tokens,
            max_new_tokens=options.max_new_tokens or kind.answer_tokens,
            kv_bits=tuple(options.kv_bits.split(",")), equal_bytes=options.equal_bytes,
            read_twice=options.read_twice, allocation=options.allocation,
            positions=options.positions,
        )  # fmt: skip
        results, refused = evaluate(
            model,
            layout,
            documents_of(name, options.data / "qa", options.documents, options.questions),
            settings,
            lambda scorer: scorers[scorer],
            log=ResultLog(options.log),
        )
        everything += results
        report = make_report(model.name, settings, results, refused)
        reports[name] = report
        print(
            f"{name}: {report['documents']} documents of {report['n_tokens']:.0f} tokens "
            f"({', '.join(r.name for r in results)}), {report['questions']} questions, full cache "
            f"{report['full']['bytes']:,.0f} bytes, NLL {report['full']['nll']:.3f}, "
            f"F1 {report['full']['f1']:.3f}",
            flush=True,
        )
        for row in report["rows"]:
            print(row_line(row, kind.goals.get(row["kept"])), flush=True)
    for scorer in dict.fromkeys(row.scorer for result in everything for row in result.rows):
        found = last_minus_first(everything, scorer)
        print(f"{scorer}: the last question of a cache lost {spread(found)} more than its first")
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
