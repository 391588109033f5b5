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

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.attention import decoder_of
from engine.cache import DocCache
from engine.eviction import EvictionConfig
from engine.loader import load_model
from engine.prefill import PrefillConfig, prefill
from engine.pruning import pruned
from engine.scoring import LayerStep, Scorer, spread
from heads.catalog import make_scorer, scorer_names

ALLOCATIONS = ("uniform", "per_layer", "global")


class AllScorers(Scorer):
    """Lets every scorer rate one reading; keeps their scores apart."""

    name = "all"
    wants_mass = wants_logits = True

    def __init__(self, scorers: dict[str, Scorer]) -> None:
        self.scorers = scorers
        self.found: dict[str, dict[int, Tensor]] = {name: {} for name in scorers}

    def score(self, step: LayerStep) -> Tensor:
        for name, scorer in self.scorers.items():
            new = scorer.score(step).float()
            old = self.found[name].get(step.layer)
            if old is not None:
                kept = scorer.rescore(step, list(old))
                new = torch.cat([torch.stack(kept), new], dim=1)
            self.found[name][step.layer] = new
        return torch.zeros(step.k.shape[:2])

    def see_logits(self, logits: Tensor, token_ids: Tensor) -> Tensor:
        scores = self.scorers["surprisal"].see_logits(logits, token_ids)
        assert scores is not None
        self.surprisals = torch.cat([getattr(self, "surprisals", scores[:0]), scores])
        return scores

    def finished(self, n_kv_heads: int) -> dict[str, dict[int, Tensor]]:
        for layer in self.found["surprisal"]:
            self.found["surprisal"][layer] = spread(self.surprisals, n_kv_heads)
        return self.found


@torch.inference_mode()
def answer_nll(model: Any, cache: DocCache, question: list[int], answer: list[int]) -> float:
    """Mean negative log-likelihood per token of the answer, after the question."""
    hidden = decoder_of(model.model)(
        input_ids=torch.tensor([question + answer]), use_cache=False, store=cache.view()
    ).last_hidden_state[0]
    logits = model.model.lm_head(hidden[len(question) - 1 : -1]).float()
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))


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
    gaps: dict[tuple[str, str, float], list[float]] = {}
    for text, asked in tales(options.data, options.tales, options.questions):
        prefix, questions, n_sinks = pieces(model, text, asked)
        every = AllScorers({n: make_scorer(n, model) for n in scorer_names()})
        config = PrefillConfig(512, EvictionConfig(budget_tokens=None, positions="original"))
        cache = prefill(model, prefix, config, every)
        found = every.finished(model.geometry.n_kv_heads)
        full = [answer_nll(model, cache, q, a) for q, a in questions]
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
                    small = pruned(cache, found[name], rules)
                    lost = [answer_nll(model, small, q, a) for q, a in questions]
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
