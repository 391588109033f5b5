"""Which training-free scorer loses least: NLL of true answers against the full cache.

    python tests/bench/compare_scorers.py --data FAIRYTALE_FOLDER --models DIR [--tales 6]

Each tale is read once with nothing evicted, while every scorer rates it; then, for each scorer,
allocation and kept fraction, the cache is pruned and the same questions are scored on views of
it. Prints one line a setting: mean extra NLL per answer token over the full cache, in nats
(lower is better), the standard error over tales, and the same for recency as the floor.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.batch import nll_together
from engine.cache import DocCache
from engine.eviction import Allocation, EvictionConfig
from engine.loader import load_model
from engine.prefill import PrefillConfig, prefill
from engine.pruning import pruned
from engine.scorers.several import SeveralScorers
from heads.catalog import make_scorer, scorer_names

ALLOCATIONS: tuple[Allocation, ...] = ("uniform", "per_layer", "global")


def answer_nlls(model: Any, cache: DocCache, asked: list[Any]) -> list[float]:
    """Mean negative log-likelihood per token of each answer, after its question."""
    questions, answers = zip(*asked, strict=True)
    return nll_together(model, [cache.view() for _ in asked], questions, answers)


def tales(folder: Path, n_tales: int, n_questions: int) -> Iterator[tuple[str, list[Any]]]:
    """Short whole stories of the validation part (the very shortest left out), evenly asked."""
    names = sorted((folder / "section-stories" / "val").glob("*-story.csv"))
    for path in sorted(names, key=lambda p: p.stat().st_size)[4 : 4 + n_tales]:
        with path.open(encoding="utf-8", newline="") as file:
            text = "\n\n".join(row["text"] for row in csv.DictReader(file))
        asked = folder / "questions" / "val" / path.name.replace("-story", "-questions")
        with asked.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        step = max(1, len(rows) // n_questions)
        yield text, [(r["question"], r["answer1"]) for r in rows[::step][:n_questions]]


def pieces(model: Any, text: str, asked: list[Any]) -> tuple[list[int], list[Any], int]:
    """Token ids of the prefix and of each question and answer, in the model's chat template."""
    message = "Answer briefly from the text.\n\n\x00\n\nQuestion: \x01"
    turns = [{"role": "user", "content": message}]
    whole = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    head, rest = whole.split("\x00")
    middle, tail = rest.split("\x01")
    ids = lambda part: model.tokenizer(part, add_special_tokens=False)["input_ids"]  # noqa: E731
    opening = ids(head)
    prefix = opening + ids(text)
    return prefix, [(ids(middle + q + tail), ids(a)) for q, a in asked], len(opening)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--tales", type=int, default=6)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--kept", default="0.5,0.25,0.125")
    options = parser.parse_args()
    model = load_model(options.model, models_dir=options.models)
    fractions = [float(x) for x in options.kept.split(",")]
    gaps: dict[tuple[str, Allocation, float], list[float]] = {}
    for text, asked in tales(options.data, options.tales, options.questions):
        prefix, questions, n_sinks = pieces(model, text, asked)
        every = SeveralScorers({n: make_scorer(n, model) for n in scorer_names()})
        config = PrefillConfig(512, EvictionConfig(budget_tokens=None, positions="original"))
        cache = prefill(model, prefix, config, every)
        full = answer_nlls(model, cache, questions)
        for name in every.scorers:
            for allocation in ALLOCATIONS:
                for kept in fractions:
                    rules = EvictionConfig(
                        budget_tokens=int(kept * len(prefix)),
                        allocation=allocation,
                        sink_tokens=n_sinks,
                        stabilizer_tokens=0,
                        local_tokens=16,
                    )
                    small = pruned(cache, every.scores(name), rules)
                    lost = answer_nlls(model, small, questions)
                    gap = statistics.mean(lost) - statistics.mean(full)
                    gaps.setdefault((name, allocation, kept), []).append(gap)
        print(f"read {len(prefix)} tokens, full NLL {statistics.mean(full):.3f}", flush=True)
    for (name, allocation, kept), values in sorted(gaps.items(), key=lambda item: item[0][1:]):
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
        print(
            f"{allocation:10} kept {kept:<6} {name:20} "
            f"{statistics.mean(values):+.3f} +- {error:.3f}"
        )


if __name__ == "__main__":
    main()
