"""What each part of the answering brings: packed weights, and drafts from the document's own text.

    python tests/bench/answering.py --data ../shared/data --models DIR --set papers --questions 5

Documents are chosen as tests/bench/standing.py chooses them, each read once with the default heads
at --budget entries a head, and asked on that one cache: by the model's own modules and by the
packed decoder in every format, without drafts and with them, in turn. Greedy answers of --tokens
tokens at most. Prints a row a way with the median of tokens a second over all questions, the ratio
to the model's own modules, passes a token, and how many answers are those of the same weights
without drafts, token for token; then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from app.prompts import Layout
from engine.cache import DocCache
from engine.decoding import choose_decoder
from engine.eviction import EvictionConfig
from engine.generate import Decoder, Sampling, generate
from engine.loader import LoadedModel, load_model
from engine.prefill import PrefillConfig, prefill
from engine.quantisation import parse_kv_bits
from engine.speculation import Drafter
from heads.catalog import make_scorer
from tests.bench.standing import SETS, documents_of

FORMATS = ("stock", "same", "fp16", "int8", "int4")  # of the CPU
CARD_FORMATS = ("stock", "same", "nf4")


@dataclass
class Way:
    """One way of answering: tokens a second, passes a token, and the tokens of every answer."""

    rates: list[float] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)


def answered(
    model: LoadedModel, cache: DocCache, tail: list[int], decoder: Decoder, n: int, drafts: bool
) -> tuple[float, float, list[int]]:
    """Tokens a second after the first, passes a token, and the answer's tokens."""
    drafter = Drafter(cache.token_ids, tail) if drafts else None
    sampling = Sampling(temperature=0.0, max_new_tokens=n)
    made = generate(model, cache.view(), tail, sampling, decoder=decoder, drafter=drafter)
    n_after_the_first = len(made.token_ids) - 1 + (made.finish == "eos")
    return made.decode_tok_s, made.forwards / max(1, n_after_the_first), made.token_ids


def row(name: str, drafts: bool, way: Way, plain: Way, stock: Way) -> dict[str, Any]:
    same = sum(a == b for a, b in zip(way.answers, plain.answers, strict=True))
    return {
        "weights": name,
        "drafts": drafts,
        "tok_s": round(median(way.rates), 2),
        "ratio": round(median(way.rates) / median(stock.rates), 2),
        "passes_a_token": round(sum(way.passes) / len(way.passes), 3),
        "same_answers": same,
        "answers": len(way.answers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with qa/")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b")
    parser.add_argument("--set", choices=SETS, default="papers")
    parser.add_argument("--documents", type=int, default=2)
    parser.add_argument("--questions", type=int, default=4, help="of each document")
    parser.add_argument("--tokens", type=int, default=48, help="longest answer")
    parser.add_argument("--budget", type=int, default=4096, help="entries a head")
    options = parser.parse_args()
    model = load_model(options.model, models_dir=options.models)
    layout = Layout(model.tokenizer)
    scorer = make_scorer("retaining", model, seed=0)
    quant = parse_kv_bits("k8v4", model.geometry)
    formats = FORMATS if model.device == "cpu" else CARD_FORMATS
    decoders = {name: choose_decoder(model, name).decoder for name in formats}
    ways: dict[tuple[str, bool], Way] = defaultdict(Way)
    for document in documents_of(
        options.set, options.data / "qa", options.documents, options.questions
    ):
        ids, _ = layout.document_ids(document.text)
        eviction = EvictionConfig(min(options.budget, len(ids)), scorer.allocation)
        cache = prefill(model, ids, PrefillConfig(1024, eviction, quant=quant), scorer).freeze()
        for question in document.questions[: options.questions]:
            tail = layout.tail(question.text)
            for name, decoder in decoders.items():
                for drafts in (False, True):
                    rate, passes, tokens = answered(
                        model, cache, tail, decoder, options.tokens, drafts
                    )
                    way = ways[name, drafts]
                    way.answers.append(tokens)
                    if rate > 0:
                        way.rates.append(rate)
                        way.passes.append(passes)
        print(
            f"{document.name}: {len(ids)} tokens, {cache.kept_tokens:.0f} kept a head", flush=True
        )
    stock = ways["stock", False]
    rows = [row(n, d, way, ways[n, False], stock) for (n, d), way in ways.items()]
    for found in rows:
        drafted = "drafts" if found["drafts"] else "      "
        print(
            f"{found['weights']:6} {drafted} {found['tok_s']:7.2f} tok/s  x{found['ratio']:5.2f}  "
            f"{found['passes_a_token']:.3f} passes a token  "
            f"{found['same_answers']} of {found['answers']} answers the same"
        )
    print(json.dumps({"set": options.set, "model": model.name, "rows": rows}))


if __name__ == "__main__":
    main()
